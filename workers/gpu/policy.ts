import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";

/** What could start now of one model's queue: waiting, prioritised and due jobs; none while the queue is paused or the model can't be loaded. */
export interface QueueSnapshot {
  depth: number;
  /** Acceptance of the job that would be picked next in each class, epoch milliseconds; null when the class is empty. */
  oldest: Record<PriorityClass, number | null>;
}

/** What has been measured of one model. */
export interface ModelRates {
  /** λ̂: acceptances a millisecond. */
  arrivalsPerMs: number;
  /** ŝ: milliseconds a job holds its place on the model; 0 before the first. */
  serviceMs: number;
  /** Ŝ: milliseconds of a swap to this model, drain included; 0 before the first. */
  swapMs: number;
  /** c: jobs at once. */
  slots: number;
}

export interface PolicySnapshot {
  now: number;
  resident: Role | null;
  /** Requests on the resident model. */
  running: number;
  /** Jobs picked since the resident model was loaded. */
  served: number;
  queues: Record<Role, QueueSnapshot>;
  rates: Record<Role, ModelRates>;
  /** D: how long a job of each class may wait, milliseconds. */
  deadlinesMs: Record<PriorityClass, number>;
}

/**
 * `stay`: pick the resident model's next job if there is one, else let the running ones go on.
 * `swap`: pick nothing more, let the running ones end, then load `to`. Asked again at every job boundary, so it may be withdrawn.
 * `idle`: nothing to do.
 */
export type Decision = { action: "stay" | "idle"; reason: string } | { action: "swap"; to: Role; reason: string };

/** A pure function of the snapshot. */
export type Policy = (snapshot: PolicySnapshot) => Decision;

export const DEFAULT_DEADLINES_MS: Record<PriorityClass, number> = { interactive: 60_000, normal: 300_000, batch: 3_600_000 };

/** ε: the share of its time that a GPU under full load may lose to swaps. */
const SWAP_SHARE = 0.2;
/** ρ̂ above which the queues are taken to be overloaded. */
const OVERLOAD = 0.95;

const otherOf = (role: Role): Role => (role === "student" ? "talker" : "student");

function oldestOf(queue: QueueSnapshot): number {
  return Math.min(...PRIORITY_CLASSES.map((name) => queue.oldest[name] ?? Number.POSITIVE_INFINITY));
}

/** Both queues' work is considered only when no model is resident: the model of the oldest job is loaded. */
function firstLoad({ queues }: PolicySnapshot): Decision {
  const { student, talker } = queues;
  if (student.depth === 0 && talker.depth === 0) return { action: "idle", reason: "both queues are empty" };
  const studentFirst = student.depth > 0 && (talker.depth === 0 || oldestOf(student) <= oldestOf(talker));
  const to = studentFirst ? "student" : "talker";
  return { action: "swap", to, reason: `no model is resident and the oldest job is the ${to}'s` };
}

/** Serves the resident model until its queue is empty: the fewest swaps for a backlog, but the other queue may wait without a bound. */
function exhaustive(snapshot: PolicySnapshot): Decision {
  const { resident, queues, running } = snapshot;
  if (resident === null) return firstLoad(snapshot);
  const other = otherOf(resident);
  if (queues[resident].depth > 0) return { action: "stay", reason: `the ${resident} is resident and has work` };
  if (queues[other].depth > 0) return { action: "swap", to: other, reason: `the ${resident}'s queue is empty and the ${other} has work` };
  return running > 0
    ? { action: "stay", reason: `the ${resident}'s jobs run, nothing waits` }
    : { action: "idle", reason: "both queues are empty" };
}

/** Strict arrival order over both queues: fair, and a swap at nearly every job of a mixed stream. */
function fifo(snapshot: PolicySnapshot): Decision {
  const { resident, queues } = snapshot;
  if (resident === null) return firstLoad(snapshot);
  const other = otherOf(resident);
  const own = queues[resident].depth > 0 ? oldestOf(queues[resident]) : Number.POSITIVE_INFINITY;
  const others = queues[other].depth > 0 ? oldestOf(queues[other]) : Number.POSITIVE_INFINITY;
  return others < own ? { action: "swap", to: other, reason: `the oldest job is the ${other}'s` } : exhaustive(snapshot);
}

