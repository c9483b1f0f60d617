import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { AnswerCache } from "../../queues/answer-cache.ts";
import { solveKey } from "../../queues/cache-key.ts";
import { cancelledAt } from "../../queues/cancellation.ts";
import { type JobView, jobViewSchema, solveRequestSchema } from "../../queues/contracts.ts";
import { keys } from "../../queues/names.ts";
import { BatchFixture, jsonl, problems, STUDENT, unfinished, until } from "../batch-fixture.ts";
import { expectProblem } from "../problem-document.ts";
import { stageResult } from "../stand-in-worker.ts";

/** Of a quarter of the depth. */
const CHUNK_LINES = 25;
let system: BatchFixture;

beforeAll(async () => {
  system = await BatchFixture.start({ BATCH_MAX_DEPTH: String(4 * CHUNK_LINES) });
});
afterEach(() => system.clear());
afterAll(() => system?.stop());

/** Lets through as many jobs as it is told, in the order in which they come. */
class Turnstile {
  #passes = 0;
  readonly #queue: (() => void)[] = [];
  readonly wait = () =>
    new Promise<void>((resolve) => {
      this.#queue.push(resolve);
      this.#open();
    });
  let(count: number): void {
    this.#passes += count;
    this.#open();
  }
  #open(): void {
    while (this.#passes > 0 && this.#queue.length > 0) {
      this.#passes--;
      this.#queue.shift()!();
    }
  }
}

describe("while it runs", () => {
  test("each line's state, the ended ones alone, or as they end in order", async () => {
    const { batchId } = await system.accepted(jsonl([{ problem: "fail" }, ...problems(9)]));
    const gate = new Turnstile();
    system.work("student", gate.wait);
    await until(async () => (await system.view(batchId)).counts).toMatchObject({ active: 4, waiting: 6 });
    gate.let(2);
    await until(async () => (await system.view(batchId)).counts).toMatchObject({ active: 4, waiting: 4, completed: 1, failed: 1 });
    const all = await system.results(batchId);
    expect(all.map(({ status }) => status)).toEqual([
      "failed",
      "completed",
      ...new Array(4).fill("active"),
      ...new Array(4).fill("waiting"),
    ]);
    expect(all[0]).toMatchObject({ result: null, error: { code: "engine-refused", detail: "it does not like it" } });
    expect((await system.results(batchId, "?ended=1")).map(({ index }) => index)).toEqual([0, 1]);
    expect((await system.results(batchId, "?wait=0")).map(({ index }) => index)).toEqual([0, 1]);
    const following = system.results(batchId, "?from=1&wait=60");
    gate.let(8);
    expect((await following).map(({ index, status }) => [index, status])).toEqual(
      Array.from({ length: 9 }, (_, i) => [i + 1, "completed"]),
    );
    expect((await system.ended(batchId)).counts).toMatchObject({ completed: 9, failed: 1, waiting: 0, active: 0 });
  });

  test("explanations, votes and texts for the Talker, whose jobs lie in both queues", async () => {
    const { batchId } = await system.accepted(
      jsonl([
        { problem: "1", explain: true },
        { problem: "2", model: "talker" },
        { problem: "3", samples: 3, sampling: { temperature: 1 }, expected: "3" },
        { problem: "fail", explain: true },
      ]),
    );
    expect((await system.view(batchId)).counts.waiting).toBe(4);
    const gate = new Turnstile();
    system.work("student", gate.wait);
    await until(async () => (await system.view(batchId)).counts.active).toBe(3);
    gate.let(100);
    system.work("talker");
    await system.ended(batchId);
    const [explained, talked, , failed] = await system.results(batchId);
    expect(explained).toMatchObject({ status: "completed", result: { answer: "1", explanation: "by the talker" } });
    expect(talked).toMatchObject({ status: "completed", result: { solution: null, explanation: "by the talker" } });
    expect(failed).toMatchObject({ status: "failed", error: { code: "engine-refused" } });
  });
});

