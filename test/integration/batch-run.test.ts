import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type BatchOptions, type BatchProgress, runBatch } from "../../producers/batch.ts";
import { outputLineSchema } from "../../producers/batch-output.ts";
import { ApiClient } from "../../producers/submit.ts";
import { publishModel } from "../../queues/answer-cache.ts";
import { keys } from "../../queues/names.ts";
import { BatchFixture, jsonl, problems, STUDENT, until } from "../batch-fixture.ts";

let system: BatchFixture;
let folder: string;

beforeAll(async () => {
  system = await BatchFixture.start({ BATCH_MAX_DEPTH: "40" });
});
beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-batch-"));
});
afterEach(async () => {
  await system.clear();
  await rm(folder, { recursive: true, force: true });
});
afterAll(() => system?.stop());

const put = (name: string, content: string) => writeFile(path.join(folder, name), content);
const run = (options: Partial<BatchOptions> = {}, onProgress: (progress: BatchProgress) => void = () => {}, signal?: AbortSignal) => {
  const { file = "in.jsonl", output = "out.jsonl", defaults = {}, map } = options;
  const files = { file: path.join(folder, file), output: path.join(folder, output) };
  return runBatch(new ApiClient(system.api.url), { ...files, defaults, map }, onProgress, signal);
};

/** A run that is broken off when `count` of its lines have ended. */
async function brokenOffAfter(count: number, options: Partial<BatchOptions> = {}): Promise<string> {
  const stopped = new AbortController();
  let batchId = "";
  const running = run(
    options,
    (progress) => {
      if (progress.phase !== "running") return;
      batchId = progress.batch.batchId;
      if (progress.batch.counts.completed >= count) stopped.abort(new Error("stopped"));
    },
    stopped.signal,
  );
  await expect(running).rejects.toThrow("stopped");
  return batchId;
}

