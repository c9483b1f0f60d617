import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import Table from "cli-table3";
import express from "express";
import { Redis } from "ioredis";
import { pino } from "pino";
import { Pool } from "undici";
import { startApi } from "../../api/main.ts";
import { ApiClient } from "../../producers/submit.ts";
import { readConfig } from "../../queues/config.ts";
import { startEmbeddedRedis } from "../../queues/embedded-redis.ts";
import { startGpuWorker } from "../../workers/main.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";

/**
 * What an answer from the cache costs: npm run bench:cache. 20,000 cached `POST /solve` against a bare Express `POST` with
 * `express.json()` and one Redis GET of the same size, in turns of 4,000; and the time of one at a moderate rate. Loopback, about half a minute.
 */
const REQUESTS_A_TURN = 4000;
const TURNS = 5;
const CONNECTIONS = 32;
const PROBLEMS = 40;
const PACED = 1000;
const PACED_PER_SECOND = 200;

const log = pino({ level: "silent" });
const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-bench-"));
const server = await startEmbeddedRedis({ dataDir: folder, appendfsync: "everysec", dieWithParent: true });
const config = readConfig({ DATA_DIR: folder, TELEMETRY_LOG: path.join(folder, "t.jsonl"), PORT: "0" });
const api = await startApi({ config, redisUrl: server.url, log });
const worker = await startGpuWorker({ config, redisUrl: server.url, createEngine: new FakeGpu().create, log, onFatal: () => {} });
const client = new ApiClient(api.url);
const bodyOf = (i: number) => JSON.stringify({ problem: `What is ${i % PROBLEMS} + 17?` });
await client.finished((await client.submit({ problem: "warm up", cache: "off" })).jobId);
for (let i = 0; i < PROBLEMS; i++) await client.finished((await client.submit(JSON.parse(bodyOf(i)))).jobId);

const redis = new Redis(server.url);
const [entry] = await redis.keys("{mathllm}:cache:entry:*");
const app = express();
app.post("/solve", express.json(), async (_request, response) => {
  response.json(JSON.parse((await redis.get(entry!))!));
});
const bare = http.createServer(app).listen(0, "127.0.0.1");
await new Promise((resolve) => bare.once("listening", resolve));
const bareUrl = `http://127.0.0.1:${(bare.address() as AddressInfo).port}`;

async function perSecond(baseUrl: string): Promise<number> {
  const pool = new Pool(baseUrl, { connections: CONNECTIONS });
  let next = 0;
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: CONNECTIONS }, async () => {
      for (let i = next++; i < REQUESTS_A_TURN; i = next++) {
        const response = await pool.request({
          method: "POST",
          path: "/solve",
          headers: { "content-type": "application/json" },
          body: bodyOf(i),
        });
        await response.body.dump();
        if (response.statusCode !== 200) throw new Error(`answered ${response.statusCode}`);
      }
    }),
  );
  await pool.close();
  return (1000 * REQUESTS_A_TURN) / (performance.now() - startedAt);
}

const rates = { bare: [] as number[], ours: [] as number[] };
for (let turn = 0; turn < TURNS; turn++) {
  rates.bare.push(await perSecond(bareUrl));
  rates.ours.push(await perSecond(api.url));
}
const pool = new Pool(api.url, { connections: CONNECTIONS });
const times: number[] = [];
const startedAt = performance.now();
await Promise.all(
  Array.from({ length: PACED }, async (_, i) => {
    const dueAt = startedAt + (1000 * i) / PACED_PER_SECOND;
    await new Promise((resolve) => setTimeout(resolve, Math.max(Math.ceil(dueAt - performance.now()), 0)));
    const response = await pool.request({
      method: "POST",
      path: "/solve",
      headers: { "content-type": "application/json" },
      body: bodyOf(i),
    });
    await response.body.dump();
    times.push(performance.now() - dueAt);
  }),
);
const sorted = (values: number[]) => values.toSorted((a, b) => a - b);
const rank = (values: number[], p: number) => sorted(values)[Math.ceil(p * values.length) - 1]!;
const table = new Table({ head: ["", "per second, median", "lowest", "highest"], style: { head: [], border: [] } });
for (const [name, values] of Object.entries(rates))
  table.push([name, ...[rank(values, 0.5), rank(values, 1 / TURNS), rank(values, 1)].map((value) => (value ?? 0).toFixed(0))]);
console.log(
  `${TURNS * REQUESTS_A_TURN} cached requests over ${CONNECTIONS} connections, bare Express with one Redis GET in turn\n${table.toString()}`,
);
console.log(
  `ours / bare: ${rank(
    rates.ours.map((value, i) => value / rates.bare[i]!),
    0.5,
  ).toFixed(2)} (median of ${TURNS} turns)`,
);
console.log(
  `one cached request at ${PACED_PER_SECOND} a second, from its due time: p50 ${rank(times, 0.5).toFixed(1)} ms, p95 ${rank(times, 0.95).toFixed(1)} ms, p99 ${rank(times, 0.99).toFixed(1)} ms`,
);
await pool.close();
await worker.stop(1000);
await api.close();
bare.close();
redis.disconnect();
await server.stop();
await rm(folder, { recursive: true, force: true });
process.exit(0);
