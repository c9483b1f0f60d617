import { setTimeout as delay } from "node:timers/promises";
import { listenForCancels } from "../queues/cancellation.ts";
import type { Redis } from "../queues/connection.ts";
import { clientJobId, KEY_PREFIX, ROLES } from "../queues/names.ts";

const BLOCK_MS = 5000;
const BATCH = 1000;
const RETRY_MS = 100;

/** A stage of the job was picked; or the job ended, or will surely end. */
export type JobChange = "began" | "ended";

const STREAMS = ROLES.map((role) => `${KEY_PREFIX}:${role}:events`);

/**
 * Tells when a job may have become terminal, or was picked: from BullMQ's event streams and from the cancel broadcasts. A waiter is
 * registered first and the job read after, so that no end falls between. The streams are read from concrete ids, never from
 * "what comes next", so that nothing is missed between two reads or while the connection is lost. BullMQ's QueueEvents is
 * not used: its `close` never resolves while Redis is away.
 */
export class JobCompletions {
  /** Resolves when every later end will be heard. It never rejects. */
  readonly ready: Promise<unknown>;
  readonly #onError: (error: Error) => void;
  readonly #waiters = new Map<string, Set<() => void>>();
  readonly #listeners = new Map<string, Set<(change: JobChange) => void>>();
  readonly #onEvery = new Set<(jobId: string) => void>();
  #closed = false;

  /** `connect` is called for two connections, closed by the caller after `close`: reading blocks the one, the other subscribes. */
  constructor(connect: () => Redis, onError: (error: Error) => void) {
    this.#onError = onError;
    const reading = Promise.withResolvers<void>();
    void this.#read(connect(), reading.resolve);
    const subscribed = listenForCancels(connect(), (jobId) => this.notify(jobId)).catch(onError);
    this.ready = Promise.all([reading.promise, subscribed]);
  }

  async #read(redis: Redis, onReading: () => void): Promise<void> {
    let ids: string[] | undefined;
    while (!this.#closed) {
      try {
        ids ??= await lastEntryIds(redis);
        onReading();
        const streams = await redis.xread("COUNT", BATCH, "BLOCK", BLOCK_MS, "STREAMS", ...STREAMS, ...ids);
        for (const [stream, entries] of streams ?? []) {
          for (const [id, fields] of entries) {
            ids[STREAMS.indexOf(stream)] = id;
            this.#hear(fields);
          }
        }
      } catch (error) {
        if (this.#closed) return;
        this.#onError(error as Error);
        await delay(RETRY_MS);
      }
    }
  }

  #hear(fields: string[]): void {
    const { event, jobId } = fieldsOf(fields);
    if (jobId === undefined) return;
    if (event === "completed" || event === "failed") this.notify(clientJobId(jobId));
    if (event === "active") this.#tell(clientJobId(jobId), "began");
  }

  /** Calls back whenever something may have happened to the job, until the end that is returned. */
  listen(jobId: string, onChange: (change: JobChange) => void): () => void {
    const listeners = this.#listeners.get(jobId) ?? new Set();
    this.#listeners.set(jobId, listeners.add(onChange));
    return () => {
      listeners.delete(onChange);
      if (listeners.size === 0 && this.#listeners.get(jobId) === listeners) this.#listeners.delete(jobId);
    };
  }

  #tell(jobId: string, change: JobChange): void {
    for (const onChange of [...(this.#listeners.get(jobId) ?? [])]) onChange(change);
  }

  /** Resolves when the job ended, `signal` aborts, or everything closes. It never rejects. */
  async ended(jobId: string, signal: AbortSignal): Promise<void> {
    if (this.#closed || signal.aborted) return;
    await new Promise<void>((resolve) => {
      const waiters = this.#waiters.get(jobId) ?? new Set();
      this.#waiters.set(jobId, waiters);
      const done = () => {
        signal.removeEventListener("abort", done);
        waiters.delete(done);
        if (waiters.size === 0) this.#waiters.delete(jobId);
        resolve();
      };
      waiters.add(done);
      signal.addEventListener("abort", done, { once: true });
    });
  }

  /** This job ended, or will surely end: its waiters look again. */
  notify(jobId: string): void {
    for (const done of [...(this.#waiters.get(jobId) ?? [])]) done();
    this.#tell(jobId, "ended");
    for (const onEnded of this.#onEvery) onEnded(jobId);
  }

  /** Calls back for every job that ended, or will surely end. */
  listenToAll(onEnded: (jobId: string) => void): void {
    this.#onEvery.add(onEnded);
  }

  /** Nothing is told any more. */
  get closed(): boolean {
    return this.#closed;
  }

  /** How many jobs are waited for. */
  get waiting(): number {
    return this.#waiters.size;
  }

  /** Ends every wait. The reading ends when the caller closes the connections. */
  close(): void {
    this.#closed = true;
    for (const jobId of [...this.#waiters.keys()]) this.notify(jobId);
  }
}

async function lastEntryIds(redis: Redis): Promise<string[]> {
  const last = await Promise.all(STREAMS.map((stream) => redis.xrevrange(stream, "+", "-", "COUNT", 1)));
  return last.map(([entry]) => entry?.[0] ?? "0-0");
}

/** A stream entry's fields are names and values in turn. */
function fieldsOf(fields: string[]): Record<string, string | undefined> {
  return Object.fromEntries(fields.flatMap((name, index) => (index % 2 === 0 ? [[name, fields[index + 1]]] : [])));
}
