import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { findRedisBinary } from "../../queues/redis-binary.ts";

/** Scripts that say a version stand for servers; no rung here reaches the network: the PATH holds no apt-get and no make. */
let folder: string;
const log = () => {};

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function fakeServer(file: string, output: string): Promise<string> {
  const whole = path.join(folder, file);
  await mkdir(path.dirname(whole), { recursive: true });
  await writeFile(whole, `#!/bin/sh\nprintf '%s\\n' '${output}'\n`);
  await chmod(whole, 0o755);
  return whole;
}

const redis = (version: string) => `Redis server v=${version} sha=00000000:0 malloc=jemalloc-5.3.0 bits=64`;

test("REDIS_SERVER_BIN comes before everything else", async () => {
  const chosen = await fakeServer("chosen/my-redis", redis("7.0.15"));
  const other = await fakeServer("env-path/redis-server", redis("7.2.0"));
  expect(await findRedisBinary({ env: { REDIS_SERVER_BIN: chosen, PATH: path.dirname(other) }, log })).toMatchObject({
    path: chosen,
    source: "env",
    version: "7.0.15",
  });
});

test.each([
  ["that is not there", async () => path.join(folder, "nothing"), /ENOENT/],
  ["that says no version", async () => fakeServer("talker/redis", "hello"), /does not say its version.*hello/],
  ["that is too old", async () => fakeServer("old/redis", redis("5.0.14")), /5\.0\.14 is too old/],
])("a REDIS_SERVER_BIN %s is an error that names it, not a reason to take another", async (_, make, why) => {
  const chosen = await make();
  const other = await fakeServer("other-path/redis-server", redis("7.2.0"));
  const found = findRedisBinary({ env: { REDIS_SERVER_BIN: chosen, PATH: path.dirname(other) }, log });
  await expect(found).rejects.toMatchObject({ code: "redis-binary-missing", message: expect.stringContaining(`at ${chosen}`) });
  await expect(found).rejects.toThrow(why);
});

test("the PATH is searched in order, and what can't be used is passed over", async () => {
  const old = await fakeServer("path-old/redis-server", redis("4.0.9"));
  const good = await fakeServer("path-good/redis-server", redis("7.4.1"));
  const env = { PATH: [path.join(folder, "nowhere"), path.dirname(old), path.dirname(good)].join(path.delimiter) };
  expect(await findRedisBinary({ env, log })).toEqual({ path: good, source: "path", version: "7.4.1", libraryPath: undefined });
});

test("a binary is run without our secrets", async () => {
  const chosen = path.join(folder, "curious");
  await writeFile(chosen, `#!/bin/sh\nenv > ${chosen}.env\necho '${redis("7.0.15")}'\n`, { mode: 0o755 });
  vi.stubEnv("HF_TOKEN", "hidden-token");
  vi.stubEnv("LOG_LEVEL", "debug");
  await findRedisBinary({ env: { REDIS_SERVER_BIN: chosen }, log });
  vi.unstubAllEnvs();
  const seen = await readFile(`${chosen}.env`, "utf8");
  expect(seen).toContain("LOG_LEVEL=debug");
  expect(seen).not.toContain("hidden-token");
});

test("valkey-server serves as well", async () => {
  const valkey = await fakeServer("path-valkey/valkey-server", "Valkey server v=8.1.0 sha=00000000:0 malloc=libc bits=64");
  expect(await findRedisBinary({ env: { PATH: path.dirname(valkey) }, log })).toMatchObject({ path: valkey, version: "8.1.0" });
});

test("the cached copy is taken when the PATH has none, with its libraries", async () => {
  const cached = await fakeServer("cache/mathllm/redis/bin/redis-server", redis("7.0.15"));
  const found = await findRedisBinary({ env: { PATH: "", XDG_CACHE_HOME: path.join(folder, "cache") }, log });
  expect(found).toEqual({
    path: cached,
    source: "cache",
    version: "7.0.15",
    libraryPath: path.join(folder, "cache", "mathllm", "redis", "lib"),
  });
});

test("without XDG_CACHE_HOME the cache is below HOME", async () => {
  const cached = await fakeServer("home/.cache/mathllm/redis/bin/redis-server", redis("7.0.15"));
  expect((await findRedisBinary({ env: { PATH: "", HOME: path.join(folder, "home") }, log })).path).toBe(cached);
});

test("where nothing can be had, the error says why each way failed and names the three ways out", async () => {
  const cache = path.join(folder, "empty-cache");
  await mkdir(cache);
  const lines: string[] = [];
  // The source of a server to compile is looked for where nobody listens.
  const env = { PATH: path.join(folder, "nowhere"), XDG_CACHE_HOME: cache, REDISMS_DOWNLOAD_MIRROR: "http://127.0.0.1:1" };
  const found = findRedisBinary({ env, log: (line) => lines.push(line) });
  await expect(found).rejects.toMatchObject({ code: "redis-binary-missing" });
  await expect(found).rejects.toThrow(/on the PATH:.*cached copy:.*distribution's package:.*compiled:/);
  await expect(found).rejects.toThrow(/package manager.*REDIS_SERVER_BIN.*REDIS_URL/);
  expect(lines).toHaveLength(2);
});
