import type { BatchResult } from "../../queues/batch-contracts.ts";
import { isBatchId } from "../../queues/batch-ids.ts";
import type { Redis } from "../../queues/connection.ts";
import type { Usage } from "../../queues/contracts.ts";
import { cacheEntryOf, KEY_PREFIX, roleOfJobId } from "../../queues/names.ts";
import type { Batches } from "../batches.ts";
import { Completion } from "./completion.ts";
import { envelopeOf } from "./errors.ts";

const FILE_ID = /^file-(output|errors)-([0-9a-f]{24})$/;
export type OutputKind = "output" | "errors";

export interface OutputFile {
  id: string;
  kind: OutputKind;
  batchId: string;
}

/**
 * The two files of a finished batch, made from its results whenever they are asked for: `output` has the lines that were answered, `errors`
 * those that were not accepted, failed or were cancelled. They live as long as the batch, unless they are deleted.
 */
export class BatchOutput {
  readonly #batches: Batches;
  readonly #redis: Redis;
  readonly #retentionSeconds: number;
  readonly #usageOf: (jobId: string, usage: Usage) => Promise<Usage>;

  constructor(
    batches: Batches,
    redis: Redis,
    options: { retentionSeconds: number; usageOf: (jobId: string, usage: Usage) => Promise<Usage> },
  ) {
    this.#batches = batches;
    this.#redis = redis;
    this.#retentionSeconds = options.retentionSeconds;
    this.#usageOf = options.usageOf;
  }

  /** undefined: the id is not one of such a file, or it was deleted. */
  async find(id: string): Promise<OutputFile | undefined> {
    const [, kind, hex] = FILE_ID.exec(id) ?? [];
    if (hex === undefined || !isBatchId(`batch-${hex}`) || (await this.#redis.exists(deletedKey(id))) === 1) return undefined;
    return { id, kind: kind as OutputKind, batchId: `batch-${hex}` };
  }

  async delete({ id }: OutputFile): Promise<void> {
    await this.#redis.set(deletedKey(id), 1, "EX", this.#retentionSeconds);
  }

  /** One a line, as JSON. */
  async *lines({ batchId, kind }: OutputFile, createdAt: number): AsyncGenerator<string> {
    if (kind === "errors") {
      for await (const { index, custom_id, error } of this.#batches.errors(batchId)) {
        yield lineOf(batchId, index, custom_id, refusal(envelopeOf(error)));
      }
    }
    for await (const result of this.#batches.results(batchId, {})) {
      if ((result.status === "completed") !== (kind === "output")) continue;
      yield lineOf(batchId, result.index, result.custom_id, kind === "output" ? await this.#answer(result, createdAt) : failure(result));
    }
  }

  async bytes(file: OutputFile, createdAt: number): Promise<number> {
    let bytes = 0;
    for await (const line of this.lines(file, createdAt)) bytes += Buffer.byteLength(line) + 1;
    return bytes;
  }

  async #answer({ jobId, result }: BatchResult, createdAt: number): Promise<object> {
    const model = roleOfJobId(jobId) ?? (cacheEntryOf(jobId)?.kind === "talk" ? "talker" : "student");
    const body = new Completion(jobId, { model, priority: "batch" }, createdAt).whole(result!, await this.#usageOf(jobId, result!.usage));
    return { response: { status_code: 200, request_id: jobId, body }, error: null };
  }
}

export function outputFileId(kind: OutputKind, batchId: string): string {
  return `file-${kind}-${batchId.slice("batch-".length)}`;
}

function lineOf(batchId: string, index: number, customId: string | null, outcome: object): string {
  return JSON.stringify({ id: `${batchId}-${index}`, custom_id: customId, ...outcome });
}

function refusal({ status, error }: ReturnType<typeof envelopeOf>, requestId: string | null = null): object {
  return { response: { status_code: status, request_id: requestId, body: { error } }, error: null };
}

/** What did not run has no response. */
function failure({ jobId, error }: BatchResult): object {
  const notRun = { cancelled: "batch_cancelled", "deadline-exceeded": "batch_expired" }[error?.code ?? ""];
  if (notRun !== undefined) return { response: null, error: { code: notRun, message: error!.detail } };
  return refusal(envelopeOf(error ?? { code: "internal-error", title: "", detail: "The job left no result." }), jobId);
}

const deletedKey = (id: string) => `${KEY_PREFIX}:deleted-file:${id}`;
