import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { type Accuracy, AccuracyCount } from "../maths/accuracy.ts";
import type { FieldMap } from "../maths/banks.ts";
import type { BatchView } from "../queues/batch-contracts.ts";
import type { SolveRequest } from "../queues/contracts.ts";
import { ERRORS, MathllmError } from "../queues/errors.ts";
import { BatchClient } from "./batch-client.ts";
import { type InputFiles, inputLines } from "./batch-input.ts";
import { Absence, type LineOutcome, lineOutcomes } from "./batch-outcomes.ts";
import { OutputFile, type OutputLine } from "./batch-output.ts";
import type { ApiClient } from "./submit.ts";

export interface BatchOptions {
  /** JSONL or CSV: a bank of a usual shape, or requests of `POST /solve` with a `custom_id`. */
  file: string;
  output: string;
  map?: FieldMap;
  /** For lines that don't say otherwise. */
  defaults: Partial<Omit<SolveRequest, "sampling">> & { sampling?: Partial<SolveRequest["sampling"]> };
}

export type BatchProgress =
  | { phase: "sending"; sent: number; total: number }
  /** The queue is full. */
  | { phase: "waiting for room"; seconds: number; detail: string }
  | { phase: "running"; batch: BatchView };

export interface BatchSummary {
  /** Of the last batch; null when nothing was missing. */
  batchId: string | null;
  lines: number;
  completed: number;
  /** Of the completed ones, those that an earlier run had completed. */
  before: number;
  cached: number;
  coalesced: number;
  truncated: number;
  /** Failed, cancelled or not accepted; they stand in `errorsFile`. */
  failed: number;
  errorsFile: string | null;
  /** Over all completed lines whose answer is known; null without one. */
  accuracy: Accuracy | null;
}

const SENT_EVERY = 500;

export function errorsFileOf(output: string): string {
  return `${output}.errors.jsonl`;
}

/**
 * Has the lines of a file solved that its output does not have yet, and writes both together anew:
 *
 *   output, errors of earlier runs ──► which lines are missing ──► POST /batches ──► results ──► output.part ──► output
 *
 * Nothing else is remembered, so that it can be killed at any point and run again. The Idempotency-Key is the digest of what is sent and of
 * the earlier errors, which change only when a run is complete: until then the same batch is found again and nothing is computed twice; after
 * it, what had failed is tried anew.
 */
export async function runBatch(
  api: ApiClient,
  options: BatchOptions,
  onProgress: (progress: BatchProgress) => void,
  signal?: AbortSignal,
): Promise<BatchSummary> {
  const client = new BatchClient(api, signal);
  const { digest, open } = await missing(options);
  // One that isn't there from the beginning is not waited for.
  if (open > 0) await api.request("/healthz", { signal });
  const files = { completed: await OutputFile.open(options.output), failed: await OutputFile.open(errorsFileOf(options.output)) };
  try {
    const batchId = open === 0 ? null : await send(client, options, digest, open, onProgress, signal);
    return await collect(client, options, files, batchId, onProgress, signal);
  } finally {
    files.completed.close();
    files.failed.close();
  }
}

async function missing(options: BatchOptions): Promise<{ digest: string; open: number }> {
  const hash = createHash("sha256").update(await fileDigest(errorsFileOf(options.output)));
  let open = 0;
  for await (const line of inputLines(options)) {
    if (line.kind !== "open") continue;
    hash.update(line.text).update("\n");
    open++;
  }
  return { digest: hash.update(JSON.stringify(options.defaults)).digest("hex"), open };
}

/** Empty when there is no such file. */
async function fileDigest(file: string): Promise<string> {
  const hash = createHash("sha256");
  try {
    for await (const bytes of createReadStream(file)) hash.update(bytes);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "";
    throw error;
  }
  return hash.digest("hex");
}

