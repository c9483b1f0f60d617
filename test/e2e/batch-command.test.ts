import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import type { BatchSummary } from "../../producers/batch.ts";
import { type OutputLine, outputLineSchema } from "../../producers/batch-output.ts";
import { keys } from "../../queues/names.ts";
import { BatchFixture, jsonl, problems, until } from "../batch-fixture.ts";

const main = path.join(import.meta.dirname, "../../mathllm.ts");
let system: BatchFixture;
let folder: string;

beforeAll(async () => {
  system = await BatchFixture.start();
});
beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-batch-"));
});
afterEach(async () => {
  await system.clear();
  await rm(folder, { recursive: true, force: true });
});
afterAll(() => system?.stop());

function start(args: string[]): ChildProcess {
  return spawn(process.execPath, [main, "batch", ...args, "--url", system.api.url], { cwd: folder, timeout: 60_000 });
}

async function batch(args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = start(args);
  const [stdout, stderr] = await Promise.all([text(child.stdout!), text(child.stderr!), once(child, "close")]);
  return { code: child.exitCode ?? -1, stdout, stderr };
}

const summaryOf = ({ stdout }: { stdout: string }) => JSON.parse(stdout) as BatchSummary;
const put = (name: string, content: string) => writeFile(path.join(folder, name), content);
const linesOf = async (name: string): Promise<OutputLine[]> =>
  (await readFile(path.join(folder, name), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => outputLineSchema.parse(JSON.parse(line)));
const jobCount = async () => {
  const counts = await system.queues.student.getJobCounts("completed", "failed", "prioritized", "active");
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
};

test("CSV in, JSONL out in its order, what fails beside; run again it sends what is missing alone", async () => {
  await put("in.csv", 'q,a,n\n1,1,one\n"fail, once",,two\n"3\n",,three\n,4,four\n5,6,one\n7,7,seven\n');
  system.work();
  const args = ["in.csv", "-o", "out.jsonl", "--map", "problem=q,answer=a,id=n", "--max-tokens", "9", "--json"];
  const first = await batch(args);
  expect([first.code, first.stderr]).toEqual([1, expect.stringMatching(/sending 5 of 5\n(.*\n)*.*running 5 of 5 {2}2 failed/)]);
  expect(summaryOf(first)).toMatchObject({ lines: 6, completed: 3, failed: 3, before: 0, accuracy: { graded: 2, equal: 2, accuracy: 1 } });
  const done = [
    ["one", 2, "1"],
    ["three", 4, "3\n"],
    ["seven", 8, "7"],
  ];
  const seen = async () => (await linesOf("out.jsonl")).map(({ custom_id, line, result }) => [custom_id, line, result?.answer]);
  expect(await seen()).toEqual(done);
  expect((await linesOf("out.jsonl.errors.jsonl")).map(({ line, error }) => [line, error?.code])).toEqual([
    [3, "engine-refused"],
    [6, "invalid-request"],
    [7, "invalid-request"],
  ]);
  expect((await system.queues.student.getJobs(["completed"]))[0]!.data.sampling).toMatchObject({ maxTokens: 9 });
  await system.queues.student.clean(0, 0, "failed");
  const second = await batch(args);
  expect([second.code, await jobCount()]).toEqual([1, 4]);
  expect(summaryOf(second)).toMatchObject({ completed: 3, before: 3, failed: 3, accuracy: { graded: 2 } });
  expect(await seen()).toEqual(done);
  expect((await readdir(folder)).sort()).toEqual(["in.csv", "out.jsonl", "out.jsonl.errors.jsonl"]);
});

test("a line that failed before is put into its place when it succeeds, and the errors are gone", async () => {
  await put("in.jsonl", jsonl(problems(4)));
  let broken = true;
  system.work("student", async ({ problem }) => {
    if (broken && problem === "p 1") throw new Error("engine-refused: for now");
  });
  expect(await batch(["in.jsonl", "-o", "out.jsonl"])).toMatchObject({
    code: 1,
    stdout: "3 of 4 completed: out.jsonl\n1 failed: out.jsonl.errors.jsonl\n",
  });
  broken = false;
  expect(await batch(["in.jsonl", "-o", "out.jsonl"])).toMatchObject({
    code: 0,
    stdout: "4 of 4 completed (3 from an earlier run): out.jsonl\n",
  });
  expect((await linesOf("out.jsonl")).map(({ custom_id }) => custom_id)).toEqual(["p0", "p1", "p2", "p3"]);
  expect((await readdir(folder)).sort()).toEqual(["in.jsonl", "out.jsonl"]);
});

test.each(["SIGKILL", "SIGINT"] as const)(
  "stopped by %s and the API restarted: the same command completes the output, nothing is computed twice",
  async (signal) => {
    await put("in.jsonl", jsonl(problems(30)));
    let begun = 0;
    const held = Promise.withResolvers<void>();
    system.work("student", async () => {
      if (++begun > 5) await held.promise;
    });
    const args = ["in.jsonl", "-o", "out.jsonl"];
    const child = start(args);
    const stderr = text(child.stderr!);
    const [batchId] = await until(() => system.queues.redis.smembers(keys.openBatches))
      .toHaveLength(1)
      .then(() => system.queues.redis.smembers(keys.openBatches));
    await until(async () => (await system.view(batchId!)).counts.completed).toBe(5);
    child.kill(signal);
    await once(child, "close");
    if (signal === "SIGINT") expect([child.exitCode, await stderr]).toEqual([1, expect.stringContaining("Stopped. What was sent goes on")]);
    expect(await readdir(folder)).not.toContain("out.jsonl");
    await system.api.close();
    held.resolve();
    await system.startApi();
    expect(summaryOf(await batch([...args, "--json"]))).toMatchObject({ batchId, lines: 30, completed: 30, failed: 0 });
    expect((await linesOf("out.jsonl")).map(({ result }) => result?.answer)).toEqual(problems(30).map(({ problem }) => problem));
    expect([begun, await jobCount()]).toEqual([30, 30]);
    expect(summaryOf(await batch([...args, "--json"]))).toMatchObject({ batchId: null, completed: 30, before: 30 });
  },
);

test("requests of POST /solve keep their own fields; options are for the others", async () => {
  await put(
    "in.jsonl",
    jsonl([{ custom_id: "a", problem: "1", sampling: { maxTokens: 5 }, priority: "normal", timeoutMs: 60_000 }, { problem: "2" }]),
  );
  system.work();
  expect((await batch(["in.jsonl", "-o", "out.jsonl", "--priority", "interactive", "--temperature", "0.5", "--cache", "off"])).code).toBe(
    0,
  );
  const jobs = await system.queues.student.getJobs(["completed"]);
  const seen = jobs.map(({ data: { problem, priority, sampling, cache } }) => ({ problem, priority, sampling, cache }));
  expect(seen.sort((a, b) => (a.problem < b.problem ? -1 : 1))).toEqual([
    { problem: "1", priority: "normal", sampling: { maxTokens: 5, temperature: 0.5 }, cache: "off" },
    { problem: "2", priority: "interactive", sampling: { temperature: 0.5 }, cache: "off" },
  ]);
});

test.each<[string[], number, RegExp]>([
  [["in.jsonl"], 2, /--output/],
  [["in.jsonl", "-o", "out", "--explain", "--model", "talker"], 2, /--explain with --model student/],
  [["in.jsonl", "-o", "out", "--samples", "0"], 2, /whole number/],
  [["nothing.jsonl", "-o", "out"], 1, /there is none/],
  [["in.jsonl", "-o", "no/folder/out"], 1, /no\/folder\/out to be a file that can be written/],
  [["in.jsonl", "-o", "other"], 1, /Expected other to hold results of in.jsonl/],
  [["in.jsonl", "-o", "garbage"], 1, /Expected garbage to hold results of an earlier run; its line 1 is none/],
])("refused before anything is sent: batch %j", async (args, code, message) => {
  await put("in.jsonl", jsonl(problems(2)));
  const line = { custom_id: "other", line: 1, jobId: "j", status: "completed", result: null, error: null };
  await put("other", JSON.stringify(line));
  await put("garbage", "{");
  expect(await batch(args)).toMatchObject({ code, stdout: "", stderr: expect.stringMatching(message) });
  expect(await system.queues.redis.exists(keys.openBatches)).toBe(0);
});
