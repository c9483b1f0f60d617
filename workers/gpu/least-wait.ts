import { PRIORITY_CLASSES, type Role } from "../../queues/names.ts";
import { exhaustive } from "./exhaustive.ts";
import { effectiveDeadlineMs, lateClass, quantum } from "./ge.ts";
import { planFor } from "./plan-memo.ts";
import {
  assumed,
  type Decision,
  type ModelRates,
  otherOf,
  type PolicySnapshot,
  type QueueSnapshot,
  waitingUpTo,
  workMs,
} from "./policy.ts";

/** A hold is a bet on what comes: nobody has waited for longer than so many swaps when it is given up, so a bet lost costs little more than it could win. */
const HELD_SWAPS = 2;
/** Timers shorter than this are not worth their while. */
const LEAST_ASK_AGAIN_MS = 10;

/**
 * The least mean time in the system that the measured rates allow, with `ge`'s bound on every class's wait.
 *
 *   a job of the other model is late and the quantum served ──► swap, as under `ge`
 *   nothing of the other's waits, or nothing is measured yet ──► as under `exhaustive`
 *   else the plan for these rates (`SwapPlan`) says which of two costs less:
 *     something runs:  pick the next job, or pick nothing more and swap when they have ended
 *     nothing runs:    pick or, without a job, hold on; or swap now
 *
 * What the plan can't know, since to it all jobs are alike, stands above it:
 *   - a model that has only just come serves a job at least, so that whatever was rounded or has changed no swap was for nothing;
 *   - nobody is left behind who would be late when the other's queue is done and his model is back;
 *   - jobs of the other model that are less urgent than the next of the resident's don't count against it, so no drain for batch work keeps
 *     an interactive job waiting;
 *   - nothing is held but what has waited for less than two swaps, and only if the jobs that make the swap worth it are to be expected by then;
 *     interactive jobs are not held at all.
 */
export function leastWait(snapshot: PolicySnapshot): Decision {
  const { resident, queues, running } = snapshot;
  const late = lateClass(snapshot, (name) => quantum(snapshot, name));
  if (late !== null || resident === null) return late ?? exhaustive(snapshot);
  const other = otherOf(resident);
  const own = queues[resident];
  const places = snapshot.rates[resident].slots - running;
  // Nothing can be picked while no place is free, and nothing is to be decided while what runs is all there is.
  if (queues[other].depth === 0 || (running > 0 && (places <= 0 || own.depth === 0))) return exhaustive(snapshot);
  const rates = assumed(snapshot.rates);
  const goesOn = planFor(rates);
  const others = rivals(own, queues[other]);
  if (goesOn === null || others === 0) return exhaustive(snapshot);
  const goOn = goesOn(resident, own.depth, others, running);
  if (own.depth > 0) {
    const backMs = rates[other].swapMs + visitMs(rates[other], queues[other].depth) + rates[resident].swapMs;
    return goOn || snapshot.served === 0 || untilLateMs(snapshot, resident) <= backMs
      ? exhaustive(snapshot)
      : leave(snapshot, resident, other);
  }
  if (!goOn || queues[other].waiting.interactive > 0) return exhaustive(snapshot);
  const swapMs = rates[other].loadMs || rates[other].swapMs;
  const leftMs = HELD_SWAPS * swapMs - waitedMs(snapshot, other);
  // Without the jobs that make the swap worth it a hold only puts it off.
  if (!(leftMs > 0) || goesOn(resident, 0, others + rates[other].arrivalsPerMs * leftMs, 0)) return exhaustive(snapshot);
  return {
    action: "hold",
    reason: `holding on for more of the ${other}'s jobs: ${waiting(queues[other].depth)}, a swap would cost ${(swapMs / 1000).toFixed(1)} s`,
    askAgainMs: Math.max(leftMs, LEAST_ASK_AGAIN_MS),
  };
}

/** Milliseconds that the longest waiting job of this model has waited. */
function waitedMs({ now, queues }: PolicySnapshot, role: Role): number {
  return Math.max(...PRIORITY_CLASSES.map((name) => now - (queues[role].oldest[name] ?? now)));
}

/** How long a visit takes that begins with so many jobs, until none of them nor of those that come meanwhile is left. */
function visitMs(rates: ModelRates, jobs: number): number {
  return workMs(rates, jobs) / Math.max(1 - workMs(rates, rates.arrivalsPerMs), 0);
}

/** Milliseconds until the first of this model's waiting jobs has waited for its class's D; infinite when none waits. */
function untilLateMs({ now, queues, rates, deadlinesMs }: PolicySnapshot, role: Role): number {
  const { oldest } = queues[role];
  return Math.min(
    ...PRIORITY_CLASSES.map((name) =>
      oldest[name] === null ? Number.POSITIVE_INFINITY : oldest[name] + effectiveDeadlineMs(deadlinesMs[name], assumed(rates)) - now,
    ),
  );
}

/** The other model's waiting jobs that count against the resident's next: those that are as urgent. */
function rivals(own: QueueSnapshot, others: QueueSnapshot): number {
  const next = PRIORITY_CLASSES.find((name) => own.waiting[name] > 0);
  return next === undefined ? others.depth : Math.min(waitingUpTo(others, next), others.depth);
}

function leave({ queues, running, rates }: PolicySnapshot, resident: Role, other: Role): Decision {
  const busy = running === 0 ? "nothing runs" : `it uses ${running} of its ${rates[resident].slots} places`;
  return {
    action: "swap",
    to: other,
    reason: `leaving the ${resident} for the ${other}: ${busy}, ${waiting(queues[resident].depth)} for its next turn, at the ${other} ${waiting(queues[other].depth)}`,
  };
}

const waiting = (jobs: number): string => (jobs === 1 ? "1 waits" : `${jobs} wait`);