describe("cancel", () => {
  test("what waits or runs is cancelled, what is done stays, and nothing is left in the queues", async () => {
    const { batchId } = await system.accepted(jsonl([...problems(6), { problem: "e", explain: true }]), { key: "k" });
    const gate = new Turnstile();
    system.work("student", gate.wait);
    await until(async () => (await system.view(batchId)).counts.active).toBe(4);
    gate.let(2);
    await until(async () => (await system.view(batchId)).counts).toMatchObject({ completed: 2, active: 4 });
    const response = await system.fetch(`/batches/${batchId}`, { method: "DELETE" });
    expect([response.status, ((await response.json()) as { status: string }).status]).toEqual([202, "cancelling"]);
    await until(async () => (await system.view(batchId)).counts).toMatchObject({ completed: 2, active: 4, cancelled: 1 });
    const running = (await system.results(batchId)).filter(({ status }) => status === "active");
    for (const { jobId } of running) expect(await cancelledAt(system.queues.redis, jobId)).not.toBeNull();
    // This worker hears nothing of it: what runs ends by itself, and counts as what it became.
    gate.let(100);
    system.work("talker");
    const batch = await system.ended(batchId);
    expect(batch.status).toBe("cancelled");
    expect(batch.counts.completed + batch.counts.cancelled).toBe(7);
    const all = await system.results(batchId);
    expect(all.filter(({ status }) => status === "completed").map(({ result }) => result?.answer)).toContain("p 0");
    expect(all.find(({ status }) => status === "cancelled")).toMatchObject({ result: null, error: { code: "cancelled" } });
    expect(await system.waitingJobs()).toBe(0);
    const again = await system.fetch(`/batches/${batchId}`, { method: "DELETE" });
    expect([again.status, ((await again.json()) as { status: string }).status]).toEqual([200, "cancelled"]);
  });

  test("with no worker alive everything waiting is gone at once", async () => {
    const { batchId } = await system.accepted(jsonl(problems(30)));
    await system.fetch(`/batches/${batchId}`, { method: "DELETE" });
    expect((await system.ended(batchId)).counts).toMatchObject({ total: 30, cancelled: 30 });
    expect(await system.waitingJobs()).toBe(0);
  });

  test("a request outside that followed one of its lines goes on by itself", async () => {
    const { batchId } = await system.accepted(jsonl([{ problem: "same" }, { problem: "same" }]));
    const follower = (await (
      await system.fetch("/solve", { method: "POST", headers: { "content-type": "application/json" }, body: '{"problem": "same"}' })
    ).json()) as { jobId: string };
    await system.fetch(`/batches/${batchId}`, { method: "DELETE" });
    expect((await system.ended(batchId)).counts).toMatchObject({ total: 2, cancelled: 2, coalesced: 1 });
    await until(() => system.waitingJobs()).toBe(1);
    system.work();
    await until(async () => ((await (await system.fetch(`/jobs/${follower.jobId}`)).json()) as JobView).status).toBe("completed");
  });

  test("an upload under way ends, and what it had stored beyond its last chunk is taken back", async () => {
    const upload = unfinished(`${jsonl(problems(CHUNK_LINES + 1))}\n`);
    const response = system.upload(upload.body, { key: "k" });
    await until(() => system.waitingJobs()).toBe(CHUNK_LINES);
    const [batchId] = await system.queues.redis.smembers(keys.openBatches);
    await until(async () => (await system.view(batchId!)).counts.total).toBe(CHUNK_LINES);
    await system.fetch(`/batches/${batchId}`, { method: "DELETE" });
    await until(() => system.waitingJobs()).toBe(0);
    upload.end();
    await expectProblem(await response, 409, "cancelled");
    expect((await system.ended(batchId!)).counts).toMatchObject({ total: CHUNK_LINES, cancelled: CHUNK_LINES });
    expect(await system.waitingJobs()).toBe(0);
    await expectProblem(await system.upload(jsonl(problems(CHUNK_LINES + 1)), { key: "k" }), 409, "cancelled");
  });
});

