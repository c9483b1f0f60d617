import { z } from "zod";
import type { BatchLineError } from "./batch-contracts.ts";
import { newBatchId } from "./batch-ids.ts";
import { BatchLines, type Chunk, type LineRecord, linesNeeding, type Settled, type SharedResult } from "./batch-lines.ts";
import { CHUNK_SCRIPT, CLAIM_SCRIPT, SETTLE_SCRIPT } from "./batch-scripts.ts";
import { digestOf } from "./cache-key.ts";
import type { Redis } from "./connection.ts";
import { type PublishedModel, publishedModelSchema } from "./contracts.ts";
import { KEY_PREFIX, keys, ROLES, type Role, roleOfJobId } from "./names.ts";

/**
 * What Redis knows of a batch. Lines are taken in chunks of `chunkSize`, each recorded in one step once its jobs are in their queues:
 *
 *   nothing ──open──► ingesting ──recordChunk …, closeUpload──► uploaded ──no line is open──► finished ──retention──► nothing
 *                          └────────cancel: no chunk is taken any more, what waits is removed────────┘
 *
 * The counts change in the same step as the lines' states do, so they are exact whoever dies. Nothing of a batch expires before it is finished.
 */
const count = z.coerce.number().default(0);
const time = z.coerce.number().nullable().default(null);
const recordSchema = z.object({
  createdAt: z.coerce.number(),
  /** When the last chunk was recorded. */
  touchedAt: z.coerce.number(),
  uploadedAt: time,
  cancelledAt: time,
  finishedAt: time,
  chunkSize: z.coerce.number(),
  seedDigest: z.string(),
  owner: z.string().optional(),
  idempotencyDigest: z.string().optional(),
  metadata: z.string().transform((text) => JSON.parse(text) as Record<string, string>),
  total: count,
  invalid: count,
  completed: count,
  failed: count,
  cancelled: count,
  cached: count,
  coalesced: count,
  equal: count,
  different: count,
  undecided: count,
  /** Picked and not settled, by the last look at the open lines. */
  active: count,
  /** Lines that need the model. */
  student: count,
  talker: count,
});

/** Of a batch, the models that have answered for a role since it was opened. */
export type SeenModel = PublishedModel & { role: Role };
export type BatchRecord = z.infer<typeof recordSchema> & { batchId: string; models: SeenModel[] };
type Models = Partial<Record<Role, PublishedModel>>;

const PARTS = ["states", "kinds", "digests", "custom-ids", "claimed-ids", "errors", "records", "answers"] as const;
/** Fields of the record that hold one model each. */
const MODEL_FIELD = "model:";
const seenModelSchema = publishedModelSchema.extend({ role: z.enum(ROLES) });
const PAGE = 1000;
/** BullMQ's. */
const FINISHED_SETS = ["completed", "failed"];

export class BatchStore {
  readonly #redis: Redis;
  readonly #retentionSeconds: number;

  constructor(redis: Redis, retentionSeconds: number) {
    this.#redis = redis;
    this.#retentionSeconds = retentionSeconds;
  }

