import { spawn } from "node:child_process";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { Worker } from "bullmq";
import Table from "cli-table3";
import { Redis } from "ioredis";
import type { BatchSummary } from "../../producers/batch.ts";
import { AnswerCache, publishModel } from "../../queues/answer-cache.ts";
import { solveKey } from "../../queues/cache-key.ts";
import { JOB_DATA_VERSION, type JobData, solveRequestSchema } from "../../queues/contracts.ts";
import { startEmbeddedRedis } from "../../queues/embedded-redis.ts";
import { jobOptions } from "../../queues/job-options.ts";
import { KEY_PREFIX } from "../../queues/names.ts";
import { openQueues } from "../../queues/open-queues.ts";
import { stageResult } from "../stand-in-worker.ts";

/**
 * What a large batch costs: npm run bench:batches. Ingest by `POST /batches` against BullMQ's bare `addBulk` with the same data, options and
 * chunk size, no worker, in turns; then 100,000 lines through `mathllm batch`, once answered from the cache and once by jobs that take no
 * time, with the memory of the API and of the command. Loopback, a few minutes.
 */
const LINES = 100_000;
const TURNS = 5;
const LINES_A_TURN = 20_000;
const CHUNK = 500;
const CACHED_PROBLEMS = 40;
const SAMPLE_MS = 50;
const MIB = 1 << 20;
const STUDENT = { modelId: "m", digest: "d", promptVersion: "p", maxTokens: 100 };

const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-bench-"));
const main = path.join(import.meta.dirname, "../../mathllm.ts");
const appendfsync = process.argv.includes("--always") ? "always" : "everysec";
const server = await startEmbeddedRedis({ dataDir: folder, appendfsync, dieWithParent: true });
const redis = new Redis(server.url, { maxRetriesPerRequest: null });
const queues = openQueues(redis, () => {});
const environment = { ...process.env, REDIS_URL: server.url, DATA_DIR: folder, PORT: "0", LOG_LEVEL: "error" };

async function startApi(): Promise<{ url: string; pid: number; stop: () => Promise<void> }> {
  const child = spawn(process.execPath, [main, "api"], { env: environment, stdio: ["ignore", "pipe", "inherit"] });
  const [output] = (await once(child.stdout, "data")) as [Buffer];
  const stop = async () => {
    child.kill("SIGTERM");
    await once(child, "close");
  };
  return { url: output.toString().match(/http\S+/)![0], pid: child.pid!, stop };
}
let api = await startApi();

async function clear(): Promise<void> {
  await redis.flushall();
  await publishModel(redis, "student", { ...STUDENT, settings: "s" });
}

const problemOf = (i: number) => `A farmer has ${i} sheep and buys ${i % 97} more, then sells a third of them. How many are left?`;
const lineOf = (i: number, problem = problemOf(i)) => `${JSON.stringify({ custom_id: `line-${i}`, problem, expected: "1" })}\n`;

async function writeLines(name: string, count: number, problem: (i: number) => string): Promise<string> {
  const file = path.join(folder, name);
  await writeFile(file, Array.from({ length: count }, (_, i) => lineOf(i, problem(i))).join(""));
  return file;
}

async function post(file: string): Promise<void> {
  const response = await fetch(`${api.url}/batches`, {
    method: "POST",
    headers: { "content-type": "application/jsonl" },
    body: Readable.toWeb(createReadStream(file)) as unknown as ReadableStream,
    duplex: "half",
  } as RequestInit);
  if (response.status !== 202) throw new Error(await response.text());
  await response.body?.cancel();
}

/** The same data and options as `POST /batches` gives these lines. */
async function addBareMs(count: number): Promise<number> {
  let ms = 0;
  for (let from = 0; from < count; from += CHUNK) {
    const jobs = Array.from({ length: CHUNK }, (_, i) => {
      const index = from + i;
      const asked = {
        problem: problemOf(index),
        sampling: { temperature: 0 },
        priority: "batch" as const,
        cache: "auto" as const,
        expected: "1",
      };
      const flightKey = solveKey(STUDENT, asked);
      const data: JobData = { version: JOB_DATA_VERSION, kind: "solve", ...asked, acceptedAt: Date.now(), flightKey };
      const jobId = `solve-${index.toString(16).padStart(32, "0")}`;
      return { name: "solve", data, opts: jobOptions({ jobId, priority: "batch", attempts: 3, retentionSeconds: 86_400 }) };
    });
    const startedAt = performance.now();
    await queues.student.addBulk(jobs);
    ms += performance.now() - startedAt;
  }
  return ms;
}

