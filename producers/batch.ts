import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { type Accuracy, AccuracyCount } from "../maths/accuracy.ts";
import type { FieldMap } from "../maths/banks.ts";
import type { BatchView } from "../queues/batch-contracts.ts";
import type { SolveRequest } from "../queues/contracts.ts";
import { ERRORS, MathllmError } from "../queues/errors.ts";
import { BatchAttempt } from "./batch-attempt.ts";
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
  /** An earlier run of the same command had begun this batch. */
  | { phase: "going on"; batch: BatchView }
  /** The same, but a model of its has been changed since: its lines are sent as another batch. */
  | { phase: "starting anew"; batch: BatchView }
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
 * Nothing else is remembered but the Idempotency-Key (`BatchAttempt`), so that it can be killed at any point and run again: until the output is
 * whole the same batch is found again and nothing is computed twice, unless a model that may have answered for it has been changed; then all
 * lines are sent anew, and the rest of the old batch is cancelled. What is missing from a whole output is tried anew.
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
    const attempt = open === 0 ? null : await BatchAttempt.open(options.output, digest);
    const batchId = attempt === null ? null : await begin(client, options, attempt, open, onProgress, signal);
    const summary = await collect(client, options, files, batchId, onProgress, signal);
    await attempt?.end();
    return summary;
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

/** The batch of this attempt, whose answers are those of the models that are there now. */
async function begin(
  client: BatchClient,
  options: BatchOptions,
  attempt: BatchAttempt,
  total: number,
  onProgress: (progress: BatchProgress) => void,
  signal: AbortSignal | undefined,
): Promise<string> {
  const batch = await send(client, options, attempt.key, total, onProgress, signal);
  if (!attempt.isEarlier) return batch.batchId;
  if (batch.models.every(({ current }) => current)) {
    onProgress({ phase: "going on", batch });
    return batch.batchId;
  }
  onProgress({ phase: "starting anew", batch });
  await attempt.renew();
  await client.cancel(batch.batchId);
  return (await send(client, options, attempt.key, total, onProgress, signal)).batchId;
}

async function send(
  client: BatchClient,
  options: BatchOptions,
  key: string,
  total: number,
  onProgress: (progress: BatchProgress) => void,
  signal: AbortSignal | undefined,
): Promise<BatchView> {
  const absence = new Absence(signal);
  for (;;) {
    try {
      const outcome = await client.upload(uploadLines(options, total, onProgress), key, options.defaults);
      if ("batch" in outcome) return outcome.batch;
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
