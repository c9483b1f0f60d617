import { z } from "zod";
import { cacheStatsSchema } from "./answer-cache.ts";
import type { Config } from "./config.ts";
import { type WorkerStatus, workerStatusSchema } from "./contracts.ts";
import { aheadOf, expectedWaitMs } from "./expected-wait.ts";
import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "./names.ts";
import type { Queues } from "./open-queues.ts";
import { rateLimitSchema } from "./rate-limits.ts";
import { liveWorkers } from "./worker-status.ts";

const perClass = <T extends z.ZodType>(value: T) => z.record(z.enum(PRIORITY_CLASSES), value);
const perRole = <T extends z.ZodType>(value: T) => z.record(z.enum(ROLES), value);

const queueViewSchema = z.object({
  /** Jobs that could start now. */
  depth: z.number(),
  /** The same by class, with the most that may wait. */
  waiting: perClass(z.number()),
  maxDepths: perClass(z.number()),
  active: z.number(),
  delayed: z.number(),
  oldestAgeMs: perClass(z.number().nullable()),
  /** How long a job accepted now would wait. */
  estimatedWaitMs: perClass(z.number().nullable()),
  rateLimit: rateLimitSchema.nullable(),
  /** So long until the rate limit, used up for the moment, lets the next job through; 0 while it does. */
  limitedMs: z.number(),
  paused: z.boolean(),
});

const gpuSchema = workerStatusSchema.omit({ beatAt: true, host: true }).extend({
  lease: z.object({ fence: z.number(), workerId: z.string(), host: z.string(), pid: z.number() }),
  standbys: z.array(z.object({ workerId: z.string(), host: z.string(), pid: z.number(), waitsFor: z.string().nullable() })),
});

/** `GET /gpu`: what stands on every GPU and why, and what waits. */
export const gpuViewSchema = z.object({
  /** The first GPU's, for the usual system that has one. */
  residentModel: z.enum(ROLES).nullable(),
  gpus: z.array(gpuSchema),
  queues: perRole(queueViewSchema),
  /** Of all API processes together, since the beginning. */
  cache: cacheStatsSchema.optional(),
});
export type GpuView = z.infer<typeof gpuViewSchema>;
export type QueueView = z.infer<typeof queueViewSchema>;

export async function loadGpuView(queues: Queues, config: Config, now = Date.now()): Promise<GpuView> {
  const [workers, queueViews] = await Promise.all([liveWorkers(queues.redis, now), loadQueueViews(queues, config, now)]);
  const gpus = workers
    .filter((worker) => worker.phase !== "standby")
    .sort((a, b) => a.startedAt - b.startedAt)
    .map((worker) => gpuOf(worker, workers));
  return { residentModel: gpus[0]?.residentModel ?? null, gpus, queues: queueViews };
}

function gpuOf({ beatAt: _, host, ...worker }: WorkerStatus, workers: WorkerStatus[]): GpuView["gpus"][number] {
  const standbys = workers.filter((other) => other.gpuId === worker.gpuId && other.phase === "standby");
  return {
    ...worker,
    lease: { fence: worker.fence, workerId: worker.workerId, host, pid: worker.pid },
    standbys: standbys.map((other) => ({ workerId: other.workerId, host: other.host, pid: other.pid, waitsFor: other.waitsFor })),
  };
}

export async function loadQueueViews(queues: Queues, config: Config, now = Date.now()): Promise<Record<Role, QueueView>> {
  const [workers, backlog, ...rest] = await Promise.all([
    liveWorkers(queues.redis, now),
    queues.readBacklog(now),
    ...ROLES.map((role) => queues[role].getJobCounts("active", "delayed")),
  ]);
  const view = (role: Role, counts: (typeof rest)[number]): QueueView => {
    const { depth, waiting, oldest, limitedMs, paused, rateLimit } = backlog[role];
    const byClass = <T>(value: (name: PriorityClass) => T) =>
      Object.fromEntries(PRIORITY_CLASSES.map((name) => [name, value(name)])) as Record<PriorityClass, T>;
    return {
      depth,
      waiting,
      maxDepths: config.maxDepths,
      active: counts.active ?? 0,
      delayed: counts.delayed ?? 0,
      oldestAgeMs: byClass((name) => (oldest[name] === null ? null : Math.max(now - oldest[name]!, 0))),
      estimatedWaitMs: byClass((name) => expectedWaitMs(role, name, aheadOf(role, name, backlog), backlog, workers, now)),
      rateLimit,
      limitedMs,
      paused,
    };
  };
  return Object.fromEntries(ROLES.map((role, i) => [role, view(role, rest[i]!)])) as Record<Role, QueueView>;
}
