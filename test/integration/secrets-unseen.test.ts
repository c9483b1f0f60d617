import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { readConfig } from "../../queues/config.ts";
import { redaction } from "../../queues/log-redaction.ts";
import { diagnose } from "../../workers/doctor.ts";
import { CANARIES, canariesIn, SECRET_ENV } from "../canaries.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

/** A running API that was given every secret shows none of them, to an admin either, and logs none. */
const logged: string[] = [];
const log = pino({ level: "trace", formatters: { log: redaction(true) } }, { write: (line: string) => void logged.push(line) });

let redis: RedisFixture;
let api: RunningApi;
beforeAll(async () => {
  redis = await startRedisFixture();
  const config = readConfig({ ...SECRET_ENV, PORT: "0", DATA_DIR: redis.dataDir });
  api = await startApi({ config, redisUrl: redis.url, log });
});
afterAll(async () => {
  await api.close();
  await redis.stop();
});

test.each([
  "/",
  "/gpu",
  "/gpu/history",
  "/queues",
  "/cache",
  "/metrics",
  "/openapi.json",
  "/readyz",
  "/v1/models",
  "/jobs/nothing",
  "/nothing",
])("%s", async (address) => {
  const response = await fetch(`${api.url}${address}`, { headers: { authorization: `Bearer ${CANARIES.API_KEYS}` } });
  expect(response.status).not.toBe(401);
  const text = await response.text();
  expect(canariesIn(`${text}${JSON.stringify([...response.headers])}`)).toEqual([]);
  expect(text).not.toContain(new URL(redis.url).password);
});

test("a wrong key and a refused body are not shown either, nor logged", async () => {
  const refused = await fetch(`${api.url}/gpu`, { headers: { authorization: `Bearer ${CANARIES.API_KEY}` } });
  expect(refused.status).toBe(401);
  expect(canariesIn(await refused.text())).toEqual([]);
  expect(canariesIn(logged.join(""))).toEqual([]);
});

test("doctor names the Redis that does not answer without its password", async () => {
  const checks = await diagnose(readConfig({ ...SECRET_ENV, PORT: "0", DATA_DIR: redis.dataDir }));
  const redisCheck = checks.find(({ name }) => name.startsWith("redis"));
  expect(redisCheck).toMatchObject({ ok: false, detail: expect.stringContaining("127.0.0.1:1") });
  expect(canariesIn(JSON.stringify(checks))).toEqual([]);
});
