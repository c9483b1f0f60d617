import type { Command } from "commander";
import type { Logger } from "pino";
import { startApi } from "../api/main.ts";
import { createBoard } from "../dashboards/board.ts";
import { createDocs } from "../dashboards/docs/router.ts";
import { createLivePage } from "../dashboards/live/page.ts";
import { type Config, readConfig } from "../queues/config.ts";
import { startTracing } from "../queues/tracing.ts";
import { describeUnknown, unknownSettings } from "../queues/unknown-settings.ts";
import { engineFactory } from "../workers/engines/engines.ts";
import { startGpuWorker } from "../workers/main.ts";
import { growHeapSlowly } from "./heap.ts";
import { EXIT_FAILED, logTo, type Run, say } from "./run.ts";
import { startSystem, untilSignalled, VERSION, withRedis } from "./system.ts";

/** `start`, and its parts alone: `api`, `worker`. */
export function addStart(program: Command, run: Run): void {
  program
    .command("start")
    .description("run Redis (if REDIS_URL is not set), the API and the worker")
    .action(() => run(runStart));
  program
    .command("api")
    .description("run the API alone")
    .action(() => run(runApi));
  program
    .command("worker")
    .description("run the GPU worker alone")
    .action(() => run(runWorker));
}

/** A log that begins with the names in the environment that only resemble a setting: they may be another program's. */
function openLog(config: Config, part?: "api" | "worker"): Logger {
  const log = part === undefined ? logTo(config) : logTo(config).child({ process: part });
  // The process that supervises a worker has the same environment, and has warned.
  const hasWarned = part === "worker" && process.send !== undefined;
  if (!hasWarned) for (const each of unknownSettings(process.env)) log.warn(describeUnknown(each));
  return log;
}

async function runStart(): Promise<number> {
  const log = openLog(readConfig());
  const system = await startSystem(process.env, log);
  say(`mathllm is up. Ctrl-C drains and stops; a second one stops at once.
  live page    ${system.url}
  docs         ${system.url}/docs
  Bull Board   ${system.url}/dashboards/queues
  ready?       ${system.url}/readyz
  try it       curl -s ${system.url}/solve -H 'content-type: application/json' -d '{"problem":"What is 17 + 25?"}'
`);
  return untilSignalled(
    () => {
      say("Draining: running jobs end, waiting ones stay in Redis.\n");
      return system.stop();
    },
    () => system.worker.stopNow(),
  );
}

async function runApi(): Promise<number> {
  growHeapSlowly();
  const config = readConfig();
  const log = openLog(config, "api");
  const stopTracing = await startTracing("mathllm-api", config.otlpEndpoint);
  return withRedis(config, log, async (redisUrl) => {
    const api = await startApi({ config, redisUrl, log, createBoard, createPage: createLivePage, createDocs, version: VERSION });
    say(`API  ${api.url}\n`);
    return untilSignalled(
      async () => {
        await api.close();
        await stopTracing();
      },
      () => process.exit(EXIT_FAILED),
    );
  });
}

async function runWorker(): Promise<number> {
  const config = readConfig();
  const log = openLog(config, "worker");
  const stopTracing = await startTracing("mathllm-worker", config.otlpEndpoint);
  return withRedis(config, log, async (redisUrl) => {
    const worker = await startGpuWorker({
      config,
      redisUrl,
      createEngine: engineFactory(config, log),
      log,
      onFatal: (error) => {
        log.fatal({ err: error }, "the dispatcher ended by an error of its own; running jobs go back to their queue");
        worker.stop(0).finally(() => process.exit(EXIT_FAILED));
      },
    });
    return untilSignalled(
      async () => {
        await worker.stop(config.shutdownGraceMs);
        await stopTracing();
      },
      () => void worker.stop(0).catch(() => {}),
    );
  });
}
