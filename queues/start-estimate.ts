import type { WorkerStatus } from "./contracts.ts";
import type { Role } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/**
 * Milliseconds until a job with `position` jobs before it is picked, from what the workers have measured:
 * jobs before it in rounds of `slots`, each round one mean service time; if its model is not resident, first the other
 * queue's backlog the same way and one swap. null while nothing has been measured.
 */
export async function estimateStartMs(queues: Queues, role: Role, position: number, workers: WorkerStatus[]): Promise<number | null> {
  if (workers.length === 0) return null;
  const other: Role = role === "student" ? "talker" : "student";
  const resident = workers.filter((worker) => worker.residentModel === role);
  if (resident.length > 0) return roundsMs(position + sum(resident, (worker) => worker.running), resident, role);
  const otherDepth = await queues[other].getJobCountByTypes("wait", "prioritized");
  const busyMs = otherDepth === 0 ? 0 : roundsMs(otherDepth, workers, other);
  const ownMs = roundsMs(position, workers, role);
  const swapMs = workers[0]?.models[role].swapMs ?? null;
  return busyMs === null || ownMs === null || swapMs === null ? null : busyMs + swapMs + ownMs;
}

function roundsMs(jobsBefore: number, workers: WorkerStatus[], role: Role): number | null {
  const slots = sum(workers, (worker) => worker.models[role].maxNumSeqs);
  if (jobsBefore < slots) return 0;
  const serviceMs = workers.find((worker) => worker.models[role].serviceMs !== null)?.models[role].serviceMs;
  return serviceMs == null ? null : Math.round(Math.floor(jobsBefore / slots) * serviceMs);
}

function sum(workers: WorkerStatus[], value: (worker: WorkerStatus) => number): number {
  return workers.reduce((total, worker) => total + value(worker), 0);
}
