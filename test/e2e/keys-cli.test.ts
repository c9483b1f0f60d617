import { execFile } from "node:child_process";
import path from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { ApiKeys } from "../../queues/api-keys.ts";
import { readConfig } from "../../queues/config.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

const main = path.join(import.meta.dirname, "../../mathllm.ts");
let redis: RedisFixture;
let queues: Queues;
let api: RunningApi;

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  api = await startApi({ config: readConfig({ PORT: "0", DATA_DIR: redis.dataDir }), redisUrl: redis.url, log: pino({ level: "silent" }) });
});
afterAll(async () => {
  await api.close();
  await queues.close();
  await redis.stop();
});

function mathllm(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return run(args, {});
}
function run(args: string[], env: NodeJS.ProcessEnv): Promise<{ code: number; stdout: string; stderr: string }> {
  const environment = { ...process.env, REDIS_URL: redis.url, DATA_DIR: redis.dataDir, LOG_LEVEL: "error", ...env };
  return new Promise((resolve) => {
    execFile(process.execPath, [main, ...args], { env: environment, timeout: 60_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

test("a key is made, shown once, used by the command line, listed, limited and revoked", async () => {
  const added = await mathllm("keys", "add", "ann", "--role", "submit+read", "--rate", "100", "--jobs", "5", "--json");
  const { key, ...rest } = JSON.parse(added.stdout);
  expect([added.code, rest, key]).toEqual([0, { name: "ann", roles: ["submit", "read"] }, expect.stringMatching(/^mk_/)]);
  expect(added.stderr).not.toContain(key);

  await expect.poll(async () => (await fetch(`${api.url}/gpu`)).status, { timeout: 5000 }).toBe(401);
  const asked = await run(["gpu", "--url", api.url, "--json"], { API_KEY: key });
  expect([asked.code, JSON.parse(asked.stdout)]).toMatchObject([0, { gpus: [] }]);

  expect(JSON.parse((await mathllm("keys", "limit", "ann", "--jobs", "off", "--json")).stdout)).toEqual({
    name: "ann",
    roles: ["submit", "read"],
    source: "command",
    ratePerS: 100,
    maxJobs: null,
    createdAt: expect.any(Number),
    lastUsedAt: expect.any(Number),
    revokedAt: null,
  });
  expect((await mathllm("keys", "revoke", "ann")).stdout).toBe("ann is refused from its next request on.\n");
  expect((await mathllm("keys", "clear", "--json")).stdout).toBe('{"cleared":1}\n');
  expect(await new ApiKeys(queues.redis).inUse()).toBe(false);

  const { entries: audit } = JSON.parse((await mathllm("keys", "audit", "--json")).stdout) as { entries: Record<string, string>[] };
  expect(audit.map(({ what }) => what)).toEqual(["keys clear", "keys revoke ann", "keys limit ann", "keys add ann"]);
  expect(audit[0]).toMatchObject({ who: "command line", from: expect.stringMatching(/.@./) });
  expect(JSON.stringify(audit)).not.toContain(key);
});
