import { QueueEvents } from "bullmq";
import type { Redis } from "ioredis";
import { clientJobId, KEY_PREFIX, ROLES } from "../queues/names.ts";

/**
 * Tells when a job becomes terminal, from BullMQ's event streams. A waiter is registered first and the job read after, so
 * that no end falls between. A lost connection resumes the stream where it stopped.
 */
export class JobCompletions {
  readonly #events: QueueEvents[];
  readonly #waiters = new Map<string, Set<() => void>>();
  #closed = false;

  /** `connect` gives a connection of its own for each queue: reading blocks it. The caller closes them after `close`. */
  constructor(connect: () => Redis, onError: (error: Error) => void) {
    this.#events = ROLES.map((role) => {
      const events = new QueueEvents(role, { connection: connect(), prefix: KEY_PREFIX, skipVersionCheck: true });
      events.on("completed", ({ jobId }) => this.notify(jobId));
      // A Student that failed ends the whole explain job, though its parent fails only once a worker picks it.
      events.on("failed", ({ jobId }) => this.notify(clientJobId(jobId)));
      events.on("error", onError);
      return events;
    });
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
  }

  /** Nothing is told any more. */
  get closed(): boolean {
    return this.#closed;
  }

  get waiting(): number {
    return this.#waiters.size;
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const jobId of [...this.#waiters.keys()]) this.notify(jobId);
    await Promise.all(this.#events.map((events) => events.close()));
  }
}
