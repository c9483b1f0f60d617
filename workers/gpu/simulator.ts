import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../../queues/names.ts";
import { type EstimatedModel, estimateWaitMs } from "../../queues/wait-estimate.ts";
import { AgeingTurn } from "./ageing.ts";
import { effectiveDeadlineMs, type Policy, type PolicySnapshot } from "./policy.ts";
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
  /** Turns away an interactive or normal job whose estimated wait is beyond its class's D, as the API does; `batch` is bounded by depth alone. */
  admission?: boolean;
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

/** The wait estimated on arrival less the actual one, of the accepted jobs that had an estimate; percentiles by nearest rank. */
export interface EstimateError {
  jobs: number;
  meanAbsMs: number;
  p50AbsMs: number;
  p95AbsMs: number;
  /** Above 0: waits were estimated too long. */
  meanMs: number;
}

/** All but `shed` is of the accepted jobs. */
export interface SimulationResult extends WaitStats {
  /** Jobs that admission turned away. */
  shed: number;
  /** null: no accepted job had an estimate. */
  estimateError: EstimateError | null;
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

export function simulate({ jobs, policy, slots, swapMs, deadlinesMs, admission = false }: SimulationOptions): SimulationResult {
  const queues = { student: new ClassQueue(jobs), talker: new ClassQueue(jobs) };
  const ageing = { student: new AgeingTurn(), talker: new AgeingTurn() };
  const meter = new TrafficMeter({ student: slots, talker: slots });
  /** NaN: turned away. */
  const waits = new Float64Array(jobs.length).fill(Number.NaN);
  /** NaN: nothing measured yet to estimate from. */
  const estimates = new Float64Array(jobs.length).fill(Number.NaN);
  const running: { endMs: number; index: number }[] = [];
  let now = 0;
  let makespanMs = 0;
  let arrived = 0;
  let resident: Role | null = null;
  let readyAtMs = 0;
  let served = 0;
  let swaps = 0;
  let done = 0;
  let shed = 0;
  let loading: { to: Role; readyMs: number } | null = null;
  let drainStartMs: number | null = null;

  const estimate = ({ role, class: name }: SimulatedJob): { waitMs: number | null; deadlineMs: number } => {
    const rates = meter.rates(now);
    const deadlineMs = effectiveDeadlineMs(deadlinesMs[name], rates);
    const model = (of: Role): EstimatedModel => {
      const oldest = queues[of].oldest(name);
      return {
        arrivalsPerMs: rates[of].arrivalsPerMs,
        serviceMs: meter.serviceMs(of),
        swapMs: meter.swapMs(of),
        slots,
        depth: queues[of].depth,
        oldestAgeMs: oldest === null ? 0 : now - oldest,
      };
    };
    const waitMs = estimateWaitMs({
      role,
      class: name,
      ahead: queues[role].waitingUpTo(name),
      models: { student: model("student"), talker: model("talker") },
      resident: loading?.to ?? resident,
      ready: loading === null,
      residentMs: now - readyAtMs,
      running: running.length,
      deadlineMs,
    });
    return { waitMs, deadlineMs };
  };
  const admit = (): void => {
    for (; arrived < jobs.length && jobs[arrived]!.arrivalMs <= now; arrived++) {
      const { role, class: name } = jobs[arrived]!;
      const { waitMs, deadlineMs } = estimate(jobs[arrived]!);
      if (admission && name !== "batch" && waitMs !== null && waitMs > deadlineMs) {
        shed++;
        continue;
      }
      if (waitMs !== null) estimates[arrived] = waitMs;
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
        peers: { student: 0, talker: 0 },
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
      const late: PriorityClass | null = ageing[resident].next(snapshot.queues[resident].oldest, now, deadlinesMs);
      const index: number = queues[resident].take(late);
      waits[index] = now - jobs[index]!.arrivalMs;
      served++;
      insert(running, { endMs: now + jobs[index]!.serviceMs, index });
    }
  };

  for (;;) {
    admit();
    if (done + shed === jobs.length) break;
    decide();
    const arrivalMs = jobs[arrived]?.arrivalMs ?? Number.POSITIVE_INFINITY;
    const endMs = running[0]?.endMs ?? Number.POSITIVE_INFINITY;
    const readyMs: number = (loading as { readyMs: number } | null)?.readyMs ?? Number.POSITIVE_INFINITY;
    now = Math.min(arrivalMs, endMs, readyMs);
    if (now === endMs) {
      const { index } = running.shift()!;
      meter.served(jobs[index]!.role, jobs[index]!.serviceMs);
      done++;
      makespanMs = now;
    }
    if (now === readyMs) {
      const { to } = loading as unknown as { to: Role };
      if (resident !== null) swaps++;
      meter.swapped(to, now - (drainStartMs ?? now));
      resident = to;
      readyAtMs = now;
      served = 0;
      loading = null;
      drainStartMs = null;
    }
  }

  const accepted = jobs.filter((_, index) => !Number.isNaN(waits[index]));
  const acceptedWaits = waits.filter((wait) => !Number.isNaN(wait));
  const busyMs = accepted.reduce((sum, job) => sum + job.serviceMs, 0);
  const needed = ROLES.filter((role) => accepted.some((job) => job.role === role));
  const statsOf = (keep: (job: SimulatedJob) => boolean) => waitStats(acceptedWaits.filter((_, index) => keep(accepted[index]!)));
  const present = PRIORITY_CLASSES.filter((name) => accepted.some((job) => job.class === name));
  return {
    ...waitStats(acceptedWaits),
    shed,
    estimateError: estimateError(estimates.map((estimateMs, index) => estimateMs - waits[index]!).filter((error) => !Number.isNaN(error))),
    swaps,
    swapsPer100Jobs: (100 * swaps) / accepted.length,
    gpuBusyShare: busyMs / (slots * makespanMs),
    jobsPerSecond: (1000 * accepted.length) / makespanMs,
    makespanMs,
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

  /** The next job by class and arrival, or the oldest of the class whose turn it is. */
  take(late: PriorityClass | null): number {
    const line = this.#lines.find((candidate) => (late === null ? candidate.head < candidate.indices.length : candidate.name === late))!;
    this.depth--;
    return line.indices[line.head++]!;
  }

  /** Acceptance of the oldest waiting job of this class; null when none waits. */
  oldest(name: PriorityClass): number | null {
    return this.#oldestIn(this.#lines[PRIORITY_CLASSES.indexOf(name)]!);
  }

  /** Waiting jobs of this class and the more urgent ones. */
  waitingUpTo(name: PriorityClass): number {
    return this.#lines.slice(0, PRIORITY_CLASSES.indexOf(name) + 1).reduce((sum, { indices, head }) => sum + indices.length - head, 0);
  }

  snapshot(): PolicySnapshot["queues"]["student"] {
    const [interactive, normal, batch] = this.#lines.map((line) => this.#oldestIn(line)) as [number | null, number | null, number | null];
    const [i, n, b] = this.#lines.map((line) => line.indices.length - line.head) as [number, number, number];
    return { depth: this.depth, waiting: { interactive: i, normal: n, batch: b }, oldest: { interactive, normal, batch } };
  }

  #oldestIn({ indices, head }: { indices: number[]; head: number }): number | null {
    return this.#jobs[indices[head] ?? -1]?.arrivalMs ?? null;
  }
}

/** Keeps the running jobs by their end; there are as many as slots, so a linear search is the quickest. */
function insert(running: { endMs: number; index: number }[], job: { endMs: number; index: number }): void {
  const at = running.findIndex((other) => other.endMs > job.endMs);
  running.splice(at < 0 ? running.length : at, 0, job);
}

function waitStats(waits: Float64Array): WaitStats {
  const sorted = waits.toSorted();
  const rank = (p: number) => nearestRank(sorted, p);
  return {
    jobs: sorted.length,
    meanWaitMs: meanOf(sorted),
    p50WaitMs: rank(0.5),
    p95WaitMs: rank(0.95),
    p99WaitMs: rank(0.99),
    maxWaitMs: rank(1),
  };
}

function estimateError(errors: Float64Array): EstimateError | null {
  if (errors.length === 0) return null;
  const sizes = errors.map(Math.abs).sort();
  return {
    jobs: errors.length,
    meanAbsMs: meanOf(sizes),
    p50AbsMs: nearestRank(sizes, 0.5),
    p95AbsMs: nearestRank(sizes, 0.95),
    meanMs: meanOf(errors),
  };
}

function nearestRank(sorted: Float64Array, p: number): number {
  return sorted[Math.max(Math.ceil(p * sorted.length) - 1, 0)] ?? 0;
}

function meanOf(values: Float64Array): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
