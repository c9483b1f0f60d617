import type { PriorityClass, Role } from "./names.ts";

/** One model as its jobs see it. Averages are measured; null before the first. */
export interface EstimatedModel {
  /** λ̂: acceptances a millisecond. */
  arrivalsPerMs: number;
  /** ŝ: mean milliseconds of a job on the model. */
  serviceMs: number | null;
  /** Ŝ: mean milliseconds of a swap to this model, drain included. */
  swapMs: number | null;
  /** Jobs at once. */
  slots: number;
  /** Jobs that could start now. */
  depth: number;
  /** Milliseconds that the oldest waiting job of the class in question has waited; 0 when none waits. */
  oldestAgeMs: number;
}

export interface WaitSituation {
  role: Role;
  class: PriorityClass;
  /** Jobs that are picked before this one: of its queue, of its class or a more urgent one. */
  ahead: number;
  models: Record<Role, EstimatedModel>;
  /** The model that is resident or being loaded. */
  resident: Role | null;
  /** It is resident, not only being loaded. */
  ready: boolean;
  /** Milliseconds for which it has been; unknown: guessed. */
  residentMs?: number | null;
  /** Requests on it. */
  running: number;
  /** D of the class, as it is held. */
  deadlineMs: number;
  /** The policy may leave a model before its queue is empty, as `least-wait` does. */
  leavesEarly?: boolean;
}

/** The reckoning ends after so many visits. */
const MAX_VISITS = 20;
/** λ̂ is as old as the meter's memory, so it is believed for so long ahead: half of it after this. */
const ARRIVAL_HALF_LIFE_MS = 300_000;
/** As in the policy: the load that counts as overload, and the share of its time that a full GPU may lose to swaps. */
const OVERLOAD = 0.95;
const SWAP_SHARE = 0.2;

/** One queue as the reckoning goes on. */
interface Queue {
  arrivalsPerMs: number;
  serviceMs: number;
  swapMs: number;
  slots: number;
  depth: number;
  /** How long its oldest job has waited; below 0: how long until there is one. */
  ageMs: number;
}

/**
 * Milliseconds from now until a job with `ahead` jobs before it is picked; null while what it needs has not been measured.
 * A mean-value reckoning of the `ge` policy, or of `least-wait`, visit by visit: a queue grows by λ̂ and shrinks by c/ŝ while its model is resident; a visit ends
 * when the queue is empty, or when the other's oldest job is late and the quantum served; then comes a swap of Ŝ. A model that has not been
 * measured is taken to be like the other. All jobs are taken to be of this class: more urgent ones still to come are not foreseen.
 */
export function estimateWaitMs({
  role,
  ahead,
  models,
  resident,
  ready,
  residentMs,
  running,
  deadlineMs,
  leavesEarly = false,
}: WaitSituation): number | null {
  const otherRole = role === "student" ? "talker" : "student";
  if (resident === role && ready && running + ahead < models[role].slots && models[otherRole].depth === 0) return 0;
  const own = queueOf(models[role], models[otherRole]);
  const other = queueOf(models[otherRole], models[role]);
  if (own === null || other === null) return null;
  // Those ahead may be newer than the look at the queue.
  own.depth = Math.max(own.depth, ahead) + 1;
  own.ageMs = Math.max(own.ageMs, 0);
  let mine = resident === role || (resident === null && (other.depth === 0 || own.ageMs >= other.ageMs));
  let before = ahead;
  let busy = ready ? running : 0;
  // How much of a load is still to come is not known: half of it in the mean.
  let elapsedMs = ready ? 0 : (mine ? own : other).swapMs / (resident === null ? 1 : 2);
  // Without better knowledge the visit has lasted as long as the oldest job has waited that it keeps waiting.
  let visitedMs = ready ? (residentMs ?? Math.max((mine ? other : own).ageMs, 0)) : 0;
  for (let visit = 0; ; visit++) {
    const [here, there] = mine ? [own, other] : [other, own];
    const lateMs = untilLateMs(here, there, deadlineMs, visitedMs, !mine);
    const free = here.slots - busy;
    const pickMs = before < free ? 0 : ((before - free + 1) * own.serviceMs) / own.slots;
    if (mine && (pickMs <= lateMs || visit >= MAX_VISITS)) return Math.round(elapsedMs + pickMs);
    // Ŝ holds the drain, in which the last jobs end.
    const stayMs = mine ? lateMs : Math.min(lateMs, visitMs(here, there, here.depth + busy, leavesEarly));
    const served = (stayMs * here.slots) / here.serviceMs;
    const awayMs = stayMs + there.swapMs;
    if (mine) before = Math.max(before - served, 0);
    here.depth = Math.max(here.depth + here.arrivalsPerMs * awayMs - served, 0);
    here.ageMs = here.depth >= 1 ? Math.min(here.ageMs + awayMs, here.depth / here.arrivalsPerMs) : -1 / here.arrivalsPerMs;
    there.depth += there.arrivalsPerMs * awayMs;
    there.ageMs += awayMs;
    elapsedMs += awayMs;
    visitedMs = 0;
    busy = 0;
    for (const queue of [own, other]) queue.arrivalsPerMs *= 2 ** (-awayMs / ARRIVAL_HALF_LIFE_MS);
    mine = !mine;
  }
}

