import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Queue, QueueEvents, Worker } from "bullmq";
import Table from "cli-table3";
import express from "express";
import { Redis } from "ioredis";
import { pino } from "pino";
import { Pool } from "undici";
import { type RunningApi, startApi } from "../../api/main.ts";
import { ApiClient } from "../../producers/submit.ts";
import { readConfig } from "../../queues/config.ts";
import { type EmbeddedRedis, startEmbeddedRedis } from "../../queues/embedded-redis.ts";
import { createEmbeddedEngine } from "../../workers/engines/embedded.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";

/** What the system itself costs, side by side in one run: npm run bench. Everything on loopback, about a minute. */

const ROUND_TRIPS = 300;
const PICKS = 200;
const POST_SECONDS = 4;
const POST_CONCURRENCY = 32;
const log = pino({ level: "silent" });

interface Bench {
  redis: EmbeddedRedis;
  api: RunningApi;
  worker?: GpuWorker;
  folder: string;
  stop(): Promise<void>;
}

async function system(appendfsync: "always" | "everysec", engine: "fake" | "real" | "none"): Promise<Bench> {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-bench-"));
  const redis = await startEmbeddedRedis({ dataDir: folder, appendfsync, dieWithParent: true });
  const config = readConfig({
    DATA_DIR: folder,
    TELEMETRY_LOG: path.join(folder, "t.jsonl"),
    PORT: "0",
    STUDENT_PORT: "0",
    TALKER_PORT: "0",
  });
  const api = await startApi({ config, redisUrl: redis.url, log });
  const gpu = new FakeGpu();
  gpu.serviceMs = () => 0;
  const createEngine = engine === "real" ? () => createEmbeddedEngine({ dataDir: folder }) : gpu.create;
  const worker =
    engine === "none" ? undefined : await startGpuWorker({ config, redisUrl: redis.url, createEngine, log, onFatal: () => {} });
  const stop = async () => {
    await worker?.stop(5000);
    await api.close();
    await redis.stop();
    await rm(folder, { recursive: true, force: true });
  };
  return { redis, api, worker, folder, stop };
}

function percentile(values: number[], p: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(Math.ceil(p * sorted.length) - 1, 0)]!;
}

/** Add to completed through BullMQ alone: one queue, one `run()` worker that does nothing. */
async function plainRoundTrip(redisUrl: string) {
  const connections: Redis[] = [];
  const connect = () => {
    const redis = new Redis(redisUrl, { maxRetriesPerRequest: null });
    connections.push(redis);
    return redis;
  };
  const queue = new Queue("bench", { connection: connect() });
  const events = new QueueEvents("bench", { connection: connect() });
  const worker = new Worker("bench", async () => ({ answer: "1" }), { connection: connect() });
  await Promise.all([worker.waitUntilReady(), events.waitUntilReady()]);
  const waiters = new Map<string, () => void>();
  events.on("completed", ({ jobId }) => waiters.get(jobId)?.());
  let n = 0;
  const trip = async () => {
    const jobId = `bench-${n++}`;
    const startedAt = performance.now();
    const done = new Promise<void>((resolve) => waiters.set(jobId, resolve));
    await queue.add("solve", { problem: "1 + 0" }, { jobId, removeOnComplete: true });
    await done;
    return performance.now() - startedAt;
  };
  const close = async () => {
    await Promise.all([worker.close(), events.close(), queue.close()]);
    for (const redis of connections) redis.disconnect();
  };
  return { trip, close };
}

async function roundTrips(appendfsync: "always" | "everysec") {
  const bench = await system(appendfsync, "fake");
  const plain = await plainRoundTrip(bench.redis.url);
  const client = new ApiClient(bench.api.url);
  const ours = async () => {
    const startedAt = performance.now();
    await client.finished((await client.submit({ problem: "1 + 0", cache: "off" })).jobId);
    return performance.now() - startedAt;
  };
  await client.finished((await client.submit({ problem: "warm up" })).jobId);
  const times = { plain: [] as number[], ours: [] as number[] };
  for (let i = 0; i < ROUND_TRIPS; i++) {
    times.plain.push(await plain.trip());
    times.ours.push(await ours());
  }
  await plain.close();
  await bench.stop();
  const [p50Plain, p50Ours] = [percentile(times.plain, 0.5), percentile(times.ours, 0.5)];
  return [appendfsync, p50Plain, percentile(times.plain, 0.95), p50Ours, percentile(times.ours, 0.95), p50Ours - p50Plain];
}

