import { Worker } from "bullmq";
import type { Redis } from "ioredis";
import { pino } from "pino";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { createApp } from "../../api/app.ts";
import { JobCompletions } from "../../api/job-completions.ts";
import { type RunningApi, startApi } from "../../api/main.ts";
import { readConfig } from "../../queues/config.ts";
import { KEY_PREFIX } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { appDeps } from "../app-deps.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

const log = pino({ level: "silent" });
const STREAM = `${KEY_PREFIX}:student:events`;

let redis: RedisFixture;
let queues: Queues;
let api: RunningApi;
const config = () => readConfig({ PORT: "0", DATA_DIR: redis.dataDir });

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  api = await startApi({ config: config(), redisUrl: redis.url, log });
});
afterAll(async () => {
  await api.close();
  await queues.close();
  await redis.stop();
});
beforeEach(async () => {
  await queues.redis.flushall();
});

const accepted = async (body: object): Promise<string> => {
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${api.url}/solve`, { method: "POST", headers, body: JSON.stringify(body) });
  return ((await response.json()) as { jobId: string }).jobId;
};
const poll = async (jobId: string, { wait = 50, base = api.url, signal }: { wait?: number; base?: string; signal?: AbortSignal } = {}) =>
  (await (await fetch(`${base}/jobs/${jobId}?wait=${wait}`, { signal })).json()) as { status: string; error?: { code: string } };

async function withCompletions(body: (completions: JobCompletions) => Promise<void>): Promise<void> {
  const own: Redis[] = [];
  const connect = () => own[own.push(redis.connect()) - 1]!;
  const completions = new JobCompletions(connect, () => {});
  try {
    await completions.ready;
    await body(completions);
  } finally {
    completions.close();
    for (const connection of own) connection.disconnect();
  }
}

/** An app that can be looked into: how many jobs are waited for. */
async function withApp(body: (base: string, completions: JobCompletions) => Promise<void>): Promise<void> {
  await withCompletions(async (completions) => {
    const server = createApp(appDeps(redis, queues, config(), completions)).listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    try {
      await body(`http://127.0.0.1:${(server.address() as { port: number }).port}`, completions);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });
}

const endEvent = (jobId: string) => ["*", "event", "completed", "jobId", jobId, "returnvalue", "null"] as const;

test("an end is heard from the first moment on", async () => {
  await withCompletions(async (completions) => {
    const signal = AbortSignal.timeout(20_000);
    const ended = completions.ended("solve-x", signal);
    await queues.redis.xadd(STREAM, ...endEvent("solve-x"));
    await ended;
    expect(signal.aborted).toBe(false);
  });
});

test("an end that falls into a lost connection is heard after it, even as the first event ever", async () => {
  await withCompletions(async (completions) => {
    const reading = String(await queues.redis.client("LIST"))
      .split("\n")
      .filter((line) => line.includes("cmd=xread"));
    const signal = AbortSignal.timeout(20_000);
    const ended = completions.ended("solve-x", signal);
    const atOnce = queues.redis.multi();
    for (const line of reading) atOnce.client("KILL", "ID", /id=(\d+)/.exec(line)![1]!);
    const killed = (await atOnce.xadd(STREAM, ...endEvent("solve-x")).exec())!.length - 1;
    expect(killed).toBeGreaterThan(0);
    await ended;
    expect(signal.aborted).toBe(false);
  });
});

test("a poll ends at the job's deadline with no worker alive", async () => {
  const jobId = await accepted({ problem: "1", timeoutMs: 150 });
  expect(await poll(jobId)).toMatchObject({ status: "failed", error: { code: "deadline-exceeded" } });
});

test("a poll ends when the job is cancelled through another API", async () => {
  const jobId = await accepted({ problem: "1" });
  await withApp(async (base, completions) => {
    const polled = poll(jobId, { base });
    await expect.poll(() => completions.waiting).toBe(1);
    await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" });
    expect(await polled).toMatchObject({ status: "cancelled" });
  });
});

test("a poll lives through a Redis that is killed and comes back", async () => {
  const jobId = await accepted({ problem: "1" });
  await withApp(async (base, completions) => {
    const polled = poll(jobId, { base });
    await expect.poll(() => completions.waiting).toBe(1);
    process.kill(redis.server.pid, "SIGKILL");
    const worker = new Worker("student", async () => null, { connection: redis.connect(), prefix: KEY_PREFIX });
    worker.on("error", () => {});
    expect(await polled).toMatchObject({ status: "completed" });
    await worker.close();
  });
});

test("with Redis gone for good, closing the API still ends", async () => {
  const own = await startRedisFixture();
  const lonely = await startApi({ config: readConfig({ PORT: "0", DATA_DIR: own.dataDir }), redisUrl: own.url, log });
  await own.stop();
  expect((await fetch(`${lonely.url}/readyz`)).status).toBe(503);
  await lonely.close();
  await expect(fetch(`${lonely.url}/healthz`)).rejects.toThrow();
});