async function timed(body: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await body();
  return performance.now() - startedAt;
}

async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
}

/** Runs the command to its end; the most memory that it and the API held meanwhile. */
async function runCommand(file: string): Promise<{ summary: BatchSummary; seconds: number; apiBytes: number; commandBytes: number }> {
  const peaks = { api: 0, command: 0 };
  const startedAt = performance.now();
  const output = path.join(folder, `out-${performance.now()}.jsonl`);
  const child = spawn(process.execPath, [main, "batch", file, "-o", output, "--url", api.url, "--json"], {
    env: environment,
    stdio: ["ignore", "pipe", "ignore"],
  });
  const sampler = setInterval(async () => {
    peaks.api = Math.max(peaks.api, await residentBytes(api.pid));
    peaks.command = Math.max(peaks.command, await residentBytes(child.pid!));
  }, SAMPLE_MS);
  const [stdout] = await Promise.all([text(child.stdout), once(child, "close")]);
  clearInterval(sampler);
  if (child.exitCode !== 0) throw new Error(`mathllm batch ended with ${child.exitCode}: ${stdout}`);
  const seconds = (performance.now() - startedAt) / 1000;
  return { summary: JSON.parse(stdout), seconds, apiBytes: peaks.api, commandBytes: peaks.command };
}

const median = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;

await clear();
const turnFile = await writeLines("turn.jsonl", LINES_A_TURN, problemOf);
const rates = { bare: [] as number[], ours: [] as number[] };
for (let turn = -1; turn < TURNS; turn++) {
  const bareMs = await addBareMs(LINES_A_TURN);
  await clear();
  const oursMs = await timed(() => post(turnFile));
  if ((await queues.student.getJobCounts("prioritized")).prioritized !== LINES_A_TURN) throw new Error("not all lines became jobs");
  await clear();
  // The first turn warms both up.
  if (turn < 0) continue;
  rates.bare.push((1000 * LINES_A_TURN) / bareMs);
  rates.ours.push((1000 * LINES_A_TURN) / oursMs);
}
const ingest = new Table({ head: ["", "lines per second, median", "lowest", "highest"], style: { head: [], border: [] } });
for (const [name, values] of Object.entries(rates))
  ingest.push([name, ...[median(values), Math.min(...values), Math.max(...values)].map((value) => value.toFixed(0))]);
console.log(`ingest of ${LINES_A_TURN} distinct lines, chunks of ${CHUNK}, appendfsync ${appendfsync}\n${ingest.toString()}`);
console.log(`ours / bare: ${median(rates.ours.map((value, i) => value / rates.bare[i]!)).toFixed(2)} (median of ${TURNS} turns)`);

const worker = new Worker("student", async () => ({ ...stageResult("student"), text: "so it is \\boxed{1}." }), {
  connection: new Redis(server.url, { maxRetriesPerRequest: null }),
  prefix: KEY_PREFIX,
  concurrency: 100,
});
const cache = new AnswerCache(redis, { ttlSeconds: 3600, maxBytes: 1e8 }, () => {});
for (let i = 0; i < CACHED_PROBLEMS; i++) {
  const request = solveRequestSchema.parse({ problem: `What is ${i} + 1?` });
  await cache.put(solveKey(STUDENT, request), { result: { ...stageResult("student"), modelId: STUDENT.modelId } });
}
const small = await runCommand(await writeLines("small.jsonl", 1000, (i) => `small ${i}`));
const table = new Table({ head: ["", "seconds", "lines/s", "API grew by", "command grew by", "cached"], style: { head: [], border: [] } });
for (const [name, problem] of [
  ["from the cache", (i: number) => `What is ${i % CACHED_PROBLEMS} + 1?`],
  ["jobs that take no time", problemOf],
] as const) {
  await api.stop();
  api = await startApi();
  const before = await residentBytes(api.pid);
  const { summary, seconds, apiBytes, commandBytes } = await runCommand(await writeLines("large.jsonl", LINES, problem));
  if (summary.completed !== LINES) throw new Error(`${summary.completed} of ${LINES} completed`);
  const growth = [apiBytes - before, commandBytes - small.commandBytes].map((bytes) => `${(bytes / MIB).toFixed(0)} MiB`);
  table.push([name, seconds.toFixed(1), (LINES / seconds).toFixed(0), ...growth, summary.cached]);
}
console.log(`${LINES} lines through mathllm batch; the API from its start, the command from its peak with 1000 lines\n${table.toString()}`);
await worker.close();
await api.stop();
await queues.close();
redis.disconnect();
await server.stop();
await rm(folder, { recursive: true, force: true });
process.exit(0);
