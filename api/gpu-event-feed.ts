import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "../queues/connection.ts";
import { type GpuEvent, latestGpuEvents, nextGpuEvents } from "../queues/gpu-events.ts";

const BLOCK_MS = 5000;
const RETRY_MS = 100;
const RESUMED_EVENTS = 1000;

/** Reads the GPUs' events once for all listeners of this process, and not at all while there are none. */
export class GpuEventFeed {
  readonly #blocking: Redis;
  readonly #onError: (error: Error) => void;
  readonly #listeners = new Set<(event: GpuEvent) => void>();
  readonly #closers = new Set<() => void>();
  #closed = false;
  #reading = false;

  /** `blocking` is a connection of its own, closed by the caller after `close`. */
  constructor(blocking: Redis, onError: (error: Error) => void) {
    this.#blocking = blocking;
    this.#onError = onError;
  }

  /**
   * Calls back for every event from now on, which may include some up to `newestId`, the newest one that the caller knows of. Returns the
   * end of it. `onClose` is called when the feed ends first.
   */
  listen(newestId: string, onEvent: (event: GpuEvent) => void, onClose: () => void): () => void {
    if (this.#closed) {
      onClose();
      return () => {};
    }
    this.#listeners.add(onEvent);
    this.#closers.add(onClose);
    if (!this.#reading) {
      this.#reading = true;
      void this.#read(newestId);
    }
    return () => {
      this.#listeners.delete(onEvent);
      this.#closers.delete(onClose);
    };
  }

  close(): void {
    this.#closed = true;
    for (const onClose of [...this.#closers]) onClose();
  }

  async #read(afterId: string): Promise<void> {
    let lastId = afterId;
    while (!this.#closed && this.#listeners.size > 0) {
      try {
        for (const event of await nextGpuEvents(this.#blocking, lastId, BLOCK_MS)) {
          lastId = event.id;
          for (const listener of this.#listeners) listener(event);
        }
      } catch (error) {
        if (this.#closed) return;
        this.#onError(error as Error);
        await delay(RETRY_MS);
      }
    }
    this.#reading = false;
  }
}

/** What a returning listener missed, oldest first: at most the thousand newest. */
export async function missedGpuEvents(redis: Redis, afterId: string): Promise<GpuEvent[]> {
  const events = await latestGpuEvents(redis, RESUMED_EVENTS);
  return events.filter(({ id }) => isAfter(id, afterId));
}

export async function newestGpuEventId(redis: Redis): Promise<string> {
  return (await latestGpuEvents(redis, 1))[0]?.id ?? "0-0";
}

export function isAfter(id: string, other: string): boolean {
  const [time = "0", count = "0"] = id.split("-");
  const [otherTime = "0", otherCount = "0"] = other.split("-");
  return BigInt(time) === BigInt(otherTime) ? BigInt(count) > BigInt(otherCount) : BigInt(time) > BigInt(otherTime);
}
