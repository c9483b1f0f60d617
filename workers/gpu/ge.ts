import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";
import { exhaustive } from "./exhaustive.ts";
import {
  assumed,
  classesUpTo,
  type Decision,
  type ModelRates,
  meanSwapMs,
  otherOf,
  type PolicySnapshot,
  waitingUpTo,
  workMs,
} from "./policy.ts";

/** ε: the share of its time that a GPU under full load may lose to swaps. */
const SWAP_SHARE = 0.2;
/** ρ̂ above which the queues are taken to be overloaded. */
const OVERLOAD = 0.95;

/**
 * Guarded exhaustive, GE(K, D). Exhaustive, unless a job of the other model would come later than its class's D: then, once the
 * resident model has served its quantum K, it swaps. K keeps the queues stable where D alone would thrash:
 *   K_lo = ⌈2·λ̂·Ŝ/(1−ρ̂)⌉ + 1;  K_hi = ⌊c·(D − 2Ŝ − ŝ)/ŝ⌋;  K = min(⌈4·λ̂·Ŝ/(1−ρ̂)⌉, K_hi), never below K_lo;
 *   in overload (ρ̂ ≥ 0.95, or more waits than can be served within D): K = max(K_hi, ⌈c·Ŝ/(ε·ŝ)⌉, 1);
 *   never below K_even = ⌊c·min(W, D_batch)/ŝ⌋, W being the time that the other queue's jobs of that class and above take on their
 *   model, twice that when what is left of the resident's queue is as late (beyond that D) and takes no longer than W.
 * K_even: late jobs can't be helped by leaving late ones that are done sooner than theirs, so a backlog is served model by model, while a few
 * jobs of the other model (W small) still swap in at D, and jobs that have only just come hold nobody up. No visit is stretched beyond the
 * batch class's D.
 * λ̂, ŝ, c are the resident model's, Ŝ the mean of both directions, ρ̂ = Σ λ̂·ŝ/c over both models. Each D is at least Ŝ(2 + 1/ε).
 */
export function ge(snapshot: PolicySnapshot): Decision {
  return lateClass(snapshot, (name) => quantum(snapshot, name)) ?? exhaustive(snapshot);
}

/** Exhaustive, but swaps whenever the other's head is late: once both heads are, every job swaps. For comparison in the simulator only. */
export function maxWait(snapshot: PolicySnapshot): Decision {
  return lateClass(snapshot, () => 1) ?? exhaustive(snapshot);
}

/** D as it is held: shorter than this no policy could keep it without losing more than ε to swaps. */
export function effectiveDeadlineMs(deadlineMs: number, rates: PolicySnapshot["rates"]): number {
  return Math.max(deadlineMs, meanSwapMs(rates) * (2 + 1 / SWAP_SHARE));
}

/** K: how many jobs the resident model serves before a late job of this class of the other model may swap it out. */
export function quantum(
  { now, resident, rates: measured, queues, deadlinesMs }: Pick<PolicySnapshot, "now" | "resident" | "rates" | "queues" | "deadlinesMs">,
  name: PriorityClass,
): number {
  const role = resident ?? "student";
  const rates = assumed(measured);
  const { arrivalsPerMs, serviceMs, slots } = rates[role];
  const swapMs = meanSwapMs(rates);
  if (serviceMs === 0) return 1;
  const deadlineMs = effectiveDeadlineMs(deadlinesMs[name], rates);
  const load = sumOver(({ arrivalsPerMs: rate, serviceMs: service, slots: places }) => (rate * service) / places, rates);
  const backlogMs = sumOver((each, of) => workMs(each, queues[of].depth), rates);
  const other = otherOf(role);
  const othersMs = workMs(rates[other], waitingUpTo(queues[other], name));
  const ownLate = classesUpTo(name).some((each) => now - (queues[role].oldest[each] ?? Number.POSITIVE_INFINITY) >= deadlineMs);
  const visits = ownLate && workMs(rates[role], queues[role].depth) <= othersMs ? 2 : 1;
  const even = Math.floor((slots * Math.min(visits * othersMs, deadlinesMs.batch)) / serviceMs);
  const high = Math.floor((slots * (deadlineMs - 2 * swapMs - serviceMs)) / serviceMs);
  if (load >= OVERLOAD || backlogMs >= deadlineMs) {
    return Math.max(high, Math.ceil((slots * swapMs) / (SWAP_SHARE * serviceMs)), even, 1);
  }
  const arriving = (arrivalsPerMs * swapMs) / (1 - load);
  return Math.max(Math.min(Math.ceil(4 * arriving), high), Math.ceil(2 * arriving) + 1, even);
}

function sumOver(value: (rates: ModelRates, role: Role) => number, rates: PolicySnapshot["rates"]): number {
  return value(rates.student, "student") + value(rates.talker, "talker");
}

/** The swap that a late job of the other model asks for, once the quantum for its deadline is served. */
export function lateClass(snapshot: PolicySnapshot, quantumFor: (name: PriorityClass) => number): Decision | null {
  const { resident, queues, now, served, deadlinesMs } = snapshot;
  const rates = assumed(snapshot.rates);
  if (resident === null) return null;
  const other = otherOf(resident);
  if (queues[other].depth === 0) return null;
  for (const name of PRIORITY_CLASSES) {
    const arrival = queues[other].oldest[name];
    if (arrival === null) continue;
    const deadlineMs = effectiveDeadlineMs(deadlinesMs[name], rates);
    const waitMs = now + rates[other].swapMs + rates[other].serviceMs - arrival;
    if (waitMs >= deadlineMs && served >= quantumFor(name)) {
      const seconds = (ms: number) => (ms / 1000).toFixed(1);
      return {
        action: "swap",
        to: other,
        reason: `the ${other}'s oldest ${name} job would wait ${seconds(waitMs)} s of at most ${seconds(deadlineMs)} s, and the ${resident} has served ${served}`,
      };
    }
  }
  return null;
}
