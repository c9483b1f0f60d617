import { mkdtemp, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { pino } from "pino";
import { submit } from "../../api/submission.ts";
import { seededRandom } from "../../maths/seeded-random.ts";
import { readConfig } from "../../queues/config.ts";
import { openRedis } from "../../queues/connection.ts";
import { solveRequestSchema } from "../../queues/contracts.ts";
import { startEmbeddedRedis } from "../../queues/embedded-redis.ts";
import { ROLES } from "../../queues/names.ts";
import { openQueues } from "../../queues/open-queues.ts";
import { createEmbeddedEngine } from "../../workers/engines/embedded.ts";
import type { Engine } from "../../workers/engines/engine.ts";
import { startGpuWorker } from "../../workers/main.ts";

/**
 * What a swap policy is worth on real models: npm run bench:policies. The shipped models, each load made two seconds longer (a
 * large model's would be ten), mixed jobs half for each, offered at once and as a Poisson stream at 0.7 of what `exhaustive` can
 * do at once. Everything on loopback; the run is bounded by `LIMIT_MS` a policy. With 400 jobs it takes about twenty minutes, nearly all of it `fifo`.
 */
const START_DELAY_MS = 2000;
const LOAD = 0.7;
const LIMIT_MS = 20 * 60_000;
const SEED = 1;
const POLICIES = ["ge", "exhaustive", "fifo"] as const;
type PolicyName = (typeof POLICIES)[number];

const { values } = parseArgs({ options: { jobs: { type: "string", default: "400" } } });
const jobs = Number(values.jobs);

interface Run {
  jobsPerSecond: number;
  swaps: number;
  meanWaitMs: number;
  p95WaitMs: number;
  maxWaitMs: number;
  /** What the worker itself added to each swap. */
  overheadsMs: number[];
}

function slowStart(dataDir: string): Engine {
  const engine = createEmbeddedEngine({ dataDir });
  const ready = engine.ready.bind(engine);
  engine.ready = async (timeoutMs) => {
    await delay(START_DELAY_MS);
    return ready(timeoutMs);
  };
  return engine;
}

/** `ratePerSecond` null: all jobs are there before the worker starts. */
async function play(policy: PolicyName, ratePerSecond: number | null): Promise<Run> {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-bench-"));
  const server = await startEmbeddedRedis({ dataDir: folder, appendfsync: "everysec", dieWithParent: true });
  const redis = openRedis(server.url, "worker", () => {});
  const queues = openQueues(redis, () => {});
  const telemetryLog = path.join(folder, "telemetry.jsonl");
  const config = readConfig({ DATA_DIR: folder, TELEMETRY_LOG: telemetryLog, STUDENT_PORT: "0", TALKER_PORT: "0", GPU_POLICY: policy });
  const random = seededRandom(SEED);
  const send = (i: number) =>
    submit(
      queues,
      config,
      solveRequestSchema.parse({
        problem: `What is ${i % 90} + ${(7 * i) % 10}?`,
        model: random() < 0.5 ? "student" : "talker",
        sampling: { temperature: 0, maxTokens: 48 },
      }),
    );
  const start = () =>
    startGpuWorker({
      config,
      redisUrl: server.url,
      createEngine: () => slowStart(folder),
      log: pino({ level: "silent" }),
      onFatal: () => {},
    });
  let worker: Awaited<ReturnType<typeof start>>;
  const startedAt = performance.now();
  if (ratePerSecond === null) {
    for (let i = 0; i < jobs; i++) await send(i);
    worker = await start();
  } else {
    worker = await start();
    let dueMs = startedAt;
    for (let i = 0; i < jobs; i++) {
      dueMs += (-1000 * Math.log(1 - random())) / ratePerSecond;
      await delay(Math.max(dueMs - performance.now(), 0));
      await send(i);
    }
  }
  const done = async () =>
    (await Promise.all(ROLES.map((role) => queues[role].getJobCountByTypes("completed", "failed")))).reduce((a, b) => a + b);
  while ((await done()) < jobs) {
    if (performance.now() - startedAt > LIMIT_MS) throw new Error(`${policy} did not finish within ${LIMIT_MS} ms`);
    await delay(100);
  }
  await worker.stop(5000);
  await queues.close();
  redis.disconnect();
  const lines = (await readFile(telemetryLog, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  await server.stop();
  await rm(folder, { recursive: true, force: true });
  const ended = lines.filter((line) => line.kind === "job");
  const swaps = lines.filter((line) => line.kind === "swap");
  const failed = ended.filter((line) => line.outcome !== "completed").length;
  if (failed > 0) throw new Error(`${failed} jobs failed under ${policy}`);
  const waits: number[] = ended.map((line) => line.pickedAt - line.acceptedAt).sort((a, b) => a - b);
  const firstMs = Math.min(...ended.map((line) => line.acceptedAt));
  return {
    jobsPerSecond:
      (1000 * jobs) / (Math.max(...ended.map((line) => line.doneAt)) - (ratePerSecond === null ? swaps[0].ts - swaps[0].totalMs : firstMs)),
    swaps: swaps.length - 1,
    meanWaitMs: waits.reduce((a, b) => a + b) / waits.length,
    p95WaitMs: waits[Math.ceil(0.95 * waits.length) - 1]!,
    maxWaitMs: waits.at(-1)!,
    overheadsMs: swaps.filter((line) => line.from !== null).map((line) => line.overheadMs),
  };
}

function print(title: string, runs: Record<PolicyName, Run>): void {
  const table = new Table({
    head: ["policy", "jobs/s", "swaps", "mean wait s", "p95 wait s", "max wait s"],
    style: { head: [], border: [] },
  });
  for (const [name, run] of Object.entries(runs)) {
    const seconds = [run.meanWaitMs, run.p95WaitMs, run.maxWaitMs].map((ms) => (ms / 1000).toFixed(1));
    table.push([name, run.jobsPerSecond.toFixed(2), run.swaps, ...seconds]);
  }
  console.log(`${title}\n${table.toString()}`);
}

async function playAll(ratePerSecond: number | null): Promise<Record<PolicyName, Run>> {
  const runs: Partial<Record<PolicyName, Run>> = {};
  for (const policy of POLICIES) runs[policy] = await play(policy, ratePerSecond);
  return runs as Record<PolicyName, Run>;
}

const atOnce = await playAll(null);
print(`${jobs} jobs at once, half for each model, ${START_DELAY_MS} ms added to each load`, atOnce);
console.log(
  `ge's throughput: ${(atOnce.ge.jobsPerSecond / atOnce.fifo.jobsPerSecond).toFixed(2)} × fifo's, ${(atOnce.ge.jobsPerSecond / atOnce.exhaustive.jobsPerSecond).toFixed(3)} × exhaustive's\n`,
);
const rate = LOAD * atOnce.exhaustive.jobsPerSecond;
const stream = await playAll(rate);
print(`the same as a Poisson stream of ${rate.toFixed(2)} jobs/s, ${LOAD} of exhaustive's capacity`, stream);
console.log(
  `ge's mean wait: ${(stream.ge.meanWaitMs / stream.fifo.meanWaitMs).toFixed(3)} × fifo's, ${(stream.ge.meanWaitMs / stream.exhaustive.meanWaitMs).toFixed(2)} × exhaustive's\n`,
);
const overheads = [...Object.values(atOnce), ...Object.values(stream)].flatMap((run) => run.overheadsMs).sort((a, b) => a - b);
const rank = (p: number) => overheads[Math.ceil(p * overheads.length) - 1]!.toFixed(1);
console.log(
  `What the worker adds to a swap (all but the engine's own stop and start), ${overheads.length} swaps: p50 ${rank(0.5)} ms, p95 ${rank(0.95)} ms, max ${rank(1)} ms`,
);
process.exit(0);