/** Accepted to picked on an idle system whose Student is resident, the real model answering. */
async function pickLatency(appendfsync: "always" | "everysec") {
  const bench = await system(appendfsync, "real");
  const client = new ApiClient(bench.api.url);
  await client.finished((await client.submit({ problem: "What is 1 + 1?" })).jobId);
  const waits: number[] = [];
  for (let i = 0; i < PICKS; i++) {
    await delay(10);
    const view = await client.finished(
      (await client.submit({ problem: `What is ${i} + 1?`, sampling: { temperature: 0, maxTokens: 4 } })).jobId,
    );
    waits.push(view.timestamps.pickedAt! - view.timestamps.acceptedAt);
  }
  await bench.stop();
  return [appendfsync, percentile(waits, 0.5), percentile(waits, 0.95), Math.max(...waits)];
}

async function postsPerSecond(baseUrl: string): Promise<number> {
  const pool = new Pool(baseUrl, { connections: POST_CONCURRENCY });
  const body = JSON.stringify({ problem: "What is 17 + 25?" });
  const until = performance.now() + POST_SECONDS * 1000;
  let accepted = 0;
  await Promise.all(
    Array.from({ length: POST_CONCURRENCY }, async () => {
      while (performance.now() < until) {
        const response = await pool.request({ method: "POST", path: "/solve", headers: { "content-type": "application/json" }, body });
        await response.body.dump();
        if (response.statusCode === 202) accepted++;
      }
    }),
  );
  await pool.close();
  return accepted / POST_SECONDS;
}

async function posts(appendfsync: "always" | "everysec") {
  const bench = await system(appendfsync, "none");
  const connection = new Redis(bench.redis.url);
  const queue = new Queue("bare", { connection });
  const app = express();
  app.post("/solve", express.json(), async (request, response) => {
    const job = await queue.add("solve", request.body);
    response.status(202).json({ jobId: job.id });
  });
  const server = http.createServer(app).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const bareUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const rates = { bare: [] as number[], ours: [] as number[] };
  for (let round = 0; round < 3; round++) {
    rates.bare.push(await postsPerSecond(bareUrl));
    rates.ours.push(await postsPerSecond(bench.api.url));
  }
  server.close();
  await queue.close();
  connection.disconnect();
  await bench.stop();
  const [bare, ours] = [percentile(rates.bare, 0.5), percentile(rates.ours, 0.5)];
  return [appendfsync, bare, ours, ours / bare];
}

function print(title: string, head: string[], rows: (string | number)[][]): void {
  const table = new Table({ head, style: { head: [], border: [] } });
  for (const row of rows) table.push(row.map((cell) => (typeof cell === "number" ? cell.toFixed(2) : cell)));
  console.log(`${title}\n${table.toString()}\n`);
}

const MODES = ["everysec", "always"] as const;
const inTurn = async <T>(measure: (mode: (typeof MODES)[number]) => Promise<T>): Promise<T[]> => [
  await measure(MODES[0]),
  await measure(MODES[1]),
];

print(
  `Round trip, ${ROUND_TRIPS} in turn: plain BullMQ (add to completed) against ours (POST /solve to the finished view) on a model that takes no time`,
  ["appendfsync", "plain p50 ms", "plain p95 ms", "ours p50 ms", "ours p95 ms", "difference p50 ms"],
  await inTurn(roundTrips),
);
print(
  `Accepted to picked, idle system, Student resident, ${PICKS} jobs`,
  ["appendfsync", "p50 ms", "p95 ms", "max ms"],
  await inTurn(pickLatency),
);
print(
  `POST /solve per second, ${POST_CONCURRENCY} connections, median of 3 × ${POST_SECONDS} s in turn: bare Express + queue.add against ours`,
  ["appendfsync", "bare /s", "ours /s", "ours / bare"],
  await inTurn(posts),
);
process.exit(0);
