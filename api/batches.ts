import { createHash } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { wilson } from "../maths/accuracy.ts";
import { type AnswerCache, publishedModels } from "../queues/answer-cache.ts";
import type { BatchLineError, BatchResult, BatchStatus, BatchView } from "../queues/batch-contracts.ts";
import { isBatchId } from "../queues/batch-ids.ts";
import { type BatchRecord, BatchStore } from "../queues/batch-store.ts";
import type { Config } from "../queues/config.ts";
import type { PublishedModel } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import type { JobOwner } from "../queues/job-places.ts";
import type { Role } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import type { AnswerLookup } from "./answer-lookup.ts";
import { BatchIngest, chunkSizeFor, seedDigest, type UploadLine } from "./batch-ingest.ts";
import { BatchKeeper } from "./batch-keeper.ts";
import type { BatchRequest } from "./batch-line.ts";
import { BatchPlacer } from "./batch-placer.ts";
import { batchResults, type ResultOptions } from "./batch-results.ts";
import type { JobLookup } from "./job-lookup.ts";

const ERRORS_PAGE = 500;

export interface BatchUpload {
  /** Reads one line. Throws `invalid-request`. */
  parse: (value: unknown) => BatchRequest;
  /** What `parse` depends on beside the line. */
  defaults: unknown;
  metadata: Record<string, string>;
  idempotencyKey?: string;
  owner?: JobOwner;
}

export interface BatchesDeps {
  queues: Queues;
  config: Config;
  cache: AnswerCache;
  answers: AnswerLookup;
  lookup: JobLookup;
  onError: (error: Error) => void;
}

/** All that is done with batches, whatever form they come in. `start` it, and `close` it before Redis goes. */
export class Batches {
  readonly #queues: Queues;
  readonly #config: Config;
  readonly #lookup: JobLookup;
  readonly #store: BatchStore;
  readonly #keeper: BatchKeeper;
  readonly #ingest: BatchIngest;

  constructor({ queues, config, cache, answers, lookup, onError }: BatchesDeps) {
    this.#queues = queues;
    this.#config = config;
    this.#lookup = lookup;
    this.#store = new BatchStore(queues.redis, config.jobRetentionSeconds);
    this.#keeper = new BatchKeeper({ store: this.#store, queues, config, lookup, onError });
    this.#ingest = new BatchIngest(this.#store, new BatchPlacer(queues, config, { lookup: answers, cache }), this.#keeper);
  }

  start(): void {
    this.#keeper.start();
  }

  close(): void {
    this.#keeper.close();
  }

  /**
   * Takes a batch of at least one line; `replayed`: all of it was there already. An upload that ends too early leaves its batch open for the same lines under the
   * same key, or, without a key, with the lines it has. The error then tells how far it came, as `extra.accepted`.
   */
  async upload(lines: AsyncIterable<UploadLine>, upload: BatchUpload): Promise<{ batchId: string; replayed: boolean }> {
    const { parse, defaults, metadata, idempotencyKey, owner } = upload;
    const some = await withFirst(lines);
    if (some === undefined) throw new MathllmError("invalid-request", "Expected at least one line that is not blank; got none.");
    const { batch } = await this.#store.open({
      chunkSize: chunkSizeFor(this.#config.maxDepths, owner?.maxJobs ?? null),
      seedDigest: seedDigest(defaults, metadata),
      metadata,
      owner: owner?.name,
      idempotencyDigest: idempotencyKey === undefined ? undefined : idempotencyDigest(idempotencyKey, owner),
      models: await publishedModels(this.#queues.redis),
    });
    const { batchId } = batch;
    if (batch.seedDigest !== seedDigest(defaults, metadata)) {
      throw new MathllmError("idempotency-conflict", "This Idempotency-Key came before with other defaults or metadata. Use a new key.", {
        extra: { batchId },
      });
    }
    try {
      await this.#ingest.ingest(batch, some, { owner, parse });
      return { batchId, replayed: batch.uploadedAt !== null };
    } catch (error) {
      throw await this.#cut(batch, error);
    }
  }

  async #cut({ batchId, idempotencyDigest: digest }: BatchRecord, error: unknown): Promise<unknown> {
    if (digest === undefined) await this.#store.closeUpload(batchId);
    if (!(error instanceof MathllmError) || error.code === "idempotency-conflict" || error.code === "cancelled") return error;
    const accepted = (await this.#store.read(batchId))?.total ?? 0;
    const goOn =
      digest === undefined
        ? `Send the lines after them as another batch later; with an Idempotency-Key the same upload could go on where it stopped.`
        : `Send the same upload again with the same Idempotency-Key: it goes on where it stopped.`;
    return new MathllmError(error.code, `${error.message} The first ${accepted} lines were taken as ${batchId}. ${goOn}`, {
      extra: { ...error.extra, batchId, accepted, links: linksOf(batchId) },
    });
  }

