import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../../queues/names.ts";
import type { Policy, PolicySnapshot } from "./policy.ts";
import { TrafficMeter } from "./traffic-meter.ts";

/**
 * A discrete-event simulation of one GPU: the policy of the worker, the meter of the worker, no clock and no model.
 * Time goes from event to event: an arrival, a job's end, a model's ready. After each the policy is asked until it has no more to say.
 */

export interface SimulatedJob {
  role: Role;
  class: PriorityClass;
  arrivalMs: number;
  serviceMs: number;
}

export interface SimulationOptions {
  /** By arrival. */
  jobs: SimulatedJob[];
  policy: Policy;
  slots: number;
  /** Milliseconds to load each model, the stop of the other included. */
  swapMs: Record<Role, number>;
  deadlinesMs: Record<PriorityClass, number>;
}

/** Waits are from arrival to pick, milliseconds; percentiles by nearest rank. */
export interface WaitStats {
  jobs: number;
  meanWaitMs: number;
  p50WaitMs: number;
  p95WaitMs: number;
  p99WaitMs: number;
  maxWaitMs: number;
}

export interface SimulationResult extends WaitStats {
  /** Without the very first load. */
  swaps: number;
  swapsPer100Jobs: number;
  /** Σ service / (slots · makespan). */
  gpuBusyShare: number;
  jobsPerSecond: number;
  makespanMs: number;
  /** Σ service / slots + one load for each model needed. */
  lowerBoundMs: number;
  models: Record<Role, WaitStats>;
  classes: Partial<Record<PriorityClass, WaitStats>>;
}

export function simulate({ jobs, policy, slots, swapMs, deadlinesMs }: SimulationOptions): SimulationResult {
  const queues = { student: new ClassQueue(jobs), talker: new ClassQueue(jobs) };
  const meter = new TrafficMeter({ student: slots, talker: slots });
  const waits = new Float64Array(jobs.length);
  const running: { endMs: number; index: number }[] = [];
  let now = 0;
  let arrived = 0;
  let resident: Role | null = null;
  let served = 0;
  let swaps = 0;
  let done = 0;
  let loading: { to: Role; readyMs: number } | null = null;
  let drainStartMs: number | null = null;

  const admit = (): void => {
    for (; arrived < jobs.length && jobs[arrived]!.arrivalMs <= now; arrived++) {
      const { role } = jobs[arrived]!;
      queues[role].add(arrived);
      meter.arrived(role, 1, now);
    }
  };
  const decide = (): void => {
    while (loading === null) {
      const snapshot: PolicySnapshot = {
        now,
        resident,
        running: running.length,
        served,
        queues: { student: queues.student.snapshot(), talker: queues.talker.snapshot() },
        rates: meter.rates(now),
        deadlinesMs,
      };
      const decision = policy(snapshot);
      if (decision.action === "swap") {
        drainStartMs ??= now;
        if (running.length > 0) return;
        loading = { to: decision.to, readyMs: now + swapMs[decision.to] };
        return;
      }
      drainStartMs = null;
      if (resident === null || running.length >= slots || queues[resident].depth === 0) return;
      const index: number = queues[resident].take();
      waits[index] = now - jobs[index]!.arrivalMs;
      served++;
      insert(running, { endMs: now + jobs[index]!.serviceMs, index });
    }
  };

  while (done < jobs.length) {
    admit();
    decide();
    const arrivalMs = jobs[arrived]?.arrivalMs ?? Number.POSITIVE_INFINITY;
    const endMs = running[0]?.endMs ?? Number.POSITIVE_INFINITY;
    const readyMs: number = (loading as { readyMs: number } | null)?.readyMs ?? Number.POSITIVE_INFINITY;
    now = Math.min(arrivalMs, endMs, readyMs);
    if (now === endMs) {
      const { index } = running.shift()!;
      meter.served(jobs[index]!.role, jobs[index]!.serviceMs);
      done++;
    }
    if (now === readyMs) {
      const { to } = loading as unknown as { to: Role };
      if (resident !== null) swaps++;
      meter.swapped(to, now - (drainStartMs ?? now));
      resident = to;
      served = 0;
      loading = null;
      drainStartMs = null;
    }
  }

  const busyMs = jobs.reduce((sum, job) => sum + job.serviceMs, 0);
  const needed = ROLES.filter((role) => jobs.some((job) => job.role === role));
  const statsOf = (keep: (job: SimulatedJob) => boolean) => waitStats(waits.filter((_, index) => keep(jobs[index]!)));
  const present = PRIORITY_CLASSES.filter((name) => jobs.some((job) => job.class === name));
  return {
    ...waitStats(waits),
    swaps,
    swapsPer100Jobs: (100 * swaps) / jobs.length,
    gpuBusyShare: busyMs / (slots * now),
    jobsPerSecond: (1000 * jobs.length) / now,
    makespanMs: now,
    lowerBoundMs: busyMs / slots + needed.reduce((sum, role) => sum + swapMs[role], 0),
    models: { student: statsOf((job) => job.role === "student"), talker: statsOf((job) => job.role === "talker") },
    classes: Object.fromEntries(present.map((name) => [name, statsOf((job) => job.class === name)])),
  };
}

/** One model's queue: by class, then by arrival, as BullMQ picks. */
class ClassQueue {
  depth = 0;
  readonly #jobs: SimulatedJob[];
  readonly #lines = PRIORITY_CLASSES.map((name) => ({ name, indices: [] as number[], head: 0 }));

  constructor(jobs: SimulatedJob[]) {
    this.#jobs = jobs;
  }

  add(index: number): void {
    this.#lines.find((line) => line.name === this.#jobs[index]!.class)!.indices.push(index);
    this.depth++;
  }

  take(): number {
    const line = this.#lines.find((candidate) => candidate.head < candidate.indices.length)!;
    this.depth--;
    return line.indices[line.head++]!;
  }

  snapshot(): PolicySnapshot["queues"]["student"] {
    const arrival = (line: { indices: number[]; head: number }) => this.#jobs[line.indices[line.head] ?? -1]?.arrivalMs ?? null;
    const [interactive, normal, batch] = this.#lines.map(arrival) as [number | null, number | null, number | null];
    return { depth: this.depth, oldest: { interactive, normal, batch } };
  }
}

/** Keeps the running jobs by their end; there are as many as slots, so a linear search is the quickest. */
function insert(running: { endMs: number; index: number }[], job: { endMs: number; index: number }): void {
  const at = running.findIndex((other) => other.endMs > job.endMs);
  running.splice(at < 0 ? running.length : at, 0, job);
}

function waitStats(waits: Float64Array): WaitStats {
  const sorted = waits.toSorted();
  const rank = (p: number) => sorted[Math.max(Math.ceil(p * sorted.length) - 1, 0)] ?? 0;
  return {
    jobs: sorted.length,
    meanWaitMs: sorted.length === 0 ? 0 : sorted.reduce((sum, wait) => sum + wait, 0) / sorted.length,
    p50WaitMs: rank(0.5),
    p95WaitMs: rank(0.95),
    p99WaitMs: rank(0.99),
    maxWaitMs: rank(1),
  };
}
