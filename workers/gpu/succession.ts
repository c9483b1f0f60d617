import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { Redis } from "../../queues/connection.ts";
import { ROLES } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { isAlive } from "../../queues/process-identity.ts";
import { type HostLock, ownerName, takeHostLock } from "./host-lock.ts";
import type { Inheritance, Lease, Predecessor } from "./lease.ts";
import { isStopped, killForGood, killModelServer } from "./left-behind.ts";
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
  const { lease, signal, onLost, onWaiting } = options;
  onWaiting("another worker holds the GPU's lease");
  const inheritance = await lease.acquire(signal, onLost);
  await clearUp(inheritance, options);
  const lock = await waitForHostLock(inheritance.predecessors, options);
  try {
    for (const { owner, worker } of inheritance.predecessors) {
      if (!isAlive(worker)) await recoverJobs(owner, options);
    }
    await lease.cleared();
  } catch (error) {
    await lock.release();
    throw error;
  }
  onWaiting(null);
  return lock;
}

/** A test may run several workers in one process. */
const isOtherProcess = ({ worker }: Predecessor) => worker.pid !== process.pid;

async function clearUp({ predecessors, modelServers }: Inheritance, { log }: SuccessionOptions): Promise<void> {
  for (const server of modelServers.filter(({ pid }) => pid !== process.pid)) {
    const killed = await killModelServer(server);
    if (killed > 0) log.warn({ pid: server.pid }, "stopped the model server that the last worker left behind");
  }
  for (const { worker } of predecessors.filter(isOtherProcess)) {
    if (!isAlive(worker) || !isStopped(worker)) continue;
    log.warn({ pid: worker.pid }, "the last worker is stopped (SIGSTOP) and can't let go of the GPU: ending it; its jobs wait again");
    await killForGood(worker);
  }
}

async function waitForHostLock(predecessors: Predecessor[], { gpuId, signal, onWaiting, log }: SuccessionOptions): Promise<HostLock> {
  const killAt = performance.now() + LET_GO_MS;
  for (;;) {
    const taken = await takeHostLock(gpuId, "a GPU worker");
    if ("lock" in taken) return taken.lock;
    onWaiting(`${ownerName(taken.owner)} holds the GPU on this host`);
    const holder = predecessors.filter(isOtherProcess).find(({ worker }) => worker.pid === taken.owner?.pid && isAlive(worker));
    if (holder !== undefined && performance.now() > killAt) {
      log.warn({ pid: holder.worker.pid }, "the last worker has not let go of the GPU: ending it; its jobs wait again");
      await killForGood(holder.worker);
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
