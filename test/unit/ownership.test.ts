import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { loadEnvFile } from "../../commands/env-file.ts";
import { makeDataDir } from "../../commands/system.ts";
import { isOwnFolder, ownCacheFolder } from "../../queues/ownership.ts";
import { findRedisBinary } from "../../queues/redis-binary.ts";

let folder: string;
const { uid, gid } = os.userInfo();
const OTHER = 4242;

beforeEach(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), "mathllm-owner-"));
  vi.spyOn(process, "cwd").mockReturnValue(folder);
});
afterEach(() => {
  vi.restoreAllMocks();
  delete process.env.MATHLLM_TEST_SETTING;
  rmSync(folder, { recursive: true, force: true });
});

function make(name: string, mode: number, content?: string): string {
  const file = path.join(folder, name);
  mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  if (content === undefined) mkdirSync(file, { recursive: true });
  else writeFileSync(file, content);
  chmodSync(file, mode);
  return file;
}

/** Root gives it away; another user can't, and is taken for somebody else instead. */
function makeForeign(file: string): void {
  if (uid === 0) chownSync(file, OTHER, OTHER);
  else vi.spyOn(process, "getuid").mockReturnValue(uid + OTHER);
}

describe("the cache's folder", () => {
  const cacheOf = (name = "compile") => ownCacheFolder(name, { XDG_CACHE_HOME: path.join(folder, "cache"), HOME: "/nowhere" });

  test("is made with mode 0700 below XDG_CACHE_HOME, else below HOME", () => {
    const made = cacheOf()!;
    expect(made).toBe(path.join(folder, "cache/mathllm/compile"));
    expect(statSync(made).mode & 0o7777).toBe(0o700);
    expect(cacheOf()).toBe(made);
    const belowHome = path.join(folder, ".cache/mathllm/x");
    expect(ownCacheFolder("x", { HOME: folder })).toBe(belowHome);
    expect(ownCacheFolder("x", { HOME: folder, XDG_CACHE_HOME: "relative" })).toBe(belowHome);
    expect(ownCacheFolder("x", {})).toBeUndefined();
  });

  test("that the umask left open is closed, and what others can change inside is not taken", () => {
    const cache = make("cache/mathllm", 0o777);
    expect(cacheOf()).toBeDefined();
    expect(statSync(cache).mode & 0o777).toBe(0o700);
    make("cache/mathllm/compile", 0o770);
    expect(cacheOf()).toBeUndefined();
    make("cache/mathllm/compile", 0o702);
    expect(cacheOf()).toBeUndefined();
  });

  test.each(["cache", "cache/mathllm", "cache/mathllm/compile"])("is not taken when %s is another user's", (name) => {
    make("cache/mathllm/compile", 0o755);
    makeForeign(path.join(folder, name));
    expect(cacheOf()).toBeUndefined();
  });

  test("is not taken when it is a link or a file, or every user can change what it lies in", () => {
    const elsewhere = make("elsewhere", 0o700);
    make("cache/mathllm", 0o700);
    symlinkSync(elsewhere, path.join(folder, "cache/mathllm/link"));
    expect(cacheOf("link")).toBeUndefined();
    make("cache/mathllm/file", 0o600, "");
    expect(cacheOf("file")).toBeUndefined();
    chmodSync(path.join(folder, "cache"), 0o777);
    expect(cacheOf()).toBeUndefined();
    expect(isOwnFolder(path.join(folder, "nothing"))).toBe(false);
  });

  test("holds no Redis binary that another user can change", async () => {
    const ran = path.join(folder, "ran");
    make("cache/mathllm/redis/bin/redis-server", 0o755, `#!/bin/sh\ntouch ${ran}\necho 'Redis server v=7.0.15'\n`);
    chmodSync(path.join(folder, "cache/mathllm/redis"), 0o777);
    const env = { PATH: "", XDG_CACHE_HOME: path.join(folder, "cache"), REDISMS_DOWNLOAD_MIRROR: "http://127.0.0.1:1" };
    vi.spyOn(os, "tmpdir").mockReturnValue(folder);
    await expect(findRedisBinary({ env, log: () => {} })).rejects.toMatchObject({ code: "redis-binary-missing" });
    expect(existsSync(ran)).toBe(false);
  });
});

describe("a .env", () => {
  const read = () => {
    loadEnvFile();
    return process.env.MATHLLM_TEST_SETTING;
  };
  const TEXT = "MATHLLM_TEST_SETTING=read\n";

  test("of ours is read, also by a link and in a folder like /tmp; without one nothing happens", () => {
    expect(read()).toBeUndefined();
    symlinkSync(make("shared.env", 0o640, TEXT), path.join(folder, ".env"));
    chmodSync(folder, 0o1777);
    expect(read()).toBe("read");
  });

  test("that our own group can change is read", () => {
    const file = make(".env", 0o660, TEXT);
    chownSync(file, uid, gid);
    expect(read()).toBe("read");
  });

  const refusal = (what: RegExp) => {
    expect(read).toThrow(expect.objectContaining({ code: "invalid-configuration" }));
    expect(read).toThrow(what);
    expect(process.env.MATHLLM_TEST_SETTING).toBeUndefined();
  };

  test("of another user is refused with whose it is and what to do", () => {
    makeForeign(make(".env", 0o644, TEXT));
    refusal(/\.env.* belongs to another user \(uid \d+, not \d+\)\. Look at what it says, then make both yours \(chown, chmod go-w\)/);
  });

  test("in the folder of another user, or by a link to theirs, is refused", () => {
    const theirs = make("theirs/shared.env", 0o644, TEXT);
    symlinkSync(theirs, path.join(folder, ".env"));
    makeForeign(path.dirname(theirs));
    // To who isn't root everything is somebody else's now, the folder of the link first.
    refusal(uid === 0 ? /theirs belongs to another user/ : /belongs to another user/);
  });

  test("that every user can change, or in such a folder, is refused", () => {
    make(".env", 0o666, TEXT);
    refusal(/\.env can be changed by every user \(mode 0666\)/);
    chmodSync(path.join(folder, ".env"), 0o600);
    chmodSync(folder, 0o777);
    refusal(/can be changed by every user \(mode 0777\)/);
  });

  test.runIf(uid === 0)("that a group of others can change is refused", () => {
    chownSync(make(".env", 0o660, TEXT), uid, OTHER);
    refusal(/can be changed by the group 4242/);
  });

  test("that is no file is refused", () => {
    make(".env", 0o700);
    refusal(/to be a file of settings/);
  });
});

test("a DATA_DIR of another user, or its redis folder, is refused with what to do", async () => {
  const dataDir = path.join(folder, "data");
  await makeDataDir(dataDir);
  expect(statSync(dataDir).mode & 0o777).toBe(0o700);
  makeForeign(path.join(dataDir, "redis"));
  await expect(makeDataDir(dataDir)).rejects.toThrow(/DATA_DIR: expected a folder of yours.*belongs to another user.*chown -R/);
});
