import { setTimeout as delay } from "node:timers/promises";
import type { BatchResult } from "../queues/batch-contracts.ts";
import { endedViews, progressOf } from "../queues/batch-jobs.ts";
import { LINE, type LineRecord, type SharedResult } from "../queues/batch-lines.ts";
import type { BatchRecord, BatchStore } from "../queues/batch-store.ts";
import type { JobView } from "../queues/contracts.ts";
import type { Queues } from "../queues/open-queues.ts";
import { type BatchKeeper, lineOf } from "./batch-keeper.ts";

/** So many lines are held in memory at once. */
const PAGE = 100;
const LOOK_MS = 250;

export interface ResultOptions {
  /** The index of the first line. */
  from?: number;
  /** Leave lines out that have not ended. */
  endedOnly?: boolean;
  /** End before the first line that has not ended, after waiting for such lines for so long in all. */
  waitMs?: number;
  signal?: AbortSignal;
}

/**
 * A batch's lines in the order in which they came, without those that were not accepted: what has ended with its result, the others with how
 * they stand, or as `options` say. A page is read when the one before has been taken.
 */
export async function* batchResults(
  { store, keeper, queues }: { store: BatchStore; keeper: BatchKeeper; queues: Queues },
  batchId: string,
  { from = 0, endedOnly = false, waitMs, signal }: ResultOptions = {},
): AsyncGenerator<BatchResult> {
  const until = performance.now() + (waitMs ?? 0);
  for (let next = from; ; ) {
    const known = await keeper.look(batchId);
    if (known === undefined) return;
    const { batch } = known;
    const page = await readPage(store, queues, batch, next);
    for (const { line, isOpen } of page.lines) {
      if (isOpen && waitMs !== undefined) break;
      if (!(isOpen && endedOnly)) yield line;
      next = line.index + 1;
    }
    const stopped = page.lines.some(({ line, isOpen }) => isOpen && line.index >= next);
    if (!stopped) next = page.to;
    const isComplete = !stopped && page.isLast && (batch.uploadedAt !== null || waitMs === undefined);
    if (isComplete || signal?.aborted) return;
    if (stopped || page.isLast) {
      if (performance.now() >= until || keeper.closed) return;
      await delay(LOOK_MS, undefined, { signal }).catch(() => {});
    }
  }
}

interface Page {
  lines: { line: BatchResult; isOpen: boolean }[];
  to: number;
  isLast: boolean;
}

async function readPage(store: BatchStore, queues: Queues, batch: BatchRecord, from: number): Promise<Page> {
  const lines = await store.lines(batch.batchId, from, from + PAGE);
  const { to } = lines;
  if (to === from) return { lines: [], to, isLast: true };
  const { customIds, records, answers } = await store.details(batch, from, to);
  const accepted = Array.from({ length: to - from }, (_, i) => from + i).filter((index) => lines.stateOf(index) !== LINE.invalid);
  const refs = accepted.map((index) => ({ ...lineOf(batch.batchId, lines, index), isOpen: lines.stateOf(index) === LINE.open }));
  const open = refs.filter(({ isOpen }) => isOpen);
  const progress = await progressOf(queues.redis, open);
  const isActive = new Set(open.filter((_, i) => progress[i] === "active").map(({ index }) => index));
  const views = await endedViews(
    queues,
    refs.filter(({ index, isOpen }) => !isOpen && records[index - from] === null).map(({ jobId }) => jobId),
  );
  return {
    to,
    isLast: to - from < PAGE,
    lines: refs.map(({ index, jobId, isOpen }) => {
      const record = records[index - from] ?? null;
      const status = isActive.has(index) ? ("active" as const) : ("waiting" as const);
      const outcome = isOpen
        ? { jobId, status, result: null, error: null }
        : record === null
          ? fromView(jobId, views.get(jobId), lines.stateOf(index))
          : fromRecord(record, answers);
      return { line: { custom_id: customIds[index - from] ?? null, index, ...outcome }, isOpen };
    }),
  };
}

type Outcome = Pick<BatchResult, "jobId" | "status" | "result" | "error">;

function fromRecord({ jobId, status, answer, grade, error }: LineRecord, answers: Map<string, SharedResult>): Outcome {
  const shared = answer === undefined ? undefined : answers.get(answer);
  return { jobId, status, result: shared === undefined ? null : { ...shared, grade: grade ?? null }, error: error ?? null };
}

/** Only somebody who removes jobs by hand can have removed it: the batch keeps them. */
function fromView(jobId: string, view: JobView | undefined, state: string): Outcome {
  if (view !== undefined) return { jobId, status: view.status, result: view.result, error: view.error };
  const status = state === LINE.completed ? "completed" : state === LINE.cancelled ? "cancelled" : "failed";
  const error = { code: "unknown-job", title: "No such job, or it has expired", detail: "The job was removed with its result." };
  return { jobId, status, result: null, error };
}
