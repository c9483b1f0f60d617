import { type Arrival, arrivals, recordedArrivals } from "./arrivals.ts";
import type { LoadPlan } from "./load-options.ts";
import type { Phase } from "./record.ts";

/** An open loop's arrivals with their end, and the phases of a run. Offsets are milliseconds from the beginning of the plan. */
export interface Schedule {
  /** A fresh pass over all of it; null: a closed loop has none. */
  arrivals: (() => Iterable<Arrival>) | null;
  /** null: unknown until it is reached (a closed loop with a number of requests). */
  endMs: number | null;
  /** null: a closed loop that ends by its duration. */
  count: number | null;
  steadyFromMs: number;
  steadyToMs: number;
}

export async function scheduleOf(plan: LoadPlan): Promise<Schedule> {
  const open = await openSchedule(plan);
  const endMs = open?.endMs ?? (plan.durationS === undefined ? null : plan.durationS * 1000);
  return {
    arrivals: open?.arrivals ?? null,
    endMs,
    count: open?.count ?? plan.requests ?? null,
    steadyFromMs: plan.warmUpS * 1000,
    steadyToMs: endMs === null ? Number.POSITIVE_INFINITY : endMs - plan.coolDownS * 1000,
  };
}

export function phaseAt(offsetMs: number, { steadyFromMs, steadyToMs }: Schedule): Phase {
  return offsetMs < steadyFromMs ? "warm-up" : offsetMs < steadyToMs ? "steady" : "cool-down";
}

async function openSchedule(plan: LoadPlan): Promise<{ arrivals: () => Iterable<Arrival>; endMs: number; count: number } | null> {
  const { arrivals: options, durationS, requests, seed } = plan;
  if (options.pattern === "closed") return null;
  const trace = options.pattern === "replay" ? await recordedArrivals(options.file) : null;
  const limitMs = durationS === undefined ? Number.POSITIVE_INFINITY : durationS * 1000;
  const pass = function* (): Generator<Arrival, void, void> {
    let count = 0;
    const all = trace ?? arrivals(options as Exclude<typeof options, { pattern: "replay" }>, seed, durationS);
    for (const arrival of all) {
      if (arrival.offsetMs >= limitMs || count === requests) return;
      count++;
      yield arrival;
    }
  };
  let count = 0;
  let lastMs = 0;
  for (const { offsetMs } of pass()) {
    count++;
    lastMs = offsetMs;
  }
  // A number of requests takes as long as their mean gap times their number.
  const endMs = durationS === undefined ? (count > 1 ? (lastMs * count) / (count - 1) : lastMs + 1) : limitMs;
  return { arrivals: pass, endMs, count };
}
