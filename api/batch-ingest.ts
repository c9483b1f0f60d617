import { createHash } from "node:crypto";
import type { BatchLineError } from "../queues/batch-contracts.ts";
import { batchJobId } from "../queues/batch-ids.ts";
import type { BatchRecord, BatchStore } from "../queues/batch-store.ts";
import { ERRORS, MathllmError } from "../queues/errors.ts";
import type { JobOwner } from "../queues/job-places.ts";
import type { JobKind } from "../queues/names.ts";
import type { BatchKeeper } from "./batch-keeper.ts";
import { type BatchRequest, customIdOf } from "./batch-line.ts";
import { type BatchPlacer, type Patience, type PlacedLine, recordOf } from "./batch-placer.ts";
import { EventLoopTurns } from "./event-loop-turns.ts";
import { kindOf } from "./submission.ts";

/** Longer than this an upload is not slowed down: a client that is kept waiting for minutes is cut off by something in between. */
const PATIENCE_MS = 5000;

/** A line as it came. */
export interface UploadLine {
  /** From 1. */
  line: number;
  /** What makes it the same line when it comes again. */
  bytes: Uint8Array | string;
  /** Throws a `MathllmError` when it holds no JSON. */
  read(): unknown;
}

export interface IngestOptions {
  owner?: JobOwner;
  /** Throws `invalid-request`. */
  parse: (value: unknown) => BatchRequest;
}

/**
 * Takes the lines of a batch, a chunk at a time: the next is read and checked while the last one goes into Redis, and no more than two are
 * held in memory. Chunks have digests, each over all lines up to its end:
 *
 *   recorded before, same digest ──► skipped; other digest ──► idempotency-conflict
 *   not recorded ──► checked ──► placed under ids that depend on batch and place alone ──► recorded in one step
 *
 * So an upload that comes again after a death goes on where the first one stopped, and what had been placed without having been recorded is
 * found, not made again.
 */
export class BatchIngest {
  readonly #store: BatchStore;
  readonly #placer: BatchPlacer;
  readonly #keeper: BatchKeeper;

  constructor(store: BatchStore, placer: BatchPlacer, keeper: BatchKeeper) {
    this.#store = store;
    this.#placer = placer;
    this.#keeper = keeper;
  }

  /**
   * Resolves when all lines are in Redis and the upload is closed. Throws `queue-full` or `too-many-jobs` when no more can be taken for now,
   * `idempotency-conflict` for other lines than those that came first, and whatever reading `lines` throws; the chunks recorded before stay.
   */
  async ingest(batch: BatchRecord, lines: AsyncIterable<UploadLine>, options: IngestOptions): Promise<void> {
    const upload = new Upload(this.#store, this.#placer, this.#keeper, batch, options);
    await upload.begin();
    let chunk: UploadLine[] = [];
    try {
      for await (const line of lines) {
        if (chunk.push(line) < batch.chunkSize) continue;
        await upload.take(chunk);
        chunk = [];
      }
      if (chunk.length > 0) await upload.take(chunk);
    } finally {
      await upload.settled();
    }
    await upload.end();
  }
}

interface CheckedLines {
  good: PlacedLine[];
  errors: BatchLineError[];
}

class Upload {
  readonly #store: BatchStore;
  readonly #placer: BatchPlacer;
  readonly #keeper: BatchKeeper;
  readonly #batch: BatchRecord;
  readonly #options: IngestOptions;
  /** Digests of the chunks that are recorded. */
  #recorded: string[] = [];
  #digest: string;
  #taken = 0;
  #placing: Promise<void> = Promise.resolve();
  /** What an upload that died has placed beyond the last recorded chunk may be there already. */
  #mayBeThere: boolean;
  readonly #patience: Patience = { leftMs: PATIENCE_MS };

  constructor(store: BatchStore, placer: BatchPlacer, keeper: BatchKeeper, batch: BatchRecord, options: IngestOptions) {
    this.#store = store;
    this.#placer = placer;
    this.#keeper = keeper;
    this.#batch = batch;
    this.#options = options;
    this.#digest = batch.seedDigest;
    this.#mayBeThere = batch.idempotencyDigest !== undefined;
  }

  async begin(): Promise<void> {
    this.#recorded = await this.#store.digests(this.#batch.batchId);
  }

