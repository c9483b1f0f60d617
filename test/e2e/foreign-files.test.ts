import { execFile } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";

/** What lies in places that other users can write to is neither run nor obeyed by a command. Whose is whose: ownership.test.ts. */
const main = path.join(import.meta.dirname, "../../mathllm.ts");
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), "mathllm-foreign-"));
  for (const name of ["tmp", "cache", "here"]) mkdirSync(path.join(folder, name), { mode: 0o700 });
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function mathllm(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const { NODE_COMPILE_CACHE: _, ...inherited } = process.env;
  const env = { ...inherited, TMPDIR: path.join(folder, "tmp"), XDG_CACHE_HOME: path.join(folder, "cache") };
  return new Promise((resolve) => {
    execFile(process.execPath, [main, ...args], { env, cwd: path.join(folder, "here") }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

test("compiled code is kept in a folder of our own, not in the temporary one", async () => {
  expect((await mathllm("--version")).code).toBe(0);
  expect(readdirSync(path.join(folder, "tmp"))).toEqual([]);
  expect(readdirSync(path.join(folder, "cache/mathllm/compile"))).toHaveLength(1);
});

test("compiled code that others could have written is not looked at, and none is left there", async () => {
  const compile = path.join(folder, "cache/mathllm/compile");
  mkdirSync(compile, { recursive: true });
  chmodSync(compile, 0o777);
  expect((await mathllm("--version")).code).toBe(0);
  expect([...readdirSync(compile), ...readdirSync(path.join(folder, "tmp"))]).toEqual([]);
});

test("a .env that every user can change is refused in a line, and the program that it names is not run", async () => {
  const ran = path.join(folder, "ran");
  const program = path.join(folder, "redis-server");
  writeFileSync(program, `#!/bin/sh\ntouch ${ran}\necho 'Redis server v=7.0.15'\n`, { mode: 0o755 });
  const file = path.join(folder, "here/.env");
  writeFileSync(file, `REDIS_SERVER_BIN=${program}\n`);
  chmodSync(file, 0o666);
  const { code, stderr } = await mathllm("doctor");
  expect(code).toBe(2);
  expect(stderr.trim().split("\n")).toEqual([expect.stringMatching(/^Expected \.env and its folder .*\.env can be changed by every user/)]);
  expect(existsSync(ran)).toBe(false);
});
