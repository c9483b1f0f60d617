import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { BatchView } from "../../queues/batch-contracts.ts";
import { CLASS_PRIORITY, keys } from "../../queues/names.ts";
import { BatchFixture, jsonl, problems, type UploadBody, unfinished, until } from "../batch-fixture.ts";
import { expectProblem } from "../problem-document.ts";

const DEPTH = 40;
let system: BatchFixture;

beforeAll(async () => {
  system = await BatchFixture.start({ BATCH_MAX_DEPTH: String(DEPTH) });
});
afterEach(() => system.clear());
afterAll(() => system?.stop());

describe("what is taken", () => {
  test("JSON: accepted, run as class batch, and the results come in the order of the lines with their custom_id", async () => {
    const requests = [
      { problem: "1", expected: "1" },
      { custom_id: "b", problem: "2", expected: "3" },
      { problem: "3", priority: "normal" },
    ];
    const batch = await system.accepted(JSON.stringify({ requests, metadata: { run: "7" } }), { type: "application/json" });
    expect(batch).toMatchObject({ status: "running", counts: { total: 3, waiting: 3, invalid: 0 }, metadata: { run: "7" }, errors: [] });
    const jobs = await system.queues.student.getJobs(["prioritized"]);
    expect(jobs.map(({ priority }) => priority).sort()).toEqual([CLASS_PRIORITY.normal, CLASS_PRIORITY.batch, CLASS_PRIORITY.batch]);
    system.work();
    expect(await system.ended(batch.batchId)).toMatchObject({
      status: "completed",
      counts: { total: 3, completed: 3, waiting: 0, active: 0 },
      accuracy: { graded: 2, equal: 1, different: 1, accuracy: 0.5, low: expect.closeTo(0.0945, 3), high: expect.closeTo(0.9055, 3) },
    });
    const all = await system.results(batch.batchId);
    expect(all.map(({ custom_id, index, status, result }) => [custom_id, index, status, result?.answer, result?.grade?.verdict])).toEqual([
      [null, 0, "completed", "1", "equal"],
      ["b", 1, "completed", "2", "different"],
      [null, 2, "completed", "3", undefined],
    ]);
    expect(await system.results(batch.batchId, "?from=2")).toEqual(all.slice(2));
  });

  test("streamed JSONL: bad lines are reported with their numbers, the others are taken", async () => {
    const huge = "x".repeat(300_000);
    const bad: [number, string, RegExp][] = [
      [2, "malformed-json", /Expected a JSON object on a line; got "\{\\"problem\\": \\"cut/],
      [3, "invalid-request", /problem: /],
      [4, "invalid-request", /Expected a JSON object; got an array/],
      [6, "body-too-large", /at most 262144 bytes/],
      [7, "malformed-json", /UTF-8/],
      [8, "invalid-request", /custom_id: .*index 0 has "same"/],
      [9, "invalid-request", /webhook/],
      [10, "invalid-request", /custom_id: .*string/],
    ];
    const body = Buffer.concat([
      Buffer.from(
        `${jsonl([{ custom_id: "same", problem: "1" }, '{"problem": "cut', { custom_id: "c", problem: " " }, "[]", "", { problem: huge }])}\n`,
      ),
      Buffer.from([0x7b, 0xff, 0x7d, 0x0a]),
      Buffer.from(
        jsonl([
          { custom_id: "same", problem: "2" },
          { problem: "3", webhook: { url: "http://a" } },
          { custom_id: 4, problem: "4" },
          { problem: "5" },
        ]),
      ),
    ]);
    const batch = await system.accepted(body);
    expect(batch.counts).toMatchObject({ total: 10, invalid: 8, waiting: 2 });
    expect(batch.errors.map(({ line, error }) => [line, error.code])).toEqual(bad.map(([line, code]) => [line, code]));
    for (const [i, [, , detail]] of bad.entries()) expect(batch.errors[i]!.error.detail).toMatch(detail);
    expect(batch.errors[1]).toMatchObject({ index: 2, custom_id: "c" });
    expect(await system.errors(batch.batchId)).toEqual(batch.errors);
    expect((await system.results(batch.batchId)).map(({ index, status }) => [index, status])).toEqual([
      [0, "waiting"],
      [9, "waiting"],
    ]);
  });

  test("more bad lines than an answer shows are all at its link, and a batch without a good line is complete", async () => {
    const batch = await system.accepted(jsonl(Array.from({ length: 250 }, (_, i) => ({ custom_id: `${i}` }))));
    expect([batch.counts.invalid, batch.errors.length]).toEqual([250, 100]);
    expect((await system.errors(batch.batchId)).map(({ custom_id }) => custom_id)).toEqual(Array.from({ length: 250 }, (_, i) => `${i}`));
    expect((await system.ended(batch.batchId)).status).toBe("completed");
    expect(await system.results(batch.batchId)).toEqual([]);
  });

  test("defaults fill in what a line leaves out, in the query of JSONL and in the body of JSON", async () => {
    const defaults = { priority: "interactive", sampling: { maxTokens: 7, temperature: 1 }, metadata: { a: "b" } };
    const requests = [{ problem: "1" }, { problem: "2", priority: "normal", sampling: { temperature: 0.5 } }];
    await system.accepted(jsonl(requests), { query: `?defaults=${encodeURIComponent(JSON.stringify(defaults))}` });
    await system.accepted(JSON.stringify({ requests, defaults }), { type: "application/json" });
    const jobs = await system.queues.student.getJobs(["prioritized"]);
    const seen = jobs.map(({ data: { problem, priority, sampling, metadata } }) => ({ problem, priority, sampling, metadata }));
    const first = { problem: "1", priority: "interactive", sampling: { maxTokens: 7, temperature: 1 }, metadata: { a: "b" } };
    const second = { ...first, problem: "2", priority: "normal", sampling: { maxTokens: 7, temperature: 0.5 } };
    expect(seen.sort((a, b) => (a.problem < b.problem ? -1 : 1))).toEqual([first, first, second, second]);
  });

  test.each<[string, UploadBody, { type?: string; query?: string; key?: string }, number, string]>([
    ["another content type", "{}", { type: "text/csv" }, 415, "unsupported-media-type"],
    ["no requests", '{"requests": []}', { type: "application/json" }, 400, "invalid-request"],
    ["broken JSON", '{"requests": [', { type: "application/json" }, 400, "malformed-json"],
    ["no line", "\n \n", {}, 400, "invalid-request"],
    ["defaults that are no JSON", '{"problem": "1"}', { query: "?defaults=x" }, 400, "invalid-request"],
    ["defaults that are none", '{"problem": "1"}', { query: '?defaults={"problem":"1"}' }, 400, "invalid-request"],
    ["a key with a blank", '{"problem": "1"}', { key: "a b" }, 400, "invalid-request"],
  ])("refused: %s", async (_, body, options, status, code) => {
    await expectProblem(await system.upload(body, options), status, code);
    expect(await system.queues.redis.exists(keys.openBatches)).toBe(0);
  });

  test("unknown batches, methods and query values", async () => {
    for (const id of ["batch-000000000000000000000000", "x", "..%2f"]) {
      for (const path of ["", "/results", "/errors"])
        await expectProblem(await system.fetch(`/batches/${id}${path}`), 404, "unknown-batch");
      await expectProblem(await system.fetch(`/batches/${id}`, { method: "DELETE" }), 404, "unknown-batch");
    }
    const { batchId } = await system.accepted(jsonl(problems(1)));
    for (const query of ["from=-1", "from=x", "wait=61", "ended=2"])
      await expectProblem(await system.fetch(`/batches/${batchId}/results?${query}`), 400, "invalid-request");
    await expectProblem(await system.fetch(`/batches/${batchId}/results`, { method: "POST" }), 405, "method-not-allowed");
    await expectProblem(await system.fetch(`/batches`, { method: "PUT" }), 405, "method-not-allowed");
  });

  test("the latest batches, newest first", async () => {
    const ids = [];
    for (const name of ["a", "b", "c"]) ids.unshift((await system.accepted(jsonl(problems(1, name)))).batchId);
    const listed = async (query = "") =>
      ((await (await system.fetch(`/batches${query}`)).json()) as { batches: BatchView[] }).batches.map(({ batchId }) => batchId);
    expect(await listed()).toEqual(ids);
    expect(await listed("?limit=2")).toEqual(ids.slice(0, 2));
  });
});

