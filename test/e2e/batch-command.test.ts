import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { outputLineSchema } from "../../producers/batch-output.ts";
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

async function end(child: ChildProcess): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const [stdout, stderr] = await Promise.all([text(child.stdout!), text(child.stderr!), once(child, "close")]);
  return { code: child.exitCode, stdout, stderr };
}

const put = (name: string, content: string) => writeFile(path.join(folder, name), content);
const linesOf = async (name: string) =>
  (await readFile(path.join(folder, name), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => outputLineSchema.parse(JSON.parse(line)));

test("CSV in, JSONL out in its order, what fails beside, a summary and exit code 1", async () => {
  await put("in.csv", 'q,a,n\n1,1,one\n"fail, once",,two\n"3\n+",,three\n,4,four\n5,6,one\n7,8,seven\n');
  system.work();
  const { code, stdout, stderr } = await end(start(["in.csv", "-o", "out.jsonl", "--map", "problem=q,answer=a,id=n", "--max-tokens", "9"]));
  expect(code).toBe(1);
  expect(stdout).toBe(
    "3 of 6 completed: out.jsonl\n1 of 2 right: 50.0 % (95 % interval 9.5 % to 90.5 %)\n3 failed: out.jsonl.errors.jsonl\n",
  );
  expect(stderr).toMatch(/sending 5 of 5\n(.*\n)*.*running 5 of 5 {2}2 failed {2}50.0 % right\n/);
  expect((await linesOf("out.jsonl")).map(({ custom_id, line, result }) => [custom_id, line, result?.answer])).toEqual([
    ["one", 2, "1"],
    ["three", 4, "3\n+"],
    ["seven", 8, "7"],
  ]);
  expect((await linesOf("out.jsonl.errors.jsonl")).map(({ line, error }) => [line, error?.code])).toEqual([
    [3, "engine-refused"],
    [6, "invalid-request"],
    [7, "invalid-request"],
  ]);
  expect((await readdir(folder)).sort()).toEqual(["in.csv", "out.jsonl", "out.jsonl.errors.jsonl"]);
  const [job] = await system.queues.student.getJobs(["completed"]);
  expect(job!.data.sampling).toEqual({ temperature: 0, maxTokens: 9 });
});

test("interrupted, killed, and the API restarted: the same command completes the output, and nothing is computed twice", async () => {
  await put("in.jsonl", jsonl(problems(30)));
  let begun = 0;
  const held = Promise.withResolvers<void>();
  system.work("student", async () => {
    if (++begun > 5) await held.promise;
  });
  const command = ["in.jsonl", "-o", "out.jsonl", "--json"];
  const openBatches = () => system.queues.redis.smembers(keys.openBatches);
  const first = start(command);
  const outcome = end(first);
  await until(async () => (await openBatches()).length).toBe(1);
  const [batchId] = await openBatches();
  await until(async () => (await system.view(batchId!)).counts.completed).toBe(5);
  first.kill("SIGINT");
  expect(await outcome).toMatchObject({ code: 1, stdout: "", stderr: expect.stringContaining("Stopped. What was sent goes on") });
  const part = path.join(folder, "out.jsonl.part");
  await rm(part);
  const second = start(command);
  // As far as it comes: five results, in order.
  await until(async () => (await readFile(part, "utf8").catch(() => "")).split("\n").length).toBe(6);
  second.kill("SIGKILL");
  await once(second, "close");
  expect(await readdir(folder)).not.toContain("out.jsonl");
  await system.api.close();
  held.resolve();
  await system.startApi();
  const { code, stdout } = await end(start(command));
  expect([code, JSON.parse(stdout)]).toMatchObject([0, { batchId, lines: 30, completed: 30, failed: 0 }]);
  expect((await linesOf("out.jsonl")).map(({ result }) => result?.answer)).toEqual(problems(30).map(({ problem }) => problem));
  expect([begun, (await system.queues.student.getJobCounts("completed")).completed]).toEqual([30, 30]);
});

test.each<[string[], RegExp]>([
  [["in.jsonl"], /--output/],
  [["in.jsonl", "-o", "out", "--explain", "--model", "talker"], /--explain with --model student/],
])("wrong usage: batch %j", async (args, message) => {
  expect(await end(start(args))).toMatchObject({ code: 2, stdout: "", stderr: expect.stringMatching(message) });
});