async function send(
  client: BatchClient,
  options: BatchOptions,
  digest: string,
  total: number,
  onProgress: (progress: BatchProgress) => void,
  signal: AbortSignal | undefined,
): Promise<string> {
  const absence = new Absence(signal);
  for (;;) {
    try {
      const outcome = await client.upload(uploadLines(options, total, onProgress), `mathllm-batch-${digest}`, options.defaults);
      if ("batch" in outcome) return outcome.batch.batchId;
      absence.over();
      onProgress({ phase: "waiting for room", seconds: outcome.retryAfterSeconds, detail: outcome.detail });
      await delay(outcome.retryAfterSeconds * 1000, undefined, { signal });
    } catch (error) {
      await absence.wait(error);
    }
  }
}

async function* uploadLines(files: InputFiles, total: number, onProgress: (progress: BatchProgress) => void): AsyncGenerator<string> {
  let sent = 0;
  let held: string[] = [];
  for await (const line of inputLines(files)) {
    if (line.kind !== "open") continue;
    if (held.push(`${line.text}\n`) < SENT_EVERY) continue;
    sent += held.length;
    yield held.join("");
    held = [];
    onProgress({ phase: "sending", sent, total });
  }
  yield held.join("");
  onProgress({ phase: "sending", sent: total, total });
}

async function collect(
  client: BatchClient,
  options: BatchOptions,
  { completed, failed }: { completed: OutputFile; failed: OutputFile },
  batchId: string | null,
  onProgress: (progress: BatchProgress) => void,
  signal: AbortSignal | undefined,
): Promise<BatchSummary> {
  const tally = new Tally();
  const onView = (batch: BatchView) => onProgress({ phase: "running", batch });
  const ends = batchId === null ? null : lineOutcomes(client, batchId, onView, signal);
  try {
    for await (const input of inputLines(options)) {
      const { line } = input;
      if (input.kind === "done") {
        tally.add(input.done, true);
        await completed.write(input.done);
        continue;
      }
      const ended = input.kind === "bad" ? badLine(line, input.detail) : endedLine(line, input.customId, await nextOf(ends));
      tally.add(ended, false);
      await (ended.status === "completed" ? completed : failed).write(ended);
    }
    await completed.finish();
    await failed.finish({ removed: true });
  } finally {
    await ends?.return(undefined);
  }
  return tally.summary(batchId, failed.count === 0 ? null : errorsFileOf(options.output));
}

async function nextOf<T>(items: AsyncGenerator<T> | null): Promise<T> {
  const next = await items?.next();
  if (next === undefined || next.done === true) throw changed();
  return next.value;
}

function endedLine(line: number, customId: string, outcome: LineOutcome): OutputLine {
  if ("refused" in outcome) {
    return { custom_id: customId, line, jobId: null, status: "failed", result: null, error: outcome.refused.error };
  }
  const { custom_id, jobId, status, result, error } = outcome.result;
  if (custom_id !== customId) throw changed();
  return { custom_id, line, jobId, status, result, error };
}

function changed(): MathllmError {
  return new MathllmError(
    "invalid-request",
    "Expected the input and the output to stay as they are during a run; one was changed. Run it again.",
  );
}

function badLine(line: number, detail: string): OutputLine {
  const code = "invalid-request";
  return { custom_id: null, line, jobId: null, status: "failed", result: null, error: { code, title: ERRORS[code].title, detail } };
}

class Tally {
  readonly #counts = { lines: 0, completed: 0, before: 0, cached: 0, coalesced: 0, truncated: 0, failed: 0 };
  readonly #accuracy = new AccuracyCount();

  add({ status, result }: OutputLine, isBefore: boolean): void {
    const counts = this.#counts;
    counts.lines++;
    if (status !== "completed") counts.failed++;
    else counts.completed++;
    if (isBefore) counts.before++;
    if (result?.cached) counts.cached++;
    if (result?.coalesced) counts.coalesced++;
    if (result?.truncated) counts.truncated++;
    if (result?.grade) this.#accuracy.add(result.grade.verdict);
  }

  summary(batchId: string | null, errorsFile: string | null): BatchSummary {
    const accuracy = this.#accuracy.summary();
    return { batchId, ...this.#counts, errorsFile, accuracy: accuracy.graded === 0 ? null : accuracy };
  }
}
