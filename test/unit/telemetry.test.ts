import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  linkSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { readConfig } from "../../queues/config.ts";
import { Telemetry } from "../../workers/gpu/telemetry.ts";

let folder: string;
let file: string;
const { uid } = os.userInfo();

beforeEach(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), "mathllm-telemetry-"));
  file = path.join(folder, "data", "telemetry.jsonl");
});
afterEach(() => {
  vi.restoreAllMocks();
  rmSync(folder, { recursive: true, force: true });
});

/** Writes two records and closes. Resolves with what the log got. */
async function written(to: string): Promise<Record<string, unknown>[]> {
  const lines: string[] = [];
  const telemetry = new Telemetry(to, pino({}, { write: (text: string) => void lines.push(text) }));
  telemetry.write("sample", { a: 1 });
  telemetry.write("job", { b: 2 });
  await telemetry.close();
  telemetry.write("job", { late: true });
  await telemetry.close();
  return lines.map((line) => JSON.parse(line));
}

test("lies in DATA_DIR unless it is told elsewhere, absolute", () => {
  expect(readConfig({ DATA_DIR: "/data" }).telemetryLog).toBe("/data/telemetry.jsonl");
  expect(readConfig({}).telemetryLog).toBe(path.resolve(".mathllm/telemetry.jsonl"));
  expect(readConfig({ DATA_DIR: "/data", TELEMETRY_LOG: "x/t.jsonl" }).telemetryLog).toBe(path.resolve("x/t.jsonl"));
});

test("its folder and file are made, for us alone", async () => {
  expect(await written(file)).toEqual([]);
  expect(readFileSync(file, "utf8").trim().split("\n")).toHaveLength(3);
  expect([statSync(path.dirname(file)).mode & 0o777, statSync(file).mode & 0o777]).toEqual([0o700, 0o600]);
});

describe("what is no file of ours is left alone, and said once in a line, without a stack", () => {
  const expectRefused = async (to: string, reason: RegExp) => {
    const lines = await written(to);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatchObject({ level: 40, path: to, reason: expect.stringMatching(reason) });
    expect(lines[0]!.msg).toMatch(/^telemetry is off.*TELEMETRY_LOG/);
    expect(JSON.stringify(lines)).not.toMatch(/stack|\bat /);
  };

  test("a FIFO that nobody reads, and one that is read", async () => {
    const fifo = path.join(folder, "fifo");
    execFileSync("mkfifo", [fifo]);
    await expectRefused(fifo, /ENXIO|no regular file/);
    const reader = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
    await expectRefused(fifo, /no regular file/);
    closeSync(reader);
  });

  test("another user's file", async () => {
    const theirs = path.join(folder, "theirs");
    writeFileSync(theirs, "");
    chmodSync(theirs, 0o666);
    if (uid === 0) chownSync(theirs, 4242, 4242);
    else vi.spyOn(process, "getuid").mockReturnValue(uid + 1);
    await expectRefused(theirs, /belongs to another user/);
    expect([readFileSync(theirs, "utf8"), statSync(theirs).mode & 0o777]).toEqual(["", 0o666]);
  });

  test("a link, a second name of another file, a folder, and what lies below a file", async () => {
    const other = path.join(folder, "other");
    writeFileSync(other, "");
    symlinkSync(other, path.join(folder, "link"));
    await expectRefused(path.join(folder, "link"), /ELOOP/);
    linkSync(other, path.join(folder, "hard"));
    await expectRefused(path.join(folder, "hard"), /another name/);
    await expectRefused(folder, /EISDIR/);
    await expectRefused(path.join(other, "x"), /ENOTDIR|EEXIST/);
    expect(readFileSync(other, "utf8")).toBe("");
  });
});
