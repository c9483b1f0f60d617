import { type Backlog, standingIn } from "./backlog.ts";
import type { WorkerStatus } from "./contracts.ts";
import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "./names.ts";
import { type EstimatedModel, estimateWaitMs } from "./wait-estimate.ts";
import { hasResident } from "./worker-status.ts";

/**
 * Milliseconds from now until a job of this queue and class with `ahead` jobs before it is picked, from what the live workers have
 * measured; null when nobody serves the queues, has the model on its machine, or a needed average is missing.
 */
export function expectedWaitMs(
  role: Role,
  name: PriorityClass,
  ahead: number,
  backlog: Backlog,
  workers: WorkerStatus[],
  now: number,
): number | null {
  const serving = workers.filter((worker) => worker.phase !== "standby" && worker.phase !== "stopping" && !worker.drained);
  const canServe = (of: Role) => serving.some((each) => hasResident(each, of) || each.models[of].preparation.state === "ready");
  if (!canServe(role)) return null;
  const worker = serving.find((each) => hasResident(each, role)) ?? serving.find((each) => each.loadingModel === role) ?? serving[0];
  if (worker === undefined) return null;
  const resident = hasResident(worker, role) ? role : (worker.residentModel ?? worker.loadingModel);
  const running = serving.filter((each) => hasResident(each, resident)).reduce((sum, each) => sum + each.running, 0);
  const model = (of: Role): EstimatedModel => {
    const { arrivalsPerMs, serviceMs, swapMs } = worker.models[of];
    const having = serving.filter((each) => hasResident(each, of));
    const slots = (having.length === 0 ? [worker] : having).reduce((sum, each) => sum + each.models[of].capacity.maxNumSeqs, 0);
    const oldest = backlog[of].oldest[name];
    // Nobody swaps to a model that is not on its machine yet.
    if (!canServe(of)) return { arrivalsPerMs: 0, serviceMs, swapMs, slots, depth: 0, oldestAgeMs: 0 };
    return {
      arrivalsPerMs,
      serviceMs,
      swapMs,
      slots,
      depth: standingIn(backlog[of]),
      oldestAgeMs: oldest === null ? 0 : Math.max(now - oldest, 0),
    };
  };
  const estimatedMs = estimateWaitMs({
    role,
    class: name,
    ahead,
    models: Object.fromEntries(ROLES.map((of) => [of, model(of)])) as Record<Role, EstimatedModel>,
    resident,
    ready: hasResident(worker, resident),
    running,
    deadlineMs: worker.deadlinesMs[name],
    leavesEarly: worker.policy === "least-wait",
  });
  return estimatedMs === null ? null : Math.max(estimatedMs, limitWaitMs(backlog[role], ahead));
}

/** What a rate limit alone makes a job with `ahead` jobs before it wait: the rest of this window, and one window for every `max` jobs. */
function limitWaitMs({ limitedMs, rateLimit }: Backlog[Role], ahead: number): number {
  return rateLimit === null ? limitedMs : limitedMs + Math.floor(ahead / rateLimit.max) * rateLimit.durationMs;
}

/** Jobs of a queue that are picked before a new one of this class. */
export function aheadOf(role: Role, name: PriorityClass, backlog: Backlog): number {
  const { waiting, ending } = backlog[role];
  return PRIORITY_CLASSES.slice(0, PRIORITY_CLASSES.indexOf(name) + 1).reduce((sum, each) => sum + waiting[each], ending);
}