describe("once, whatever breaks", () => {
  test("the same key and lines give the same batch; other lines, defaults or fewer lines are a conflict", async () => {
    const body = jsonl(problems(15));
    const first = await system.accepted(body, { key: "k" });
    const again = await system.upload(body, { key: "k" });
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(((await again.json()) as BatchView).batchId).toBe(first.batchId);
    expect(await system.waitingJobs()).toBe(15);
    for (const [other, query] of [
      [jsonl(problems(15, "q")), ""],
      [jsonl(problems(14)), ""],
      [jsonl(problems(16)), ""],
      [jsonl(problems(25)), ""],
      [jsonl(problems(10)), ""],
      [jsonl(problems(50_000, "large")), ""],
      [jsonl(problems(9)), ""],
      [body, '?defaults={}&metadata={"a":"b"}'],
    ] as const) {
      await expectProblem(await system.upload(other, { key: "k", query }), 409, "idempotency-conflict");
    }
    expect(await system.waitingJobs()).toBe(15);
    expect((await system.accepted(body)).batchId).not.toBe(first.batchId);
  });

  test("an upload that breaks keeps the whole chunks it had, and goes on with the same key without doubling a line", async () => {
    const all = problems(35);
    const half = unfinished(`${jsonl(all.slice(0, 25))}\n`);
    const broken = system.upload(half.body, { key: "k" }).catch(() => {});
    await until(() => system.waitingJobs()).toBe(20);
    half.break();
    await broken;
    const [batchId] = await system.queues.redis.smembers(keys.openBatches);
    expect(await system.view(batchId!)).toMatchObject({ status: "ingesting", counts: { total: 20 } });
    system.work();
    await until(async () => (await system.view(batchId!)).counts.completed).toBe(20);
    expect(await system.accepted(jsonl(all), { key: "k" })).toMatchObject({ batchId, counts: { total: 35 } });
    expect((await system.ended(batchId!)).counts).toMatchObject({ total: 35, completed: 35 });
    expect((await system.results(batchId!)).map(({ custom_id }) => custom_id)).toEqual(all.map(({ custom_id }) => custom_id));
    expect((await system.queues.student.getJobCounts("completed")).completed).toBe(35);
  });

  test("without a key a broken upload is a batch of the lines it had", async () => {
    const half = unfinished(`${jsonl(problems(25))}\n`);
    const broken = system.upload(half.body).catch(() => {});
    await until(() => system.waitingJobs()).toBe(20);
    half.break();
    await broken;
    const [batchId] = await system.queues.redis.smembers(keys.openBatches);
    await until(async () => (await system.view(batchId!)).status).toBe("running");
    system.work();
    expect((await system.ended(batchId!)).counts).toMatchObject({ total: 20, completed: 20 });
  });

  test("what a died upload had stored beyond its last chunk is found, not made again", async () => {
    const body = jsonl(problems(5));
    const { batchId } = await system.accepted(body, { key: "k" });
    system.work();
    await system.ended(batchId);
    // As if the API had died between storing the jobs and recording the chunk.
    const key = keys.batch(batchId);
    await system.queues.redis.hset(key, { total: 0, completed: 0 });
    await system.queues.redis.hdel(key, "uploadedAt", "finishedAt");
    await system.queues.redis.del(`${key}:digests`, `${key}:states`, `${key}:kinds`);
    const flights = () => system.queues.redis.keys(keys.flight("*"));
    await system.queues.redis.del(await flights());
    await system.queues.redis.sadd(keys.openBatches, batchId);
    const ends = async () => (await system.queues.student.getJobs(["completed"])).map(({ finishedOn }) => finishedOn!).sort();
    const before = await ends();
    await system.accepted(body, { key: "k" });
    expect((await system.ended(batchId)).counts).toMatchObject({ total: 5, completed: 5 });
    expect(await ends()).toEqual(before);
    // Nobody may follow a job that has ended.
    expect(await flights()).toEqual([]);
  });

  test("two uploads of the same at once make one batch", async () => {
    const body = jsonl(problems(35));
    const [a, b] = await Promise.all([system.accepted(body, { key: "k" }), system.accepted(body, { key: "k" })]);
    expect([a.batchId, a.counts.total, b.counts.total]).toEqual([b.batchId, 35, 35]);
    expect(await system.waitingJobs()).toBe(35);
  });

  test("several API processes count each line once", async () => {
    const { batchId } = await system.accepted(jsonl(problems(DEPTH)));
    const others = await Promise.all(Array.from({ length: 3 }, () => system.anotherApi()));
    system.work();
    const look = async () => {
      const responses = await Promise.all(others.map(({ url }) => fetch(`${url}/batches/${batchId}`)));
      const views = await Promise.all(responses.map(async (response) => (await response.json()) as BatchView));
      return views.every(({ timestamps }) => timestamps.finishedAt !== null);
    };
    await until(look).toBe(true);
    await Promise.all(others.map((api) => api.close()));
    expect((await system.view(batchId)).counts).toMatchObject({ total: DEPTH, completed: DEPTH, waiting: 0, active: 0 });
  });

  test("another API process goes on with what one left, counts included", async () => {
    const { batchId } = await system.accepted(jsonl(problems(12)));
    await system.api.close();
    system.work();
    await until(async () => (await system.queues.student.getJobCounts("completed")).completed).toBe(12);
    await system.startApi();
    await until(async () => system.queues.redis.sismember(keys.openBatches, batchId)).toBe(0);
    expect(await system.view(batchId)).toMatchObject({ status: "completed", counts: { completed: 12 } });
  });
});

describe("backpressure", () => {
  test("past the class's depth the upload is cut with what was accepted, and the same key goes on later", async () => {
    const body = jsonl(problems(DEPTH + 15));
    const refusal = await system.upload(body, { key: "k" });
    expect(Number(refusal.headers.get("retry-after"))).toBeGreaterThan(0);
    const problem = (await refusal.clone().json()) as { batchId: string; accepted: number };
    const { detail } = await expectProblem(refusal, 429, "queue-full");
    expect(problem.accepted).toBe(DEPTH);
    expect(detail).toMatch(/The first 40 lines were taken as batch-.* Send the same upload again with the same Idempotency-Key/);
    system.work();
    await until(() => system.waitingJobs()).toBe(0);
    expect(await system.accepted(body, { key: "k" })).toMatchObject({ batchId: problem.batchId, counts: { total: DEPTH + 15 } });
    expect((await system.ended(problem.batchId)).counts.completed).toBe(DEPTH + 15);
  });
});
