import { judged, type RunRow, type Target } from "../report/schema.ts";

/** The owner's targets, and those that follow from what the product promises. */
export const STUDENT_SINGLE_P95_MS = 1300;
export const STUDENT_BATCH_P95_MS = 1600;
export const TALKER_A_P95_MS = 1200;
export const TALKER_B_P95_MS = 900;
export const SUCCESS_SHARE = 0.99;
export const CACHE_HIT_SHARE = 0.3;
export const CACHED_P95_MS = 600;
export const CACHED_RATE_PER_S = 20;
export const SPECULATION_GAIN = 0.2;

export function p95Target(row: RunRow, thresholdMs: number, name = `${row.label}: p95`): Target {
  const observed = row.latencies.e2eMs?.p95.value ?? null;
  return judged({ name, metric: "E2E p95", runId: row.id, comparison: "at-most", threshold: thresholdMs, observed, unit: "ms" });
}

export function sumTarget(name: string, metric: string, rows: readonly RunRow[], value: (row: RunRow) => number): Target {
  const observed = rows.length === 0 ? null : rows.reduce((sum, row) => sum + value(row), 0);
  return judged({ name, metric, runId: null, comparison: "at-most", threshold: 0, observed, unit: "count" });
}

export const oomTarget = (rows: readonly RunRow[]): Target =>
  sumTarget("No out-of-memory", "out-of-memory events", rows, (row) => row.oomCount);
export const lostTarget = (rows: readonly RunRow[]): Target => sumTarget("No lost job", "lost jobs", rows, (row) => row.lostJobs ?? 0);

export function successTarget(rows: readonly RunRow[]): Target {
  const sent = rows.reduce((sum, { requests }) => sum + requests.sent, 0);
  const completed = rows.reduce((sum, { requests }) => sum + requests.completed, 0);
  return judged({
    name: "Requests succeed",
    metric: "completed of sent",
    runId: null,
    comparison: "at-least",
    threshold: SUCCESS_SHARE,
    observed: sent === 0 ? null : completed / sent,
    unit: "share",
  });
}
