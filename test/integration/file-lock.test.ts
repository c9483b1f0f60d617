import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { tryLockFile } from "../../queues/file-lock.ts";

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

test("a lock excludes every other one until it is closed", async () => {
  const file = path.join(folder, "lock");
  const lock = await tryLockFile(file);
  expect(await tryLockFile(file)).toBeUndefined();
  await lock!.close();
  const next = await tryLockFile(file);
  expect(next).toBeDefined();
  await next!.close();
});

test("a child takes the lock along: it lasts beyond ours until the child ends, even by kill -9", async () => {
  const file = path.join(folder, "lock");
  const lock = await tryLockFile(file);
  const child = spawn("sleep", ["60"], { stdio: ["ignore", "ignore", "ignore", lock!.fd] });
  await once(child, "spawn");
  await lock!.close();
  try {
    expect(await tryLockFile(file)).toBeUndefined();
  } finally {
    child.kill("SIGKILL");
    await once(child, "exit");
  }
  const next = await tryLockFile(file);
  expect(next).toBeDefined();
  await next!.close();
});

test("many at once: one gets it", async () => {
  const file = path.join(folder, "lock");
  const locks = await Promise.all(Array.from({ length: 8 }, () => tryLockFile(file)));
  expect(locks.filter((lock) => lock !== undefined)).toHaveLength(1);
  await locks.find((lock) => lock !== undefined)!.close();
});

test("without the program flock it says what is missing", async () => {
  const before = process.env.PATH;
  process.env.PATH = folder;
  try {
    await expect(tryLockFile(path.join(folder, "lock"))).rejects.toMatchObject({
      code: "redis-unavailable",
      message: expect.stringMatching(/flock.*util-linux/s),
    });
  } finally {
    process.env.PATH = before;
  }
});
