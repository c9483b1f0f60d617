import type { Redis } from "./connection.ts";
import { WORKER_STALE_MS, type WorkerStatus, workerStatusSchema } from "./contracts.ts";
import { keys, type Role } from "./names.ts";

/** Workers that have beaten within `WORKER_STALE_MS`. An entry of another version's form is skipped. */
export async function liveWorkers(redis: Redis, now = Date.now()): Promise<WorkerStatus[]> {
  return Object.values(await redis.hgetall(keys.workers)).flatMap((text) => {
    const status = parseStatus(text);
    return status !== undefined && now - status.beatAt <= WORKER_STALE_MS ? [status] : [];
  });
}

/** Whether this model is on the worker's GPU, or beside it. */
export function hasResident(worker: WorkerStatus, role: Role | null): boolean {
  return worker.residentModel === role || worker.coresidentModel === role;
}

export interface Unavailability {
  code: "model-unavailable" | "model-preparing";
  /** For people. */
  detail: string;
}

/** Why none of the workers can load a role's model, or has it on its machine yet; null when one can, or there are none. */
export function unavailability(workers: WorkerStatus[], role: Role): Unavailability | null {
  const holding = workers.filter(({ phase }) => phase !== "standby");
  const able = holding.length > 0 ? holding : workers;
  if (able.some((worker) => hasResident(worker, role))) return null;
  const models = able.map((worker) => worker.models[role]);
  if (models.some(({ error, preparation }) => error === null && preparation.state === "ready")) return null;
  const error = models.find((model) => model.error !== null)?.error;
  if (error != null) return { code: "model-unavailable", detail: error };
  const reason = models.find(({ preparation }) => preparation.reason !== null)?.preparation.reason;
  return reason == null ? null : { code: "model-preparing", detail: reason };
}

/** Writes this worker's heartbeat. */
export async function publishStatus(redis: Redis, status: WorkerStatus): Promise<void> {
  await redis.hset(keys.workers, status.workerId, JSON.stringify(status));
}

export async function removeStatus(redis: Redis, workerId: string): Promise<void> {
  await redis.hdel(keys.workers, workerId);
}

/** Drops the entries of workers that died without a word more than a minute ago. */
export async function pruneStatuses(redis: Redis, now = Date.now()): Promise<void> {
  for (const [workerId, text] of Object.entries(await redis.hgetall(keys.workers))) {
    const status = parseStatus(text);
    if (status === undefined || now - status.beatAt > 60_000) await redis.hdel(keys.workers, workerId);
  }
}

function parseStatus(text: string): WorkerStatus | undefined {
  try {
    return workerStatusSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
