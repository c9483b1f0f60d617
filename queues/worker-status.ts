import type { Redis } from "./connection.ts";
import { WORKER_STALE_MS, type WorkerStatus, workerStatusSchema } from "./contracts.ts";
import { keys } from "./names.ts";

/** Workers that have beaten within `WORKER_STALE_MS`. An entry of another version's form is skipped. */
export async function liveWorkers(redis: Redis, now = Date.now()): Promise<WorkerStatus[]> {
  return Object.values(await redis.hgetall(keys.workers)).flatMap((text) => {
    const status = parseStatus(text);
    return status !== undefined && now - status.beatAt <= WORKER_STALE_MS ? [status] : [];
  });
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
