import { PRIORITY_CLASSES, type Role } from "../../queues/names.ts";
import { exhaustive } from "./exhaustive.ts";
import { lateClass, quantum } from "./ge.ts";
import { planFor } from "./plan-memo.ts";
import { assumed, type Decision, otherOf, type PolicySnapshot, type QueueSnapshot, waitingUpTo } from "./policy.ts";

/** While it holds on, it asks again after half a swap: by then rates that nobody adds to have fallen. */
const ASK_AGAIN_SWAPS = 0.5;
const LEAST_ASK_AGAIN_MS = 100;

/**
 * The least mean time in the system that the measured rates allow, with `ge`'s bound on every class's wait.
 *
 *   a job of the other model is late and the quantum served ──► swap, as under `ge`
 *   nothing of the other's waits, or nothing is measured yet ──► as under `exhaustive`
 *   else the plan for these rates (`SwapPlan`) says which of two costs less:
 *     something runs:  pick the next job, or pick nothing more and swap when they have ended
 *     nothing runs:    pick or, without a job, hold on; or swap now
 *
 * Urgency is the guard's business, with two exceptions: jobs of the other model that are less urgent than the next of the resident's don't count
 * against it, so no drain for batch work keeps an interactive job waiting; and while an interactive job waits nothing is held.
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
  if (own.depth > 0) return goOn ? exhaustive(snapshot) : leave(snapshot, resident, other);
  if (!goOn || queues[other].waiting.interactive > 0) return exhaustive(snapshot);
  const swapMs = rates[other].loadMs || rates[other].swapMs;
  return {
    action: "hold",
    reason: `holding on for more of the ${other}'s jobs: ${waiting(queues[other].depth)}, a swap would cost ${(swapMs / 1000).toFixed(1)} s`,
    askAgainMs: Math.max(ASK_AGAIN_SWAPS * swapMs, LEAST_ASK_AGAIN_MS),
  };
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