function queueOf(model: EstimatedModel, like: EstimatedModel): Queue | null {
  const serviceMs = model.serviceMs ?? like.serviceMs;
  const swapMs = model.swapMs ?? like.swapMs;
  if (serviceMs === null || swapMs === null) return null;
  const { arrivalsPerMs, slots, depth, oldestAgeMs } = model;
  return { arrivalsPerMs, serviceMs, swapMs, slots, depth, ageMs: depth > 0 ? oldestAgeMs : -1 / arrivalsPerMs };
}

/**
 * Milliseconds until the other's oldest job is late and the quantum served; the quantum is that of the queues as they will be then. A queue
 * whose jobs will be late by then, too, is finished first; but so near an end of the visit that is as likely to fail, so a job that waits for
 * it (`mayFinish` false) is told the longer wait.
 */
function untilLateMs(here: Queue, there: Queue, deadlineMs: number, visitedMs: number, mayFinish: boolean): number {
  // No job there, and none expected.
  if (there.ageMs === Number.NEGATIVE_INFINITY) return Number.POSITIVE_INFINITY;
  const untilMs = Math.max(deadlineMs - there.ageMs - there.swapMs - there.serviceMs, 0);
  const left = here.depth - (here.slots / here.serviceMs) * untilMs;
  const leftMs = workMs(here, Math.max(left + here.arrivalsPerMs * untilMs, 0));
  const otherMs = workMs(there, there.depth + there.arrivalsPerMs * untilMs);
  const finished = mayFinish && left > 0 && here.ageMs + untilMs >= deadlineMs && leftMs <= otherMs;
  return Math.max(untilMs, quantumMs(here, there, leftMs, otherMs, deadlineMs, finished) - visitedMs);
}

/** How long a visit lasts at least: K of the policy as a time, with so much work left on either side. */
function quantumMs(here: Queue, there: Queue, leftMs: number, otherMs: number, deadlineMs: number, finished: boolean): number {
  const evenMs = finished ? 2 * otherMs : otherMs;
  const load = (here.arrivalsPerMs * here.serviceMs) / here.slots + (there.arrivalsPerMs * there.serviceMs) / there.slots;
  if (load < OVERLOAD && leftMs + otherMs < deadlineMs) return evenMs;
  const swapMs = (here.swapMs + there.swapMs) / 2;
  return Math.max(evenMs, deadlineMs - 2 * swapMs - here.serviceMs, swapMs / SWAP_SHARE);
}

/**
 * How long a visit goes on picking. It ends when nothing is left, the last job's time apart, which Ŝ holds; or, left early, with so many running
 * that the other's jobs would lose more by the wait for an empty model, E, beyond the drain, D, than those that still come here gain: these, λ̂·E,
 * are spared the other's visit and both swaps.
 */
function visitMs(here: Queue, there: Queue, jobs: number, leavesEarly: boolean): number {
  const wholeMs = emptyMs(here, jobs);
  if (!leavesEarly) return Math.max(wholeMs - here.serviceMs, 0);
  let drainMs = 0;
  let leftMs = here.serviceMs;
  for (let k = 1; k < here.slots; k++) {
    drainMs += here.serviceMs / k;
    const untilEmptyMs = emptyMs(here, k);
    const waiting = there.depth + there.arrivalsPerMs * Math.max(wholeMs - untilEmptyMs, 0);
    const awayMs = here.swapMs + there.swapMs + workMs(there, waiting);
    if (waiting * (untilEmptyMs - drainMs) > here.arrivalsPerMs * untilEmptyMs * awayMs) leftMs = untilEmptyMs;
  }
  return Math.max(wholeMs - leftMs, 0);
}

/**
 * Milliseconds until none of `jobs` waiting and running jobs is left, arrivals included: from k jobs to k − 1 it takes
 * h_k = (1 + λ̂·h_(k+1)) / (k/ŝ), and h_c = 1/(c/ŝ − λ̂) as soon as all slots are busy (M/M/c). But what arrives too fast comes in a burst that
 * ends: no more is expected than λ̂ brings within its memory.
 */
function emptyMs(queue: Queue, jobs: number): number {
  const { arrivalsPerMs, serviceMs, slots } = queue;
  let stepMs = 1 / Math.max(slots / serviceMs - arrivalsPerMs, 0);
  let sumMs = jobs > slots ? (jobs - slots) * stepMs : 0;
  for (let k = slots; k > 0; k--) {
    if (k < slots) stepMs = ((1 + arrivalsPerMs * stepMs) * serviceMs) / k;
    if (k <= jobs) sumMs += stepMs;
  }
  return Math.min(sumMs, workMs(queue, jobs + (arrivalsPerMs * ARRIVAL_HALF_LIFE_MS) / Math.LN2));
}

function workMs({ serviceMs, slots }: Queue, jobs: number): number {
  return (jobs * serviceMs) / slots;
}
