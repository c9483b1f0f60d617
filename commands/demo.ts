import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import type { Command } from "commander";
import { runDemo } from "../producers/demo.ts";
import { ApiClient } from "../producers/submit.ts";
import { openRedis, waitForRedis } from "../queues/connection.ts";
import { openQueues } from "../queues/open-queues.ts";
import { withoutSettings } from "../queues/settings.ts";
import { wholeNumber } from "./options.ts";
import { EXIT_FAILED, logTo, type Run, say } from "./run.ts";
import { startSystem } from "./system.ts";

export function addDemo(program: Command, run: Run): void {
  program
    .command("demo")
    .description("run the whole system for a minute on the shipped models and show what happens")
    .option("--jobs <count>", "how many problems", wholeNumber(40, 660), 40)
    .option("--seed <number>", "which problems", wholeNumber(0, 4_294_967_295), 1)
    .option("--json", "print one summary object, everything else on stderr")
    .action((options) => run(() => runDemoCommand(options)));
}

async function runDemoCommand(options: { jobs: number; seed: number; json?: boolean }): Promise<number> {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-demo-"));
  const env: NodeJS.ProcessEnv = {
    ...withoutSettings(process.env),
    REDIS_SERVER_BIN: process.env.REDIS_SERVER_BIN,
    LOG_LEVEL: process.env.LOG_LEVEL || "error",
    DATA_DIR: folder,
    // On the CPU, under a name of its own: the demo disturbs no GPU and needs none.
    GPU_ID: `cpu-${path.basename(folder)}`,
    STUDENT_NGL: "0",
    TALKER_NGL: "0",
    TELEMETRY_LOG: path.join(folder, "telemetry.jsonl"),
    PORT: "0",
    STUDENT_PORT: "0",
    TALKER_PORT: "0",
  };
  const print = options.json ? (text: string) => process.stderr.write(text) : say;
  const log = logTo({ logLevel: env.LOG_LEVEL! });
  const interrupted = new AbortController();
  const onSignal = () => interrupted.abort(new Error("Interrupted."));
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    print("Starting Redis, the API and the GPU worker (the first run fetches a Redis server, a few seconds) …\n");
    const system = await startSystem(env, log, true);
    const redis = openRedis(system.redisUrl, "producer", () => {});
    try {
      await waitForRedis(redis, 5000);
      const queues = openQueues(redis, () => {});
      const summary = await runDemo({
        api: new ApiClient(system.url),
        queues,
        countModelServers: () => modelServersOf(system.worker.pid),
        jobs: options.jobs,
        seed: options.seed,
        print,
        terminal: !options.json && process.stdout.isTTY === true,
        signal: interrupted.signal,
      });
      if (options.json) say(`${JSON.stringify(summary)}\n`);
      else {
        say(
          `${summary.completed} of ${summary.jobs} completed, ${summary.correct} right (${(100 * summary.accuracy).toFixed(1)} %), ${summary.explained} explained, ` +
            `${summary.swaps} swaps, most models resident at once ${summary.maxResident}, p50 ${summary.p50Ms} ms, p95 ${summary.p95Ms} ms\n`,
        );
      }
      return summary.completed === summary.jobs ? 0 : EXIT_FAILED;
    } finally {
      redis.disconnect();
      if (interrupted.signal.aborted) system.worker.stopNow();
      await system.stop();
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Model servers among a process's children, seen in /proc; a zombie has given its memory back. */
function modelServersOf(pid: number | undefined): number {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean);
    return children.filter((child) => readFileSync(`/proc/${child}/cmdline`, "utf8").includes("embedded-server")).length;
  } catch {
    return 0;
  }
}