/** Runs to the end. What was said of an earlier run's batch comes with the summary. */
async function runTelling(options: Partial<BatchOptions> = {}): Promise<{ said: [string, string][]; batchId: string | null }> {
  const said: [string, string][] = [];
  const { batchId } = await run(options, (progress) => {
    if (progress.phase === "going on" || progress.phase === "starting anew") said.push([progress.phase, progress.batch.batchId]);
  });
  return { said, batchId };
}
const linesOf = async (name: string) =>
  (await readFile(path.join(folder, name), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => outputLineSchema.parse(JSON.parse(line)));

test("run again it sends what is missing alone, and puts it into its place; the errors go when there are none", async () => {
  await put("in.jsonl", jsonl(problems(5)));
  let broken = true;
  let begun = 0;
  system.work("student", async ({ problem }) => {
    begun++;
    if (broken && ["p 1", "p 3"].includes(problem)) throw new Error("engine-refused: for now");
  });
  expect(await run()).toMatchObject({ lines: 5, completed: 3, failed: 2, before: 0 });
  expect((await linesOf("out.jsonl.errors.jsonl")).map(({ custom_id }) => custom_id)).toEqual(["p1", "p3"]);
  expect([await run(), begun]).toMatchObject([{ completed: 3, failed: 2, before: 3 }, 7]);
  broken = false;
  expect([await run(), begun]).toMatchObject([{ completed: 5, failed: 0, before: 3, errorsFile: null }, 9]);
  const done = await linesOf("out.jsonl");
  expect(done.map(({ custom_id, line, result }) => [custom_id, line, result?.answer])).toEqual(
    problems(5).map(({ custom_id, problem }, i) => [custom_id, i + 1, problem]),
  );
  expect([await run(), begun]).toMatchObject([{ batchId: null, completed: 5, before: 5 }, 9]);
  expect([await linesOf("out.jsonl"), (await readdir(folder)).sort()]).toEqual([done, ["in.jsonl", "out.jsonl"]]);
});

test("lines that the file or the API refuses stand beside those that fail, in order, with their lines", async () => {
  const [a, b, c] = problems(3);
  await put(
    "in.jsonl",
    `${jsonl([a!, "{", { ...b, custom_id: "p0" }, "", { problem: "fail" }, { ...c, model: "nobody" }, { problem: "4", extra: 1 }])}\n`,
  );
  system.work();
  expect(await run()).toMatchObject({ lines: 6, completed: 2, failed: 4 });
  expect((await linesOf("out.jsonl")).map(({ line, custom_id }) => [line, custom_id])).toEqual([
    [1, "p0"],
    [7, "line-7"],
  ]);
  const errors = await linesOf("out.jsonl.errors.jsonl");
  expect(errors.map(({ line, error }) => [line, error?.detail])).toEqual([
    [2, expect.stringContaining("Expected a JSON object on a line")],
    [3, expect.stringContaining("the line with index 0 has")],
    [5, "it does not like it"],
    [6, expect.stringContaining("model: ")],
  ]);
});

test("requests of POST /solve keep their own fields; options are for the others", async () => {
  await put("in.jsonl", jsonl([{ problem: "1", sampling: { maxTokens: 5 }, priority: "normal", timeoutMs: 60_000 }, { problem: "2" }]));
  system.work();
  await run({ defaults: { priority: "interactive", sampling: { temperature: 0.5 }, cache: "off" } });
  const jobs = await system.queues.student.getJobs(["completed"]);
  const seen = jobs.map(({ data: { problem, priority, sampling, cache } }) => ({ problem, priority, sampling, cache }));
  expect(seen.sort((a, b) => (a.problem < b.problem ? -1 : 1))).toEqual([
    { problem: "1", priority: "normal", sampling: { maxTokens: 5, temperature: 0.5 }, cache: "off" },
    { problem: "2", priority: "interactive", sampling: { temperature: 0.5 }, cache: "off" },
  ]);
});

test("a file that is larger than the queue may be waits for room, and is sent and read as it goes", async () => {
  await put("in.jsonl", jsonl(problems(200)));
  system.work();
  const sent: number[] = [];
  expect(
    await run({}, (progress) => {
      if (progress.phase === "running") sent.push(progress.batch.counts.total);
    }),
  ).toMatchObject({ lines: 200, completed: 200 });
  expect((await linesOf("out.jsonl")).map(({ line }) => line)).toEqual(problems(200).map((_, i) => i + 1));
  expect(new Set(sent)).toEqual(new Set([200]));
});

test.each<[string, Partial<BatchOptions>, RegExp]>([
  ["no file", { file: "nothing.jsonl" }, /there is none/],
  ["an output that can't be written", { output: "no/folder/out" }, /no\/folder\/out to be a file that can be written/],
  ["a folder as output", { output: "folder" }, /folder to be a file that can be read; EISDIR/],
  ["another input's output", { output: "other" }, /Expected .*other to hold results of .*in.jsonl/],
  ["an output that is none", { output: "garbage" }, /Expected .*garbage to hold results of an earlier run; its line 1 is none/],
])("refused before anything is sent: %s", async (_, options, message) => {
  await put("in.jsonl", jsonl(problems(2)));
  await mkdir(path.join(folder, "folder"));
  await put("other", JSON.stringify({ custom_id: "other", line: 1, jobId: "j", status: "completed", result: null, error: null }));
  await put("garbage", "{");
  await expect(run(options)).rejects.toThrow(message);
  expect(await system.queues.redis.exists(keys.openBatches)).toBe(0);
});

describe("which batch a run is about", () => {
  const publish = (digest: string) => publishModel(system.queues.redis, "student", { ...STUDENT, digest, settings: digest });
  const off = { defaults: { cache: "off" as const } };

  /** Ends jobs from now on, but no more than `most` of them before `release`. Returns how many were begun. */
  function workUpTo(most: number): { begun: () => number; release: () => void } {
    const { promise, resolve } = Promise.withResolvers<void>();
    let begun = 0;
    system.work("student", async () => {
      if (++begun > most) await promise;
    });
    return { begun: () => begun, release: resolve };
  }

  test("each output is a batch of its own: removed, or under another name, all is computed anew", async () => {
    await put("in.jsonl", jsonl(problems(3)));
    const { begun } = workUpTo(100);
    const first = await runTelling(off);
    await rm(path.join(folder, "out.jsonl"));
    const again = await runTelling(off);
    const other = await runTelling({ ...off, output: "other.jsonl" });
    expect(new Set([first, again, other].map(({ batchId }) => batchId)).size).toBe(3);
    expect([first.said, again.said, other.said, begun()]).toEqual([[], [], [], 9]);
    expect((await readdir(folder)).sort()).toEqual(["in.jsonl", "other.jsonl", "out.jsonl"]);
  });

  test("broken off, it goes on with its batch, and says so; its view tells the model", async () => {
    await put("in.jsonl", jsonl(problems(8)));
    const work = workUpTo(3);
    const batchId = await brokenOffAfter(3, off);
    work.release();
    expect(await runTelling(off)).toEqual({ said: [["going on", batchId]], batchId });
    expect(work.begun()).toBe(8);
    expect((await system.view(batchId)).models).toEqual([{ role: "student", ...STUDENT, current: true }]);
  });

  test("broken off, and the model changed: all lines are sent anew, and the rest of the old batch is cancelled", async () => {
    await put("in.jsonl", jsonl(problems(8)));
    const work = workUpTo(3);
    const old = await brokenOffAfter(3, off);
    await publish("of another file");
    const running = runTelling(off);
    await until(async () => (await system.view(old)).timestamps.cancelledAt).not.toBeNull();
    work.release();
    const { said, batchId } = await running;
    expect([said, batchId === old]).toEqual([[["starting anew", old]], false]);
    expect((await system.view(old)).models).toContainEqual({ role: "student", ...STUDENT, current: false });
    expect((await system.view(batchId!)).models).toEqual([{ role: "student", ...STUDENT, digest: "of another file", current: true }]);
    expect(work.begun()).toBeGreaterThanOrEqual(11);
  });

  test("a model that was taken back, since its settings were changed, is not current before another is known", async () => {
    await put("in.jsonl", jsonl(problems(8)));
    const work = workUpTo(3);
    const old = await brokenOffAfter(3, off);
    await publishModel(system.queues.redis, "student", null);
    work.release();
    expect((await runTelling(off)).said).toEqual([["starting anew", old]]);
  });

  test("sent before any model was known, it has the models that come: one that is still there, then one that is not", async () => {
    await publishModel(system.queues.redis, "student", null);
    await put("in.jsonl", jsonl(problems(8)));
    const work = workUpTo(3);
    const batchId = await brokenOffAfter(0, off);
    expect((await system.view(batchId)).models).toEqual([]);
    await publish("the first");
    const digests = async () => (await system.view(batchId)).models.map(({ digest, current }) => [digest, current]).sort();
    await until(digests).toEqual([["the first", true]]);
    expect(await brokenOffAfter(3, off)).toBe(batchId);
    await publish("the second");
    await until(digests).toEqual([
      ["the first", false],
      ["the second", true],
    ]);
    work.release();
    expect((await runTelling(off)).said).toEqual([["starting anew", batchId]]);
  });

  test("another model's change does not matter, and other options are another batch", async () => {
    await put("in.jsonl", jsonl(problems(8)));
    const work = workUpTo(3);
    const batchId = await brokenOffAfter(3, off);
    await publishModel(system.queues.redis, "talker", { ...STUDENT, digest: "t", settings: "t" });
    expect(await brokenOffAfter(3, off)).toBe(batchId);
    work.release();
    const { said, batchId: otherId } = await runTelling({ defaults: { ...off.defaults, sampling: { maxTokens: 7 } } });
    expect([said, otherId === batchId]).toEqual([[], false]);
  });
});
