import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../../queues/names.ts";

/** What could start now of one model's queue: waiting, prioritised and due jobs; none while the queue is paused or the model can't be loaded. */
export interface QueueSnapshot {
  depth: number;
  /** The same by class. */
  waiting: Record<PriorityClass, number>;
  /** Acceptance of the job that would be picked next in each class, epoch milliseconds; null when the class is empty. */
  oldest: Record<PriorityClass, number | null>;
}

/** What has been measured of one model. */
export interface ModelRates {
  /** λ̂: acceptances a millisecond. */
  arrivalsPerMs: number;
  /** ŝ: milliseconds a job holds its place on the model, slowed by the jobs beside it; 0 before the first. */
  serviceMs: number;
  /** Milliseconds that a job would take with the model to itself; 0 or absent before the first. */
  aloneMs?: number;
  /** a, from 0 to 1: r jobs at once are together r^a times as fast as one; absent or 1 until known. */
  batchExponent?: number;
  /** Ŝ: milliseconds of a swap to this model, drain included; 0 before the first. */
  swapMs: number;
  /** The part of Ŝ in which nothing runs: from the last job's end to the model's ready; 0 or absent before the first. */
  loadMs?: number;
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
  /** Workers of other GPUs on the same queues that have this model resident or are loading it. */
  peers: Record<Role, number>;
  rates: Record<Role, ModelRates>;
  /** D: how long a job of each class may wait, milliseconds. */
  deadlinesMs: Record<PriorityClass, number>;
}

/**
 * `stay`: pick the resident model's next job if there is one, else let the running ones go on.
 * `swap`: pick nothing more, let the running ones end, then load `to`. Asked again at every job boundary, so it may be withdrawn.
 * `idle`: nothing to do.
 */
export type Decision = ({ action: "stay" | "idle"; reason: string } | { action: "swap"; to: Role; reason: string }) & {
  /** Asked again after so many milliseconds even if nothing happens. */
  askAgainMs?: number;
};

/** A pure function of the snapshot. */
export type Policy = (snapshot: PolicySnapshot) => Decision;

export const DEFAULT_DEADLINES_MS: Record<PriorityClass, number> = { interactive: 60_000, normal: 300_000, batch: 3_600_000 };

/** ε: the share of its time that a GPU under full load may lose to swaps. */
const SWAP_SHARE = 0.2;
/** ρ̂ above which the queues are taken to be overloaded. */
const OVERLOAD = 0.95;

export const EMPTY_QUEUE: QueueSnapshot = {
  depth: 0,
  waiting: { interactive: 0, normal: 0, batch: 0 },
  oldest: { interactive: null, normal: null, batch: null },
};

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
 *   in overload (ρ̂ ≥ 0.95, or more waits than can be served within D): K = max(K_hi, ⌈c·Ŝ/(ε·ŝ)⌉, 1);
 *   never below K_even = ⌊c·min(W, D_batch)/ŝ⌋, W being the time that the other queue's jobs of that class and above take on their
 *   model, twice that when what is left of the resident's queue is as late (beyond that D) and takes no longer than W.
 * K_even: late jobs can't be helped by leaving late ones that are done sooner than theirs, so a backlog is served model by model, while a few
 * jobs of the other model (W small) still swap in at D, and jobs that have only just come hold nobody up. No visit is stretched beyond the
 * batch class's D.
 * λ̂, ŝ, c are the resident model's, Ŝ the mean of both directions, ρ̂ = Σ λ̂·ŝ/c over both models. Each D is at least Ŝ(2 + 1/ε).
 */
function ge(snapshot: PolicySnapshot): Decision {
  return lateClass(snapshot, (name) => quantum(snapshot, name)) ?? exhaustive(snapshot);
}

/**
 * Several GPUs on the same queues: work of a model that other workers have resident is theirs, unless they would need longer for it than
 * two swaps take; and of several workers with the same model one leaves it for the model that nobody has.
 */
function besidePeers(policy: Policy): Policy {
  return (snapshot) => {
    const { resident, peers, queues } = snapshot;
    if (peers.student + peers.talker === 0) return policy(snapshot);
    const left = ROLES.filter((role) => role !== resident && queues[role].depth > 0 && isPeersWork(snapshot, role));
    const own = { ...queues, ...Object.fromEntries(left.map((role) => [role, EMPTY_QUEUE])) };
    const decision = spread({ ...snapshot, queues: own }) ?? policy({ ...snapshot, queues: own });
    return left.length === 0
      ? decision
      : { ...decision, reason: `${decision.reason}; the ${left.join("'s and the ")}'s jobs are another GPU's` };
  };
}

function isPeersWork({ peers, rates: measured, queues }: PolicySnapshot, role: Role): boolean {
  const rates = assumed(measured);
  const { depth } = queues[role];
  // Before the first measurement: what their slots can take at once.
  if (rates[role].serviceMs === 0) return depth <= peers[role] * rates[role].slots;
  return peers[role] > 0 && workMs(rates[role], depth) / peers[role] <= 2 * meanSwapMs(rates);
}

function spread(snapshot: PolicySnapshot): Decision | null {
  const { resident, peers, queues, served } = snapshot;
  if (resident === null) return null;
  const other = otherOf(resident);
  if (peers[resident] === 0 || peers[other] > 0 || queues[other].depth === 0) return null;
  if (served < quantum(snapshot, "normal") && queues[resident].depth > 0) return null;
  return { action: "swap", to: other, reason: `other GPUs serve the ${resident} and none the ${other}, which has work` };
}

export const POLICIES = {
  ge: besidePeers(ge),
  exhaustive: besidePeers(exhaustive),
  fifo: besidePeers(fifo),
  "max-wait": besidePeers(maxWait),
} as const satisfies Record<string, Policy>;

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

/** A model that has not been measured yet is taken to be like the other. */
function assumed({ student, talker }: PolicySnapshot["rates"]): PolicySnapshot["rates"] {
  const like = (own: ModelRates, other: ModelRates): ModelRates => ({
    ...own,
    serviceMs: own.serviceMs || other.serviceMs,
    swapMs: own.swapMs || other.swapMs,
  });
  return { student: like(student, talker), talker: like(talker, student) };
}

/** How long so many jobs of a model take on all its slots. */
function workMs({ serviceMs, slots }: ModelRates, jobs: number): number {
  return (jobs * serviceMs) / slots;
}

/** This class and the more urgent ones. */
function classesUpTo(name: PriorityClass): PriorityClass[] {
  return PRIORITY_CLASSES.slice(0, PRIORITY_CLASSES.indexOf(name) + 1);
}

function waitingUpTo({ waiting }: QueueSnapshot, name: PriorityClass): number {
  return classesUpTo(name).reduce((sum, each) => sum + waiting[each], 0);
}

function sumOver(value: (rates: ModelRates, role: Role) => number, rates: PolicySnapshot["rates"]): number {
  return value(rates.student, "student") + value(rates.talker, "talker");
}

function meanSwapMs({ student, talker }: PolicySnapshot["rates"]): number {
  return (student.swapMs + talker.swapMs) / 2;
}

/** The swap that a late job of the other model asks for, once the quantum for its deadline is served. */
function lateClass(snapshot: PolicySnapshot, quantumFor: (name: PriorityClass) => number): Decision | null {
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
