import { readFileSync } from "node:fs";
import { mkdir, realpath } from "node:fs/promises";
import path from "node:path";
import type { Logger } from "pino";
import { startApi } from "../api/main.ts";
import { createBoard } from "../dashboards/board.ts";
import { createDocs } from "../dashboards/docs/router.ts";
import { createLivePage } from "../dashboards/live/page.ts";
import { type Config, readConfig } from "../queues/config.ts";
import { type EmbeddedRedis, startEmbeddedRedis } from "../queues/embedded-redis.ts";
import { MathllmError } from "../queues/errors.ts";
import { whoElseOwns } from "../queues/ownership.ts";
import { startTracing } from "../queues/tracing.ts";
import { WorkerProcess } from "../workers/worker-process.ts";
import { growHeapSlowly } from "./heap.ts";
import { EXIT_FAILED } from "./run.ts";

/** The command line's own file: child processes run it again. */
export const MAIN = path.join(import.meta.dirname, "..", "mathllm.ts");

export const VERSION: string = JSON.parse(readFileSync(path.join(import.meta.dirname, "..", "package.json"), "utf8")).version;

interface RedisHandle {
  url: string;
  stop(): Promise<void>;
}

/** REDIS_URL, or the private embedded Redis of this data directory: started here, or joined if another process of ours started it. */
async function redisFor(config: Config, log: Logger, dieWithParent = false): Promise<RedisHandle> {
  if (config.redisUrl !== undefined) return { url: config.redisUrl, stop: async () => {} };
  await makeDataDir(config.dataDir);
  const redis: EmbeddedRedis = await startEmbeddedRedis({
    dataDir: config.dataDir,
    appendfsync: config.redisAppendfsync,
    log,
    env: process.env,
    dieWithParent,
  });
  return { url: redis.url, stop: () => redis.stop() };
}

/** Runs `body` with a Redis that is stopped however it ends, if it was started here. */
export async function withRedis(config: Config, log: Logger, body: (redisUrl: string) => Promise<number>): Promise<number> {
  const redis = await redisFor(config, log);
  try {
    return await body(redis.url);
  } finally {
    await redis.stop();
  }
}

export async function makeDataDir(dataDir: string): Promise<void> {
  let who: string | null;
  try {
    await mkdir(path.join(dataDir, "redis"), { recursive: true, mode: 0o700 });
    who = whoElseOwns(await realpath(dataDir)) ?? whoElseOwns(await realpath(path.join(dataDir, "redis")));
  } catch (error) {
    throw new MathllmError(
      "invalid-configuration",
      `DATA_DIR: expected a folder that can be made and written; ${(error as Error).message}`,
    );
  }
  if (who !== null) {
    throw new MathllmError(
      "invalid-configuration",
      `DATA_DIR: expected a folder of yours, since it says which Redis is started; ${dataDir} ${who}. Make it yours (chown -R), or set DATA_DIR to a folder of yours.`,
    );
  }
}

/** The first signal calls `drain`, the second `now`. Resolves with the exit code when `drain` is done. */
export function untilSignalled(drain: () => Promise<void>, now: () => void): Promise<number> {
  return new Promise((resolve) => {
    let signals = 0;
    const onSignal = () => {
      signals++;
      if (signals === 1) {
        drain().then(
          () => resolve(0),
          (error) => {
            process.stderr.write(`${(error as Error).message}\n`);
            resolve(EXIT_FAILED);
          },
        );
      } else if (signals === 2) {
        now();
      }
    };
    process.on("SIGINT", onSignal);
    process.on("SIGTERM", onSignal);
    // The supervisor's channel breaking means that it died: drain as if it had asked.
    if (process.send !== undefined) process.on("disconnect", onSignal);
  });
}

export interface System {
  config: Config;
  redisUrl: string;
  url: string;
  worker: WorkerProcess;
  stop(): Promise<void>;
}

/** Redis if needed, the worker as a child process, and the API in this one; on failure nothing stays up. */
export async function startSystem(env: NodeJS.ProcessEnv, log: Logger, dieWithParent = false): Promise<System> {
  growHeapSlowly();
  const config = readConfig(env);
  const redis = await redisFor(config, log, dieWithParent);
  const stopTracing = await startTracing("mathllm-api", config.otlpEndpoint);
  const worker = new WorkerProcess([MAIN, "worker"], { ...env, REDIS_URL: redis.url }, log);
  try {
    const api = await startApi({
      config,
      redisUrl: redis.url,
      log: log.child({ process: "api" }),
      createBoard,
      createPage: createLivePage,
      createDocs,
      version: VERSION,
    });
    worker.start();
    return {
      config,
      redisUrl: redis.url,
      url: api.url,
      worker,
      stop: async () => {
        await Promise.all([api.close(), worker.stop()]);
        await stopTracing();
        await redis.stop();
      },
    };
  } catch (error) {
    await redis.stop();
    throw error;
  }
}
