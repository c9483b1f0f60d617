import { setTimeout as delay } from "node:timers/promises";
import type { BatchLineError, BatchResult, BatchView } from "../queues/batch-contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { type BatchClient, ERRORS_PAGE } from "./batch-client.ts";

/** How long one look at the results waits for the next line. */
const WAIT_SECONDS = 1;
/** How long an API that is gone is waited for. */
const GONE_MS = 60_000;
const GONE_LOOK_MS = 500;

export type LineOutcome = { result: BatchResult } | { refused: BatchLineError };

/** What has become of a batch's lines, in order, as they end. An API that is being restarted is waited for. */
export async function* lineOutcomes(
  client: BatchClient,
  batchId: string,
  onView: (batch: BatchView) => void,
  signal: AbortSignal | undefined,
): AsyncGenerator<LineOutcome> {
  const refusals = new Refusals(client, batchId);
  const absence = new Absence(signal);
  for (let next = 0; ; ) {
    try {
      const batch = await client.view(batchId);
      onView(batch);
      for await (const result of client.results(batchId, next, WAIT_SECONDS)) {
        yield* refusals.before(result.index);
        yield { result };
        next = result.index + 1;
      }
      absence.over();
      if (batch.timestamps.finishedAt === null) continue;
      yield* refusals.before(Number.POSITIVE_INFINITY);
      return;
    } catch (error) {
      await absence.wait(error);
    }
  }
}

/** The lines that were not accepted, a page at a time: no connection stays open between. */
class Refusals {
  readonly #client: BatchClient;
  readonly #batchId: string;
  #page: BatchLineError[] = [];
  #from = 0;
  #isLast = false;

  constructor(client: BatchClient, batchId: string) {
    this.#client = client;
    this.#batchId = batchId;
  }

  /** The next one, if it comes before `index`. */
  async next(index: number): Promise<BatchLineError | undefined> {
    if (this.#page.length === 0 && !this.#isLast) {
      this.#page = await this.#client.errorsPage(this.#batchId, this.#from);
      this.#isLast = this.#page.length < ERRORS_PAGE;
      this.#from = (this.#page.at(-1)?.index ?? this.#from) + 1;
    }
    return (this.#page[0]?.index ?? index) < index ? this.#page.shift() : undefined;
  }

  /** All that come before `index` and have not been taken. */
  async *before(index: number): AsyncGenerator<LineOutcome> {
    for (let refused = await this.next(index); refused !== undefined; refused = await this.next(index)) yield { refused };
  }
}

/** Waits for an API that is gone for a while, such as one that is being restarted. */
export class Absence {
  readonly #signal: AbortSignal | undefined;
  #since: number | null = null;

  constructor(signal: AbortSignal | undefined) {
    this.#signal = signal;
  }

  over(): void {
    this.#since = null;
  }

  /** Rejects with what is another error, or when it has been gone for too long. */
  async wait(error: unknown): Promise<void> {
    this.#signal?.throwIfAborted();
    const isGone = error instanceof TypeError || (error instanceof MathllmError && error.code === "engine-failed");
    this.#since ??= performance.now();
    if (!isGone || performance.now() - this.#since > GONE_MS) throw error;
    await delay(GONE_LOOK_MS, undefined, { signal: this.#signal });
  }
}