  /**
   * A new batch, or the one that was opened under the same `idempotencyDigest`. Whoever dies between the two steps leaves an id whose batch
   * the next one makes.
   */
  async open(
    given: Pick<BatchRecord, "chunkSize" | "seedDigest" | "owner" | "idempotencyDigest" | "metadata"> & { models?: Models },
    now = Date.now(),
  ): Promise<{ batch: BatchRecord; isNew: boolean }> {
    const { idempotencyDigest, owner } = given;
    let batchId = newBatchId();
    if (idempotencyDigest !== undefined) {
      const key = keys.idempotency(idempotencyDigest);
      if ((await this.#redis.set(key, batchId, "NX")) === null) batchId = (await this.#redis.get(key)) ?? batchId;
    }
    const fields = {
      chunkSize: given.chunkSize,
      seedDigest: given.seedDigest,
      metadata: JSON.stringify(given.metadata),
      touchedAt: now,
      ...modelFields(given.models ?? {}),
      ...(owner === undefined ? {} : { owner }),
      ...(idempotencyDigest === undefined ? {} : { idempotencyDigest }),
    };
    const isNew = (await this.#redis.hsetnx(keys.batch(batchId), "createdAt", now)) === 1;
    const known = isNew ? undefined : await this.read(batchId);
    if (known !== undefined) return { batch: known, isNew: false };
    await this.#redis.multi().hset(keys.batch(batchId), fields).zadd(keys.batches, now, batchId).sadd(keys.openBatches, batchId).exec();
    return { batch: (await this.read(batchId))!, isNew: true };
  }

  /** undefined: unknown, expired, or only half made. */
  async read(batchId: string): Promise<BatchRecord | undefined> {
    const fields = await this.#redis.hgetall(keys.batch(batchId));
    const record = recordSchema.safeParse(fields).data;
    const models = Object.entries(fields).flatMap(([name, text]) =>
      name.startsWith(MODEL_FIELD) ? [seenModelSchema.parse(JSON.parse(text))] : [],
    );
    return record && { ...record, batchId, models };
  }

  /** These answer now, and so may have answered lines of a batch that is not finished. */
  async seeModels({ batchId, models: seen }: BatchRecord, models: Models): Promise<void> {
    const fields = modelFields(models);
    const known = new Set(Object.keys(modelFieldsOf(seen)));
    const isNew = Object.keys(fields).some((name) => !known.has(name));
    if (isNew) await this.#redis.hset(keys.batch(batchId), fields);
  }

  /** The digests of the chunks that are recorded, in order. */
  digests(batchId: string): Promise<string[]> {
    return this.#redis.lrange(part(batchId, "digests"), 0, -1);
  }

  /** For each line the index of the first line of this batch that has its `customId`. */
  async claimIds(batchId: string, lines: { index: number; customId: string }[]): Promise<number[]> {
    if (lines.length === 0) return [];
    const args = lines.flatMap(({ index, customId }) => [index, customId]);
    return (await this.#redis.eval(CLAIM_SCRIPT, 1, part(batchId, "claimed-ids"), ...args)) as number[];
  }

  /** `elsewhere`: another upload has recorded it. `closed`: the batch takes no more, since it was cancelled or another upload has ended it. */
  async recordChunk(batchId: string, number: number, chunk: Chunk, now = Date.now()): Promise<"recorded" | "elsewhere" | "closed"> {
    const { states, errors, records, answers } = chunk;
    const verdicts = [...records.values()].flatMap(({ grade }) => (grade === undefined ? [] : [grade.verdict]));
    const counts: Record<string, number> = {
      total: states.length,
      invalid: errors.length,
      cached: chunk.cached,
      coalesced: chunk.coalesced,
    };
    for (const { status } of records.values()) counts[status] = (counts[status] ?? 0) + 1;
    for (const verdict of verdicts) counts[verdict] = (counts[verdict] ?? 0) + 1;
    for (const role of ROLES) counts[role] = linesNeeding(role, chunk.kinds);
    const counted = Object.entries(counts).filter(([, value]) => value > 0);
    const names = ["states", "kinds", "digests", "custom-ids", "errors", "records", "answers"] as const;
    return (await this.#redis.eval(
      CHUNK_SCRIPT,
      names.length + 1,
      keys.batch(batchId),
      ...names.map((name) => part(batchId, name)),
      number,
      chunk.digest,
      states,
      chunk.kinds,
      JSON.stringify(chunk.customIds),
      now,
      counted.length,
      errors.length,
      records.size,
      answers.size,
      ...counted.flat(),
      ...errors.map((error) => JSON.stringify(error)),
      ...[...records].flatMap(([index, record]) => [index, JSON.stringify(record)]),
      ...[...answers].flatMap(([name, result]) => [name, JSON.stringify(result)]),
    )) as "recorded" | "elsewhere" | "closed";
  }

  /** No line comes any more. */
  async closeUpload(batchId: string, now = Date.now()): Promise<void> {
    await this.#redis.hsetnx(keys.batch(batchId), "uploadedAt", now);
    await this.#redis.del(part(batchId, "claimed-ids"));
  }

  async cancel(batchId: string, now = Date.now()): Promise<void> {
    await this.#redis.hsetnx(keys.batch(batchId), "cancelledAt", now);
    await this.closeUpload(batchId, now);
  }

  /** The states and kinds of the lines from `from` to before `to`. */
  async lines(batchId: string, from = 0, to = Number.MAX_SAFE_INTEGER): Promise<BatchLines> {
    const [states, kinds] = await Promise.all([
      this.#redis.getrange(part(batchId, "states"), from, to - 1),
      this.#redis.getrange(part(batchId, "kinds"), from, to - 1),
    ]);
    return new BatchLines(from, states, kinds);
  }

  /** Writes how lines ended, each once; a line that is settled already stays as it is. */
  async settle(batchId: string, lines: Settled[], answers: Map<string, SharedResult> = new Map()): Promise<void> {
    if (answers.size > 0) {
      const pipeline = this.#redis.pipeline();
      for (const [name, result] of answers) pipeline.hsetnx(part(batchId, "answers"), name, JSON.stringify(result));
      for (const [error] of (await pipeline.exec()) ?? []) if (error !== null) throw error;
    }
    if (lines.length === 0) return;
    const args = lines.flatMap(({ index, state, verdict, record, job }) => [
      index,
      state,
      verdict ?? "",
      record === undefined ? "" : JSON.stringify(record),
      job === undefined ? "" : queueKeys(job.jobId),
      job?.jobId ?? "",
      job?.finishedAt ?? 0,
    ]);
    const names = ["states", "records"] as const;
    await this.#redis.eval(SETTLE_SCRIPT, 3, keys.batch(batchId), ...names.map((name) => part(batchId, name)), ...args);
  }

  async setActive(batchId: string, active: number): Promise<void> {
    await this.#redis.hset(keys.batch(batchId), "active", active);
  }

  /** Custom ids and records of the lines from `from` to before `to`. */
  async details(
    { batchId, chunkSize }: BatchRecord,
    from: number,
    to: number,
  ): Promise<{ customIds: (string | null)[]; records: (LineRecord | null)[]; answers: Map<string, SharedResult> }> {
    const chunks = range(Math.floor(from / chunkSize), Math.ceil(to / chunkSize)).map(String);
    const indexes = range(from, to).map(String);
    const [idTexts, recordTexts] = await Promise.all([
      this.#redis.hmget(part(batchId, "custom-ids"), ...chunks),
      this.#redis.hmget(part(batchId, "records"), ...indexes),
    ]);
    const ids = idTexts.flatMap((text) => JSON.parse(text ?? "[]") as (string | null)[]);
    const skipped = from - Number(chunks[0]) * chunkSize;
    const records = recordTexts.map((text) => (text === null ? null : (JSON.parse(text) as LineRecord)));
    const names = [...new Set(records.flatMap((record) => record?.answer ?? []))];
    const results = names.length === 0 ? [] : await this.#redis.hmget(part(batchId, "answers"), ...names);
    const answers = new Map(names.flatMap((name, i) => (results[i] == null ? [] : [[name, JSON.parse(results[i]) as SharedResult]])));
    return { customIds: ids.slice(skipped, skipped + to - from), records, answers };
  }

  /** The lines that were not accepted, in order. */
  async errors(batchId: string, from: number, count: number): Promise<BatchLineError[]> {
    const texts = await this.#redis.lrange(part(batchId, "errors"), from, from + count - 1);
    return texts.map((text) => JSON.parse(text) as BatchLineError);
  }

  /** The place, among the lines that were not accepted, of the first whose index is `from` or above. */
  async firstErrorFrom(batchId: string, from: number): Promise<number> {
    let low = 0;
    let high = from === 0 ? 0 : await this.#redis.llen(part(batchId, "errors"));
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      const [error] = await this.errors(batchId, middle, 1);
      if (error !== undefined && error.index < from) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /**
   * All lines have ended: what is known of the batch expires from now on, its jobs with it. Whoever dies in between leaves it to be finished
   * again, a little later.
   */
  async finish({ batchId, idempotencyDigest }: BatchRecord, jobs: AsyncIterable<string[]>, now = Date.now()): Promise<void> {
    for await (const jobIds of jobs) {
      for (const queue of new Set(jobIds.map(queueKeys))) {
        const scores = jobIds.filter((jobId) => queueKeys(jobId) === queue).flatMap((jobId) => [now, jobId]);
        await Promise.all(FINISHED_SETS.map((set) => this.#redis.zadd(queue + set, "XX", ...scores)));
      }
    }
    const multi = this.#redis.multi().hset(keys.batch(batchId), "finishedAt", now);
    for (const name of [keys.batch(batchId), ...PARTS.map((name) => part(batchId, name))]) multi.expire(name, this.#retentionSeconds);
    if (idempotencyDigest !== undefined) multi.expire(keys.idempotency(idempotencyDigest), this.#retentionSeconds);
    await multi.srem(keys.openBatches, batchId).exec();
  }

  /** Those that are not finished. */
  openIds(): Promise<string[]> {
    return this.#redis.smembers(keys.openBatches);
  }

  /** The latest first; those that have expired are forgotten on the way. */
  async *latest(): AsyncGenerator<BatchRecord> {
    let gone = 0;
    for (let from = 0; ; from += PAGE - gone) {
      const batchIds = await this.#redis.zrange(keys.batches, String(from), String(from + PAGE - 1), "REV");
      gone = 0;
      for (const batchId of batchIds) {
        const batch = await this.read(batchId);
        if (batch !== undefined) yield batch;
        else gone += await this.#redis.zrem(keys.batches, batchId);
      }
      if (batchIds.length < PAGE) return;
    }
  }

  expiresAt({ finishedAt }: BatchRecord): number | null {
    return finishedAt === null ? null : finishedAt + this.#retentionSeconds * 1000;
  }
}

function modelFields(models: Models): Record<string, string> {
  return modelFieldsOf(ROLES.flatMap((role) => (models[role] === undefined ? [] : [{ ...models[role], role }])));
}

function modelFieldsOf(models: SeenModel[]): Record<string, string> {
  return Object.fromEntries(models.map((model) => [`${MODEL_FIELD}${digestOf(seenModelSchema.parse(model))}`, JSON.stringify(model)]));
}

/** What the keys of the job's queue begin with. */
function queueKeys(jobId: string): string {
  return `${KEY_PREFIX}:${roleOfJobId(jobId) ?? "student"}:`;
}

function part(batchId: string, name: (typeof PARTS)[number]): string {
  return `${keys.batch(batchId)}:${name}`;
}

function range(from: number, to: number): number[] {
  return Array.from({ length: Math.max(to - from, 0) }, (_, i) => from + i);
}
