import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "../../queues/connection.ts";
import { KEY_PREFIX, ROLES } from "../../queues/names.ts";

const BLOCK_SECONDS = 1;

/**
 * Wakes the dispatcher when a job arrives. BullMQ writes a marker into a queue when work appears; one blocking read waits on
 * both queues' markers (same slot), so an idle worker starts a job within a millisecond or two and polls nothing. A marker that
 * another worker popped is made up for by the dispatcher's own timer.
 */
export class WakeSignal {
  readonly #blocking: Redis;
  readonly #onWake: () => void;
  readonly #onError: (error: Error) => void;
  #closed = false;
  #loop: Promise<void> | undefined;

  /** `blocking` is a connection of its own; `close` disconnects it. */
  constructor(blocking: Redis, onWake: () => void, onError: (error: Error) => void) {
    this.#blocking = blocking;
    this.#onWake = onWake;
    this.#onError = onError;
  }

  start(): void {
    this.#loop = this.#run();
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#blocking.disconnect();
    await this.#loop;
  }

  async #run(): Promise<void> {
    const markers = ROLES.map((role) => `${KEY_PREFIX}:${role}:marker`);
    while (!this.#closed) {
      try {
        if ((await this.#blocking.bzpopmin(...markers, BLOCK_SECONDS)) !== null) this.#onWake();
      } catch (error) {
        if (this.#closed || this.#blocking.status === "end") return;
        this.#onError(error as Error);
        await delay(BLOCK_SECONDS * 1000);
      }
    }
  }
}
