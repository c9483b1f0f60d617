import { wilson } from "../../maths/accuracy.ts";
import type { LoadSummary } from "../load/summary.ts";
import type { Proportion, RunRow } from "./schema.ts";

/** What a load run can't know of itself; what wasn't measured may be left out. */
type Rest = Pick<RunRow, "id" | "label" | "role" | "shape" | "settings" | "records"> &
  Partial<Pick<RunRow, "acceptance" | "oomCount" | "swaps" | "swapsPer100Jobs" | "lostJobs">>;

/** A load run as a row of a phase's table. */
export function runRow(summary: LoadSummary, rest: Rest): RunRow {
  const { requests, server } = summary;
  const { completed, sent } = requests;
  const swaps = server?.swaps ?? null;
  return {
    seed: typeof summary.plan.seed === "number" ? summary.plan.seed : null,
    startedAt: Math.round(summary.startedAt),
    durationMs: summary.finishedAt - summary.startedAt,
    requests,
    successRate: sent === 0 ? null : completed / sent,
    errors: summary.errors.slice(0, 50),
    latencies: summary.latencies,
    throughput: summary.throughput,
    slo: summary.slo,
    accuracy: summary.accuracy,
    validity: summary.validity,
    truncation: proportion(requests.truncated, completed),
    cacheHits: proportion(requests.cached, completed),
    acceptance: null,
    oomCount: 0,
    swaps,
    swapsPer100Jobs: swaps === null || completed === 0 ? null : (100 * swaps) / completed,
    lostJobs: null,
    ...rest,
  };
}

/** `hits` of `total` with Wilson's 95 % interval; null of none. */
export function proportion(hits: number, total: number): Proportion | null {
  return total === 0 ? null : { hits, total, share: hits / total, interval: wilson(hits, total) };
}