/** Exhaustive, but swaps whenever the other's head is late: once both heads are, every job swaps. For comparison in the simulator only. */
function maxWait(snapshot: PolicySnapshot): Decision {
  return lateClass(snapshot, () => 1) ?? exhaustive(snapshot);
}

/**
 * Guarded exhaustive, GE(K, D). Exhaustive, unless a job of the other model would come later than its class's D: then, once the
 * resident model has served its quantum K, it swaps. K keeps the queues stable where D alone would thrash:
 *   K_lo = ⌈2·λ̂·Ŝ/(1−ρ̂)⌉ + 1;  K_hi = ⌊c·(D − 2Ŝ − ŝ)/ŝ⌋;  K = min(⌈4·λ̂·Ŝ/(1−ρ̂)⌉, K_hi), never below K_lo;
 *   in overload (ρ̂ ≥ 0.95, or more waits than can be served within D): K = max(K_hi, ⌈c·Ŝ/(ε·ŝ)⌉).
 * λ̂, ŝ, c are the resident model's, Ŝ the mean of both directions, ρ̂ = Σ λ̂·ŝ/c over both models. Each D is at least Ŝ(2 + 1/ε).
 */
function ge(snapshot: PolicySnapshot): Decision {
  return lateClass(snapshot, (deadlineMs) => quantum(snapshot, deadlineMs)) ?? exhaustive(snapshot);
}

export const POLICIES = { ge, exhaustive, fifo, "max-wait": maxWait } as const satisfies Record<string, Policy>;

/** D as it is held: shorter than this no policy could keep it without losing more than ε to swaps. */
export function effectiveDeadlineMs(deadlineMs: number, rates: PolicySnapshot["rates"]): number {
  return Math.max(deadlineMs, meanSwapMs(rates) * (2 + 1 / SWAP_SHARE));
}

/** K: how many jobs the resident model serves before a late job of the other may swap it out. */
export function quantum({ resident, rates, queues }: Pick<PolicySnapshot, "resident" | "rates" | "queues">, deadlineMs: number): number {
  const { arrivalsPerMs, serviceMs, slots } = rates[resident ?? "student"];
  const swapMs = meanSwapMs(rates);
  if (serviceMs === 0) return 1;
  const load = sumOver(({ arrivalsPerMs: rate, serviceMs: service, slots: places }) => (rate * service) / places, rates);
  const backlogMs = sumOver((each, role) => (queues[role].depth * each.serviceMs) / each.slots, rates);
  const high = Math.floor((slots * (deadlineMs - 2 * swapMs - serviceMs)) / serviceMs);
  if (load >= OVERLOAD || backlogMs >= deadlineMs) return Math.max(high, Math.ceil((slots * swapMs) / (SWAP_SHARE * serviceMs)));
  const arriving = (arrivalsPerMs * swapMs) / (1 - load);
  return Math.max(Math.min(Math.ceil(4 * arriving), high), Math.ceil(2 * arriving) + 1);
}

function sumOver(value: (rates: ModelRates, role: Role) => number, rates: PolicySnapshot["rates"]): number {
  return value(rates.student, "student") + value(rates.talker, "talker");
}

function meanSwapMs({ student, talker }: PolicySnapshot["rates"]): number {
  return (student.swapMs + talker.swapMs) / 2;
}

/** The swap that a late job of the other model asks for, once the quantum for its deadline is served. */
function lateClass(snapshot: PolicySnapshot, quantumFor: (deadlineMs: number) => number): Decision | null {
  const { resident, queues, rates, now, served, deadlinesMs } = snapshot;
  if (resident === null) return null;
  const other = otherOf(resident);
  if (queues[other].depth === 0) return null;
  for (const name of PRIORITY_CLASSES) {
    const arrival = queues[other].oldest[name];
    if (arrival === null) continue;
    const deadlineMs = effectiveDeadlineMs(deadlinesMs[name], rates);
    const waitMs = now + rates[other].swapMs + rates[other].serviceMs - arrival;
    if (waitMs >= deadlineMs && served >= quantumFor(deadlineMs)) {
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