  /** undefined: unknown or expired. */
  async view(batchId: string): Promise<BatchView | undefined> {
    if (!isBatchId(batchId)) return undefined;
    const known = await this.#keeper.look(batchId);
    if (known === undefined) return undefined;
    const { batch, lastWaiting } = known;
    const last = lastWaiting === null ? undefined : await this.#lookup.view(lastWaiting);
    return this.#toView(batch, await publishedModels(this.#queues.redis), last?.estimatedStartMs ?? null);
  }

  /** Whether an API key's holder may see it. */
  async isVisibleTo(owner: string, batchId: string): Promise<boolean> {
    const batch = isBatchId(batchId) ? await this.#store.read(batchId) : undefined;
    return batch === undefined || batch.owner === owner;
  }

  results(batchId: string, options: ResultOptions): AsyncGenerator<BatchResult> {
    return batchResults({ store: this.#store, keeper: this.#keeper, queues: this.#queues }, batchId, options);
  }

  /** The first of the lines that were not accepted. */
  firstErrors(batchId: string, count: number): Promise<BatchLineError[]> {
    return this.#store.errors(batchId, 0, count);
  }

  /** Those with an index from `from` on, in order. */
  async *errors(batchId: string, from = 0): AsyncGenerator<BatchLineError> {
    for (let at = await this.#store.firstErrorFrom(batchId, from); ; at += ERRORS_PAGE) {
      const page = await this.#store.errors(batchId, at, ERRORS_PAGE);
      yield* page;
      if (page.length < ERRORS_PAGE) return;
    }
  }

  /** Lines that have not ended won't run, or are stopped; it takes no more. Those that have ended keep their results. */
  async cancel(batchId: string): Promise<void> {
    const batch = await this.#store.read(batchId);
    if (batch === undefined || batch.finishedAt !== null) return;
    await this.#store.cancel(batchId);
    // Many lines take a while; the keeper goes on with it if this process dies.
    void this.#keeper.look(batchId).catch(() => {});
  }

  /** The latest first, of `owner` or of everybody. */
  async list(count: number, owner?: string): Promise<BatchView[]> {
    const views: BatchView[] = [];
    const models = await publishedModels(this.#queues.redis);
    for await (const batch of this.#store.latest()) {
      if (owner !== undefined && batch.owner !== owner) continue;
      views.push(this.#toView(batch, models, null));
      if (views.length === count) break;
    }
    return views;
  }

  #toView(batch: BatchRecord, published: Partial<Record<Role, PublishedModel>>, etaMs: number | null): BatchView {
    const { batchId, total, invalid, completed, failed, cancelled, cached, coalesced, equal, different, undecided } = batch;
    const unsettled = total - invalid - completed - failed - cancelled;
    const active = Math.min(batch.active, unsettled);
    const graded = equal + different + undecided;
    return {
      batchId,
      status: statusOf(batch, unsettled),
      counts: { total, invalid, waiting: unsettled - active, active, completed, failed, cancelled, cached, coalesced },
      accuracy: graded === 0 ? null : { graded, equal, different, undecided, accuracy: equal / graded, ...wilson(equal, graded) },
      etaMs,
      timestamps: {
        createdAt: batch.createdAt,
        uploadedAt: batch.uploadedAt,
        cancelledAt: batch.cancelledAt,
        finishedAt: batch.finishedAt,
        expiresAt: this.#store.expiresAt(batch),
      },
      models: batch.models
        .filter(({ role }) => batch[role] > 0)
        .map(({ role, ...model }) => ({ role, ...model, current: isDeepStrictEqual(model, published[role]) })),
      metadata: batch.metadata,
      links: linksOf(batchId),
    };
  }
}

/** undefined: there is not one. */
async function withFirst<T>(items: AsyncIterable<T>): Promise<AsyncIterable<T> | undefined> {
  const iterator = items[Symbol.asyncIterator]();
  const first = await iterator.next();
  if (first.done === true) return undefined;
  return (async function* () {
    yield first.value;
    yield* { [Symbol.asyncIterator]: () => iterator };
  })();
}

function statusOf({ uploadedAt, cancelledAt, finishedAt }: BatchRecord, unsettled: number): BatchStatus {
  if (cancelledAt !== null) return unsettled > 0 || finishedAt === null ? "cancelling" : "cancelled";
  if (uploadedAt === null) return "ingesting";
  return unsettled > 0 || finishedAt === null ? "running" : "completed";
}

function linksOf(batchId: string): BatchView["links"] {
  return { self: `/batches/${batchId}`, results: `/batches/${batchId}/results`, errors: `/batches/${batchId}/errors` };
}

/** The Idempotency-Keys of an API key are its own, and a batch's are not those of `POST /solve`. */
function idempotencyDigest(idempotencyKey: string, owner: JobOwner | undefined): string {
  return createHash("sha256")
    .update(JSON.stringify(["batch", owner?.name ?? null, idempotencyKey]))
    .digest("hex");
}
