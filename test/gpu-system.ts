import path from "node:path";
import { pino } from "pino";
import { expect } from "vitest";
import { submit } from "../api/submission.ts";
import { type Config, readConfig } from "../queues/config.ts";
import { type JobView, type SolveRequest, solveRequestSchema, TERMINAL_STATUSES } from "../queues/contracts.ts";
import { loadJobView } from "../queues/job-view.ts";
import { openQueues, type Queues } from "../queues/open-queues.ts";
import { type GpuWorker, startGpuWorker } from "../workers/main.ts";
import { FakeGpu } from "./fakes/fake-engine.ts";
import { type RedisFixture, startRedisFixture } from "./redis-fixture.ts";

/** Real Redis and real workers on recording fake GPUs, for the tests of what the worker does. */
export interface GpuSystem {
  redis: RedisFixture;
  queues: Queues;
  gpu: FakeGpu;
  configured(env: Record<string, string>): Config;
  startWorker(env?: Record<string, string>, gpu?: FakeGpu): Promise<GpuWorker>;
  send(request?: Partial<SolveRequest>): Promise<string>;
  view(jobId: string): Promise<JobView | undefined>;
  /** The job's view once it is terminal. */
  end(jobId: string): Promise<JobView>;
  stop(): Promise<void>;
}

export async function startGpuSystem(): Promise<GpuSystem> {
  const redis = await startRedisFixture();
  const queues = openQueues(redis.connect(), () => {});
  const gpu = new FakeGpu();
  const workers: GpuWorker[] = [];
  const configured = (env: Record<string, string>) =>
    readConfig({ DATA_DIR: redis.dataDir, TELEMETRY_LOG: path.join(redis.dataDir, "telemetry.jsonl"), ...env });
  const view = (jobId: string) => loadJobView(queues, jobId);
  return {
    redis,
    queues,
    gpu,
    configured,
    startWorker: async (env = {}, on = gpu) => {
      const worker = await startGpuWorker({
        config: configured(env),
        redisUrl: redis.url,
        createEngine: on.create,
        log: pino({ level: process.env.TEST_LOG ?? "silent" }),
        onFatal: (error) => on.violations.push(error.message),
      });
      workers.push(worker);
      return worker;
    },
    send: async (request = {}) =>
      (await submit(queues, configured({}), solveRequestSchema.parse({ problem: "What is 1 + 0?", ...request }))).jobId,
    view,
    end: async (jobId) => {
      await expect.poll(async () => TERMINAL_STATUSES.includes((await view(jobId))!.status), { timeout: 30_000, interval: 10 }).toBe(true);
      return (await view(jobId))!;
    },
    stop: async () => {
      for (const worker of workers) await worker.stop(2000);
      await queues.close();
      await redis.stop();
    },
  };
}
