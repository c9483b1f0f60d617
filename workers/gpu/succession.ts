import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { Redis } from "../../queues/connection.ts";
import { ROLES } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { hostBoot, isAlive } from "../../queues/process-identity.ts";
import { type HostLock, ownerName, takeHostLock } from "./host-lock.ts";
import type { Holder, Lease } from "./lease.ts";
import { isStopped, killForGood } from "./left-behind.ts";
import { lockTokenPrefix } from "./manual-worker.ts";

/**
 * How a worker comes to hold a GPU:
 *
 *   standing by ──lease──► clearing: the last holder's model server, then that worker if it can't help itself ──► host lock ──► holds it
 *
 * The order matters: the lease with its fencing number says who may, the model server goes before the stopped worker so that no
 * moment has both models, and the host lock also shuts out the systems of other Redis servers.
 */
const HOST_LOCK_POLL_MS = 200;
/** A worker that lost its lease and lives lets go by itself within this time, unless it is cut off from Redis. */
const LET_GO_MS = 5000;

export interface SuccessionOptions {
  lease: Lease;
  gpuId: string;
  queues: Queues;
  redis: Redis;
  signal: AbortSignal;
  onLost: () => void;
  /** What is waited for, for people; null when nothing is. */
  onWaiting: (reason: string | null) => void;
  log: Logger;
}

/** Waits until this worker holds lease and host lock and nothing of a predecessor is left. Rejects only when `signal` aborts. */
export async function takeGpu(options: SuccessionOptions): Promise<HostLock> {
  const { lease, gpuId, signal, onLost, onWaiting, log } = options;
  onWaiting("another worker holds the GPU's lease");
  const previous = await lease.acquire(signal, onLost);
  if (previous !== null && previous.host === hostBoot()) await clearUp(previous, options);
  await lease.recordModelServers([]);
  const lock = await waitForHostLock(gpuId, signal, onWaiting, previous, log);
  if (previous !== null && previous.host === hostBoot() && !isAlive(previous.worker)) await recoverJobs(previous.owner, options);
  onWaiting(null);
  return lock;
}

async function clearUp(previous: Holder, { log }: SuccessionOptions): Promise<void> {
  if (previous.worker.pid === process.pid) return;
  for (const server of previous.modelServers.filter(isAlive)) {
    log.warn({ pid: server.pid }, "stopping the model server that the last worker left behind");
    await killForGood(server);
  }
  if (isAlive(previous.worker) && isStopped(previous.worker)) {
    log.warn(
      { pid: previous.worker.pid },
      "the last worker is stopped (SIGSTOP) and can't let go of the GPU: ending it; its jobs wait again",
    );
    await killForGood(previous.worker);
  }
}

async function waitForHostLock(
  gpuId: string,
  signal: AbortSignal,
  onWaiting: (reason: string) => void,
  previous: Holder | null,
  log: Logger,
): Promise<HostLock> {
  const killAt = performance.now() + LET_GO_MS;
  for (;;) {
    const taken = await takeHostLock(gpuId, "a GPU worker");
    if ("lock" in taken) return taken.lock;
    onWaiting(`${ownerName(taken.owner)} holds the GPU on this host`);
    const isPrevious = previous !== null && previous.host === hostBoot() && taken.owner?.pid === previous.worker.pid;
    if (isPrevious && previous.worker.pid !== process.pid && performance.now() > killAt && isAlive(previous.worker)) {
      log.warn({ pid: previous.worker.pid }, "the last worker has not let go of the GPU: ending it; its jobs wait again");
      await killForGood(previous.worker);
    }
    await delay(HOST_LOCK_POLL_MS, undefined, { signal });
  }
}

/** The jobs that a dead worker held go back to their queues now, not only when their locks have expired. */
async function recoverJobs(owner: string, { queues, redis, log }: SuccessionOptions): Promise<void> {
  for (const role of ROLES) {
    const queue = queues[role];
    for (const jobId of await redis.lrange(queue.toKey("active"), 0, -1)) {
      const token = await redis.get(`${queue.toKey(jobId)}:lock`);
      if (token === null || !token.startsWith(lockTokenPrefix(owner))) continue;
      const job = await queue.getJob(jobId);
      await job
        ?.moveToWait(token)
        .catch((error) => log.warn({ err: error, jobId }, "a dead worker's job is recovered once its lock expires"));
    }
  }
}
