import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../../queues/names.ts";
import { type EstimatedModel, estimateWaitMs } from "../../queues/wait-estimate.ts";
import { AgeingTurn } from "./ageing.ts";
import { ClassQueue } from "./class-queue.ts";
import { effectiveDeadlineMs } from "./ge.ts";
import type { Policy, PolicySnapshot } from "./policy.ts";
import { SharedCard } from "./shared-card.ts";
import { type Place, TrafficMeter } from "./traffic-meter.ts";
import { type EstimateError, estimateError, type WaitStats, waitStats } from "./wait-stats.ts";

/**
 * A discrete-event simulation of one GPU: the policy of the worker, the meter of the worker, no clock and no model.
 * Time goes from event to event: an arrival, a job's end, a model's ready, a moment at which the policy wants to be asked. After each the policy is asked until it has no more to say.
 */

export interface SimulatedJob {
  role: Role;
  class: PriorityClass;
  arrivalMs: number;
  /** Milliseconds that it takes with the card to itself. */
  serviceMs: number;
}

export interface SimulationOptions {
  /** By arrival. */
  jobs: SimulatedJob[];
  policy: Policy;
  slots: number;
  /** a of each model, from 0 to 1: r jobs at once are together r^a times as fast as one. Absent: 1, they don't slow each other. */
  batchExponent?: Record<Role, number>;
  /** Mean milliseconds to load each model, the stop of the other included. */
  swapMs: Record<Role, number>;
  /** How long a swap takes of which this is the mean. Absent: just as long. */
  drawSwapMs?: (meanMs: number) => number;
  deadlinesMs: Record<PriorityClass, number>;
  /** Turns away an interactive or normal job whose estimated wait is beyond its class's D, as the API does; `batch` is bounded by depth alone. */
  admission?: boolean;
  /** For the estimates: the policy may leave a model before its queue is empty. */
  leavesEarly?: boolean;
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
  /** Σ service / slots^a, as a share of the makespan. */
  gpuBusyShare: number;
  jobsPerSecond: number;
  makespanMs: number;
  /** Σ service / slots^a + one load for each model needed. */
  lowerBoundMs: number;
  models: Record<Role, WaitStats>;
  classes: Partial<Record<PriorityClass, WaitStats>>;
}

const NO_SLOWING: Record<Role, number> = { student: 1, talker: 1 };

export function simulate(options: SimulationOptions): SimulationResult {
  const {
    jobs,
    policy,
    slots,
    batchExponent = NO_SLOWING,
    swapMs,
    drawSwapMs = (ms) => ms,
    deadlinesMs,
    admission = false,
    leavesEarly = false,
  } = options;
  const queues = { student: new ClassQueue(jobs), talker: new ClassQueue(jobs) };
  const ageing = { student: new AgeingTurn(), talker: new AgeingTurn() };
  const meter = new TrafficMeter({ student: slots, talker: slots });
  /** NaN: turned away. */
  const waits = new Float64Array(jobs.length).fill(Number.NaN);
  /** NaN: nothing measured yet to estimate from. */
  const estimates = new Float64Array(jobs.length).fill(Number.NaN);
  const endToEnds = new Float64Array(jobs.length);
  const card = new SharedCard<{ index: number; place: Place }>(1);
  let now = 0;
  let makespanMs = 0;
  let arrived = 0;
  let resident: Role | null = null;
  let readyAtMs = 0;
  let served = 0;
  let swaps = 0;
  let done = 0;
  let shed = 0;
  let loading: { to: Role; startMs: number; readyMs: number } | null = null;
  let askAgainAtMs = Number.POSITIVE_INFINITY;
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
      running: card.running,
      deadlineMs,
      leavesEarly,
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
        running: card.running,
        served,
        queues: { student: queues.student.snapshot(), talker: queues.talker.snapshot() },
        peers: { student: 0, talker: 0 },
        rates: meter.rates(now),
        deadlinesMs,
      };
      const decision = policy(snapshot);
      askAgainAtMs = now + (decision.askAgainMs ?? Number.POSITIVE_INFINITY);
      if (decision.action === "swap") {
        drainStartMs ??= now;
        if (card.running > 0) return;
        loading = { to: decision.to, startMs: now, readyMs: now + drawSwapMs(swapMs[decision.to]) };
        return;
      }
      drainStartMs = null;
      if (decision.action !== "stay" || resident === null || card.running >= slots || queues[resident].depth === 0) return;
      const late: PriorityClass | null = ageing[resident].next(snapshot.queues[resident].oldest, now, deadlinesMs);
      const index: number = queues[resident].take(late);
      waits[index] = now - jobs[index]!.arrivalMs;
      served++;
      card.add({ index, place: meter.picked(resident, now) }, jobs[index]!.serviceMs, now);
    }
  };

  for (;;) {
    admit();
    if (done + shed === jobs.length) break;
    decide();
    const arrivalMs = jobs[arrived]?.arrivalMs ?? Number.POSITIVE_INFINITY;
    const endMs = card.nextEndMs;
    const readyMs: number = (loading as { readyMs: number } | null)?.readyMs ?? Number.POSITIVE_INFINITY;
    now = Math.min(arrivalMs, endMs, readyMs, loading === null ? askAgainAtMs : Number.POSITIVE_INFINITY);
    if (now === endMs) {
      const { index, place } = card.end();
      meter.served(place, now, jobs[index]!.serviceMs);
      endToEnds[index] = now - jobs[index]!.arrivalMs;
      done++;
      makespanMs = now;
    }
    if (now === readyMs) {
      const { to, startMs } = loading as unknown as { to: Role; startMs: number };
      if (resident !== null) swaps++;
      meter.swapped(to, now - (drainStartMs ?? now), now - startMs);
      resident = to;
      card.use(batchExponent[to]);
      readyAtMs = now;
      served = 0;
      loading = null;
      drainStartMs = null;
    }
  }

  const kept = Uint32Array.from(jobs.keys()).filter((index) => !Number.isNaN(waits[index]));
  const statsOf = (keep: (job: SimulatedJob) => boolean) => {
    const indices = kept.filter((index) => keep(jobs[index]!));
    return waitStats(
      Float64Array.from(indices, (index) => waits[index]!),
      Float64Array.from(indices, (index) => endToEnds[index]!),
    );
  };
  const workMs = { student: 0, talker: 0 };
  for (const index of kept) workMs[jobs[index]!.role] += jobs[index]!.serviceMs;
  const busyMs = ROLES.reduce((sum, role) => sum + workMs[role] / slots ** batchExponent[role], 0);
  const all = statsOf(() => true);
  const models = { student: statsOf((job) => job.role === "student"), talker: statsOf((job) => job.role === "talker") };
  const needed = ROLES.filter((role) => models[role].jobs > 0);
  const classes = PRIORITY_CLASSES.map((name) => [name, statsOf((job) => job.class === name)] as const);
  return {
    ...all,
    shed,
    estimateError: estimateError(estimates.map((estimateMs, index) => estimateMs - waits[index]!).filter((error) => !Number.isNaN(error))),
    swaps,
    swapsPer100Jobs: (100 * swaps) / all.jobs,
    gpuBusyShare: busyMs / makespanMs,
    jobsPerSecond: (1000 * all.jobs) / makespanMs,
    makespanMs,
    lowerBoundMs: busyMs + needed.reduce((sum, role) => sum + swapMs[role], 0),
    models,
    classes: Object.fromEntries(classes.filter(([, { jobs: count }]) => count > 0)),
  };
}