describe("computed once", () => {
  test("known answers become no jobs, identical lines follow the first, each graded for itself", async () => {
    const { redis } = system.queues;
    const cache = new AnswerCache(redis, { ttlSeconds: 60, maxBytes: 1e6 }, () => {});
    await cache.put(solveKey(STUDENT, solveRequestSchema.parse({ problem: "known" })), {
      result: { ...stageResult("student"), answer: "9" },
    });
    const batch = await system.accepted(
      jsonl([
        { problem: "known", expected: "9" },
        { problem: "new", expected: "new" },
        { problem: " known", expected: "8" },
        { problem: "new", expected: "old", timeoutMs: 60_000 },
        { problem: "new", cache: "off" },
        { problem: "fail" },
        { problem: "fail" },
      ]),
    );
    expect(batch.counts).toMatchObject({ total: 7, completed: 2, cached: 2, coalesced: 2, waiting: 5 });
    expect(await system.waitingJobs()).toBe(3);
    system.work();
    const { counts, accuracy } = await system.ended(batch.batchId);
    expect(counts).toMatchObject({ completed: 5, failed: 2 });
    expect(accuracy).toMatchObject({ graded: 4, equal: 2, different: 2 });
    // The cache may forget; the batch does not.
    await cache.clear();
    const all = await system.results(batch.batchId);
    const seen = all.map(({ status, result }) => [status, result?.answer, result?.cached, result?.coalesced, result?.grade?.verdict]);
    expect(seen).toEqual([
      ["completed", "9", true, false, "equal"],
      ["completed", "new", false, false, "equal"],
      ["completed", "9", true, false, "different"],
      ["completed", "new", false, true, "different"],
      ["completed", "new", false, false, undefined],
      ["failed", undefined, undefined, undefined, undefined],
      ["failed", undefined, undefined, undefined, undefined],
    ]);
  });

  test("a line follows a job outside, and one whose leader has ended or never came is computed", async () => {
    const { redis } = system.queues;
    const solve = (problem: string) =>
      system.fetch("/solve", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ problem }) });
    await solve("outside");
    const flight = keys.flight(solveKey(STUDENT, solveRequestSchema.parse({ problem: "never came" })));
    await redis.set(flight, `solve-${"0".repeat(32)} ${Date.now() - 60_000}`);
    const { batchId, counts } = await system.accepted(jsonl([{ problem: "outside" }, { problem: "never came" }]));
    expect(counts).toMatchObject({ waiting: 2, coalesced: 1 });
    system.work();
    await system.ended(batchId);
    expect((await system.results(batchId)).map(({ result }) => [result?.answer, result?.coalesced])).toEqual([
      ["outside", true],
      ["never came", false],
    ]);
  });
});

describe("what is kept", () => {
  test("results outlive their jobs' own retention while the batch runs, and go after the batch's", async () => {
    const { redis } = system.queues;
    const { batchId } = await system.accepted(jsonl(problems(3)), { key: "k" });
    const gate = new Turnstile();
    system.work("student", gate.wait);
    gate.let(2);
    await until(async () => (await system.view(batchId)).counts.completed).toBe(2);
    // BullMQ removes what is older than its retention whenever another job ends: a moment later than now plus the retention.
    const scores = await redis.zrange("{mathllm}:student:completed", "0", "-1", "WITHSCORES");
    expect(Math.min(Number(scores[1]), Number(scores[3]))).toBeGreaterThan(Date.now() + 86_400_000);
    const open = await redis.keys(`${keys.batch(batchId)}*`);
    expect(await Promise.all(open.map((key) => redis.ttl(key)))).toEqual(open.map(() => -1));
    gate.let(1);
    const { timestamps } = await system.ended(batchId);
    expect(timestamps.expiresAt! - timestamps.finishedAt!).toBe(60_000);
    await until(() => redis.sismember(keys.openBatches, batchId)).toBe(0);
    const ended = await redis.zrange("{mathllm}:student:completed", "0", "-1", "WITHSCORES");
    expect([1, 3, 5].map((i) => Number(ended[i]))).toEqual(new Array(3).fill(timestamps.finishedAt));
    for (const key of await redis.keys(`${keys.batch(batchId)}*`)) expect(await redis.ttl(key)).toBeGreaterThan(50);
    expect((await redis.keys("{mathllm}:idempotency:*")).length).toBe(1);
    const [line] = await system.results(batchId);
    expect(jobViewSchema.parse(await (await system.fetch(`/jobs/${line!.jobId}`)).json()).result).toEqual(line!.result);
  });

  test("a line whose job somebody removed is failed, not open for ever", async () => {
    const { batchId } = await system.accepted(jsonl(problems(2)));
    const [job] = await system.queues.student.getJobs(["prioritized"]);
    await job!.remove();
    system.work();
    expect((await system.ended(batchId)).counts).toMatchObject({ completed: 1, failed: 1 });
    expect((await system.results(batchId)).find(({ status }) => status === "failed")?.error?.code).toBe("unknown-job");
  });
});
