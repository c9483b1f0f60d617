import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";

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
 * `hold`: the other model has work, but it is not worth the swap yet: keep the resident one and wait for what comes.
 * `idle`: nothing to do.
 */
export type Decision = ({ action: "stay" | "hold" | "idle"; reason: string } | { action: "swap"; to: Role; reason: string }) & {
  /** Asked again after so many milliseconds even if nothing happens. */
  askAgainMs?: number;
};

/** A pure function of the snapshot. */
export type Policy = (snapshot: PolicySnapshot) => Decision;

export const DEFAULT_DEADLINES_MS: Record<PriorityClass, number> = { interactive: 60_000, normal: 300_000, batch: 3_600_000 };

export const EMPTY_QUEUE: QueueSnapshot = {
  depth: 0,
  waiting: { interactive: 0, normal: 0, batch: 0 },
  oldest: { interactive: null, normal: null, batch: null },
};

export const otherOf = (role: Role): Role => (role === "student" ? "talker" : "student");

/** This class and the more urgent ones. */
export function classesUpTo(name: PriorityClass): PriorityClass[] {
  return PRIORITY_CLASSES.slice(0, PRIORITY_CLASSES.indexOf(name) + 1);
}

export function waitingUpTo({ waiting }: QueueSnapshot, name: PriorityClass): number {
  return classesUpTo(name).reduce((sum, each) => sum + waiting[each], 0);
}

/** A model that has not been measured yet is taken to be like the other. */
export function assumed({ student, talker }: PolicySnapshot["rates"]): PolicySnapshot["rates"] {
  const like = (own: ModelRates, other: ModelRates): ModelRates => ({
    ...own,
    serviceMs: own.serviceMs || other.serviceMs,
    aloneMs: own.aloneMs || other.aloneMs,
    swapMs: own.swapMs || other.swapMs,
    loadMs: own.loadMs || other.loadMs,
  });
  return { student: like(student, talker), talker: like(talker, student) };
}

/** How long so many jobs of a model take on all its slots. */
export function workMs({ serviceMs, slots }: ModelRates, jobs: number): number {
  return (jobs * serviceMs) / slots;
}

export function meanSwapMs({ student, talker }: PolicySnapshot["rates"]): number {
  return (student.swapMs + talker.swapMs) / 2;
}
