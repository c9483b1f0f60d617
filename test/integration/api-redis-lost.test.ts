import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { readConfig } from "../../queues/config.ts";
import { KEY_PREFIX } from "../../queues/names.ts";
import { findRedisBinary, libraryEnv } from "../../queues/redis-binary.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

let redis: RedisFixture;
let api: RunningApi;
let restarted: ChildProcess | undefined;

beforeAll(async () => {
  redis = await startRedisFixture();
  api = await startApi({
    config: readConfig({ PORT: "0", DATA_DIR: redis.dataDir }),
    redisUrl: redis.url,
    log: pino({ level: "silent" }),
  });
});
afterAll(async () => {
  await api?.close();
  if (restarted !== undefined && restarted.exitCode === null) {
    restarted.kill("SIGKILL");
    await once(restarted, "exit");
  }
  await redis?.stop();
});

const get = (address: string) => fetch(api.url + address);
const post = (body: unknown, headers: Record<string, string> = {}) =>
  fetch(`${api.url}/solve`, { method: "POST", headers: { "content-type": "application/json", ...headers }, body: JSON.stringify(body) });
const jobIdOf = async (response: Response) => ((await response.json()) as { jobId: string }).jobId;

/** Killed, and not started again by its keeper, so that it stays away as long as the test wants. */
async function killRedis(): Promise<void> {
  process.kill(redis.server.pid, "SIGKILL");
  await redis.server.stop();
}

async function startRedisAgain(): Promise<void> {
  const binary = await findRedisBinary({ env: process.env, log: () => {} });
  restarted = spawn(binary.path, [path.join(redis.dataDir, "redis", "redis.conf")], {
    env: libraryEnv(binary.libraryPath),
    stdio: "ignore",
  });
  await once(restarted, "spawn");
}

test("Redis killed: no 202 and a clear 503 within the bounds; started again: everything accepted is there, new jobs are taken", async () => {
  const direct = redis.connect();
  // As in production: a job is on disk before its 202.
  await direct.config("SET", "appendfsync", "always");
  const plain = await jobIdOf(await post({ problem: "1 + 1" }, { "idempotency-key": "k" }));
  const explained = await jobIdOf(await post({ problem: "1 + 2", explain: true }));

  await killRedis();
  const polled = await get(`/jobs/${plain}?wait=5`);
  expect([polled.status, polled.headers.get("retry-after")]).toEqual([503, "1"]);

  for (const body of [{ problem: "lost" }, { problem: "lost", explain: true }, { problem: "lost", timeoutMs: 1000 }]) {
    const startedAt = performance.now();
    const response = await post(body, { "idempotency-key": `lost-${JSON.stringify(body).length}` });
    expect(response.status).toBe(503);
    expect(performance.now() - startedAt).toBeLessThan(5500);
    expect(response.headers.get("retry-after")).toBe("1");
    expect(response.headers.get("content-type")).toBe("application/problem+json; charset=utf-8");
    const text = await response.text();
    expect(JSON.parse(text)).toMatchObject({ code: "redis-unavailable", status: 503 });
    expect(text).not.toMatch(/\n\s+at |node_modules|ECONN|redis:\/\//);
  }

  const startedAt = performance.now();
  const [ready, healthy, removed] = await Promise.all([
    get("/readyz"),
    get("/healthz"),
    fetch(`${api.url}/jobs/${plain}`, { method: "DELETE" }),
  ]);
  expect(await ready.json()).toEqual({ ready: false, redis: false, workers: 0, residentModel: null, reason: "redis-unavailable" });
  expect([ready.status, healthy.status, removed.status]).toEqual([503, 200, 503]);
  expect(performance.now() - startedAt).toBeLessThan(1500);
  // What is wrong with a request is said whether Redis is there or not.
  expect((await post({ problem: 7 })).status).toBe(400);

  await startRedisAgain();
  await expect
    .poll(async () => (await get("/readyz").then((response) => response.json())) as object, { timeout: 10_000 })
    .toMatchObject({
      redis: true,
      reason: "no-worker",
    });
  const again = await post({ problem: "1 + 3" });
  expect(again.status).toBe(202);
  for (const jobId of [plain, explained, await jobIdOf(again)]) {
    expect(await (await get(`/jobs/${jobId}`)).json()).toMatchObject({ jobId, status: "waiting" });
  }
  const replayed = await post({ problem: "1 + 1" }, { "idempotency-key": "k" });
  expect([await jobIdOf(replayed), replayed.headers.get("idempotent-replayed")]).toEqual([plain, "true"]);
  // Of what was refused nothing is there.
  expect(await direct.zcard(`${KEY_PREFIX}:student:prioritized`)).toBe(3);
});