  async take(lines: UploadLine[]): Promise<void> {
    const hash = createHash("sha256").update(this.#digest);
    for (const { bytes } of lines) hash.update(bytes).update("\n");
    this.#digest = hash.digest("hex");
    const number = this.#taken++;
    if (number < this.#recorded.length) return this.#expectSame(number, this.#digest);
    if (this.#batch.uploadedAt !== null) throw this.#otherLines();
    const checked = await this.#check(lines, number * this.#batch.chunkSize);
    await this.#placing;
    this.#placing = this.#place(number, this.#digest, checked);
    // It is heard when the next chunk comes, or at the end.
    this.#placing.catch(() => {});
  }

  settled(): Promise<void> {
    return this.#placing;
  }

  async end(): Promise<void> {
    if (this.#taken < this.#recorded.length) throw this.#otherLines();
    await this.#store.closeUpload(this.#batch.batchId);
  }

  async #check(lines: UploadLine[], from: number): Promise<CheckedLines> {
    const good: PlacedLine[] = [];
    const errors: BatchLineError[] = [];
    const turns = new EventLoopTurns();
    for (const [i, { line, bytes, read }] of lines.entries()) {
      const index = from + i;
      let value: unknown;
      try {
        value = read();
        const { customId, request } = this.#options.parse(value);
        const kind: JobKind = kindOf(request);
        good.push({ line, index, customId, request, kind, jobId: batchJobId(kind, this.#batch.batchId, index) });
      } catch (error) {
        if (!(error instanceof MathllmError)) throw error;
        errors.push(lineError(line, index, customIdOf(value), error));
      }
      await turns.after(bytes.length);
    }
    return { good, errors };
  }

  async #place(number: number, digest: string, { good, errors }: CheckedLines): Promise<void> {
    const { batchId, chunkSize } = this.#batch;
    const unique = await this.#withoutDuplicates(good, errors);
    const placed = await this.#placer.place(unique, {
      owner: this.#options.owner,
      mayBeThere: this.#mayBeThere,
      patience: this.#patience,
    });
    const from = number * chunkSize;
    const outcome = await this.#store.recordChunk(batchId, number, recordOf(digest, from, unique, errors, placed));
    if (outcome === "recorded") {
      this.#recorded.push(digest);
      this.#mayBeThere = false;
    } else if (outcome === "elsewhere") {
      this.#recorded = await this.#store.digests(batchId);
      this.#expectSame(number, digest);
    } else {
      await this.#keeper.withdraw(unique.map(({ index, jobId, request }) => ({ index, jobId, isVote: request.samples > 1 })));
      const { cancelledAt } = (await this.#store.read(batchId)) ?? { cancelledAt: null };
      throw this.#otherLines(cancelledAt !== null);
    }
  }

  /** The first line with a `custom_id` has it. */
  async #withoutDuplicates(lines: PlacedLine[], errors: BatchLineError[]): Promise<PlacedLine[]> {
    const named = lines.flatMap(({ index, customId }) => (customId === null ? [] : [{ index, customId }]));
    const holders = await this.#store.claimIds(this.#batch.batchId, named);
    const holderOf = new Map(named.map(({ index }, i) => [index, holders[i]!]));
    const isFirst = ({ index }: PlacedLine) => (holderOf.get(index) ?? index) === index;
    for (const line of lines.filter((each) => !isFirst(each))) {
      const detail = `custom_id: expected one that no other line of the batch has; the line with index ${holderOf.get(line.index)} has ${JSON.stringify(line.customId)} too.`;
      errors.push(lineError(line.line, line.index, line.customId, new MathllmError("invalid-request", detail)));
    }
    errors.sort((a, b) => a.index - b.index);
    return lines.filter(isFirst);
  }

  #expectSame(number: number, digest: string): void {
    if (this.#recorded[number] !== digest) throw this.#otherLines();
  }

  #otherLines(isCancelled = this.#batch.cancelledAt !== null): MathllmError {
    const extra = { batchId: this.#batch.batchId };
    return isCancelled
      ? new MathllmError("cancelled", "The batch was cancelled and takes no more lines. Send them as another one.", { extra })
      : new MathllmError(
          "idempotency-conflict",
          "This Idempotency-Key came before with other lines, defaults or metadata. Use a new key for a new batch.",
          { extra },
        );
  }
}

function lineError(line: number, index: number, customId: string | null, { code, message }: MathllmError): BatchLineError {
  return { line, index, custom_id: customId, error: { code, title: ERRORS[code].title, detail: message } };
}

/** The first of these digests: a batch with other defaults or metadata is another one, whatever its lines are. */
export function seedDigest(...parts: unknown[]): string {
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}

/** What a chunk takes of the queues must fit into each of them. */
export function chunkSizeFor(maxDepths: Record<string, number>, maxJobs: number | null): number {
  const fits = Math.min(...Object.values(maxDepths), maxJobs ?? Number.POSITIVE_INFINITY);
  return Math.max(1, Math.min(CHUNK_LINES, Math.floor(fits / CHUNKS_IN_DEPTH)));
}
const CHUNK_LINES = 500;
const CHUNKS_IN_DEPTH = 4;
