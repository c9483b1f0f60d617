import { readFile } from "node:fs/promises";
import path from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { AnswerCache } from "../../queues/answer-cache.ts";
import { type JobView, jobViewSchema } from "../../queues/contracts.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";
import { stageResult } from "../stand-in-worker.ts";

let system: GpuSystem;
let api: RunningApi;
const log = pino({ level: "silent" });

beforeEach(async () => {
  system = await startGpuSystem();
  api = await startApi({ config: system.configured({ PORT: "0" }), redisUrl: system.redis.url, log });
});

afterEach(async () => {
  await api.close();
  await system.stop();
});

async function post(body: object, headers: Record<string, string> = {}): Promise<{ status: number; body: JobView & { jobId: string } }> {
  const response = await fetch(`${api.url}/solve`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: (await response.json()) as JobView };
}

const ended = async (jobId: string): Promise<JobView> => (await (await fetch(`${api.url}/jobs/${jobId}?wait=30`)).json()) as JobView;
const solve = async (body: object) => ended((await post(body)).body.jobId);
const stats = async () => (await (await fetch(`${api.url}/cache`)).json()) as Record<string, number>;

/** The model answers, so that the worker has said which one it is. */
async function warmUp(): Promise<void> {
  await solve({ problem: "warm up", cache: "off", explain: true });
  await expect.poll(() => system.queues.redis.hlen("{mathllm}:models")).toBe(2);
}

test("a second identical request is answered at once with 200 and the finished view, without the GPU; its id can be asked for", async () => {
  await system.startWorker();
  await warmUp();
  const first = await solve({ problem: "What is 1 + 0?" });
  const served = system.gpu.served;
  const { status, body } = await post({ problem: "  What is 1 + 0? \r\n", metadata: { user: "b" }, priority: "interactive" });
  expect(status).toBe(200);
  const view = jobViewSchema.parse(body);
  expect(view).toMatchObject({
    status: "completed",
    priority: "interactive",
    metadata: { user: "b" },
    result: { cached: true, coalesced: false },
  });
  expect(view.result?.answer).toBe(first.result?.answer);
  expect(jobViewSchema.parse(await ended(view.jobId)).result).toEqual(view.result);
  expect(system.gpu.served).toBe(served);
  await expect.poll(stats).toMatchObject({ hit: 1, miss: 1, coalesced: 0, entries: 1 });
  const text = await (await fetch(`${api.url}/metrics`)).text();
  expect(text).toMatch(/mathllm_cache_requests_total\{outcome="hit"\} 1/);
});

test("a text that differs within, be it in its blanks, has an answer of its own, kept or in flight", async () => {
  const planted = "What  is  31 + 47?";
  system.gpu.answer = (prompt) => (prompt.includes(planted) ? "\\boxed{788}" : "\\boxed{78}");
  await system.startWorker();
  await warmUp();
  expect((await solve({ problem: planted })).result?.answer).toBe("788");
  for (const model of ["student", "talker"]) {
    for (const problem of ["What is 31 + 47?", "What is\t31 + 47?", "What\nis 31 + 47?", "What is 31 + 47\u200b?"]) {
      const { status, body } = await post({ problem, model });
      expect(status).toBe(202);
      expect((await ended(body.jobId)).result).toMatchObject({
        cached: false,
        coalesced: false,
        answer: model === "student" ? "78" : null,
      });
    }
  }
  system.gpu.serviceMs = () => 60_000;
  await post({ problem: "In  flight" });
  await expect.poll(() => system.gpu.engines.at(-1)?.serving).toBe(1);
  const { body } = await post({ problem: "In flight" });
  expect(await system.queues.student.getJob(body.jobId)).toBeDefined();
});

test("what another answer could come of is another entry: model, sampling, prompt; off and refresh do as they say", async () => {
  let answers = 0;
  system.gpu.answer = () => `\\boxed{${++answers}}`;
  await system.startWorker();
  await warmUp();
  const answerOf = async (body: object) => (await solve({ problem: "p", ...body })).result;
  const first = await answerOf({});
  expect((await post({ problem: "p" })).body.result?.answer).toBe(first?.answer);
  for (const other of [{ problem: "q" }, { model: "talker" }, { sampling: { temperature: 0, maxTokens: 7 } }, { cache: "off" }]) {
    expect((await answerOf(other))?.cached).toBe(false);
  }
  expect((await post({ problem: "p", sampling: { temperature: 1 } })).status).toBe(202);
  const fresh = await answerOf({ cache: "refresh" });
  expect(fresh?.answer).not.toBe(first?.answer);
  expect((await post({ problem: "p" })).body.result?.answer).toBe(fresh?.answer);
  const asked = { problem: "p", sampling: { temperature: 1 }, cache: "on" };
  const warm = await solve(asked);
  expect((await post(asked)).body.result?.answer).toBe(warm.result?.answer);
});

test("each stage is kept by itself: a known solution is explained without solving again", async () => {
  await system.startWorker();
  await warmUp();
  await solve({ problem: "p" });
  const before = system.gpu.loads.length;
  const explained = await solve({ problem: "p", explain: true });
  expect(explained).toMatchObject({
    status: "completed",
    result: { cached: false, explanation: expect.any(String), solution: expect.any(String) },
  });
  expect(explained.stages.map((stage) => [stage.model, stage.status, stage.attempts])).toEqual([
    ["student", "completed", 0],
    ["talker", "completed", 1],
  ]);
  expect(system.gpu.loads.slice(before)).toEqual(["talker"]);
  const { status, body } = await post({ problem: "p", explain: true });
  expect([status, body.result?.cached, body.result?.explanation]).toEqual([200, true, explained.result?.explanation]);
});

test("100 requests of 40 problems, all at once: 40 are computed, the other 60 get their answers", async () => {
  system.gpu.serviceMs = () => 20;
  await system.startWorker();
  await warmUp();
  const served = system.gpu.served;
  const answered = await Promise.all(
    Array.from({ length: 100 }, async (_, i) => {
      const { status, body } = await post({ problem: `problem ${i % 40}` });
      return status === 200 ? body : ended(body.jobId);
    }),
  );
  expect(answered.every((view) => view.status === "completed" && view.result !== null)).toBe(true);
  expect(new Set(answered.map((view) => view.jobId)).size).toBeGreaterThanOrEqual(40);
  expect(system.gpu.served - served).toBe(40);
  await expect.poll(async () => ((await stats()).hit ?? 0) + ((await stats()).coalesced ?? 0)).toBe(60);
});

test("whoever leads may leave: the answer still comes to those who followed; each has its own cancel and deadline", async () => {
  const { gpu, startWorker } = system;
  await startWorker();
  await warmUp();
  gpu.serviceMs = () => 60_000;
  const ids = [];
  for (let i = 0; i < 4; i++) ids.push((await post({ problem: "slow", ...(i === 3 ? { timeoutMs: 300 } : {}) })).body.jobId);
  const [leader, quits, stays, late] = ids as [string, string, string, string];
  await expect.poll(() => gpu.engines.at(-1)?.serving).toBe(1);
  expect((await ended(late)).error?.code).toBe("deadline-exceeded");
  await fetch(`${api.url}/jobs/${quits}`, { method: "DELETE" });
  expect((await ended(quits)).status).toBe("cancelled");
  expect(gpu.engines.at(-1)?.serving).toBe(1);
  gpu.serviceMs = () => 1;
  await fetch(`${api.url}/jobs/${leader}`, { method: "DELETE" });
  expect((await ended(leader)).status).toBe("cancelled");
  expect(await ended(stays)).toMatchObject({ jobId: stays, status: "completed" });
  expect((await ended(late)).error?.code).toBe("deadline-exceeded");
});

test("a follower whose leader never came becomes a job of its own", async () => {
  await system.startWorker();
  await warmUp();
  const gone = `solve-${"0".repeat(32)}`;
  const spy = await post({ problem: "orphan", cache: "on" });
  await ended(spy.body.jobId);
  await fetch(`${api.url}/cache`, { method: "DELETE" });
  const flights = async () => system.queues.redis.keys("{mathllm}:flight:*");
  expect(await flights()).toEqual([]);
  // Someone has claimed the flight and died before its job was there.
  const key = `{mathllm}:flight:${(await system.queues.student.getJob(spy.body.jobId))!.data.flightKey}`;
  await system.queues.redis.set(key, `${gone} ${Date.now()}`);
  const { body } = await post({ problem: "orphan" });
  expect((await (await fetch(`${api.url}/jobs/${body.jobId}`)).json()) as JobView).toMatchObject({ status: "waiting" });
  await system.queues.redis.set(
    `{mathllm}:follower:${body.jobId}`,
    (await system.queues.redis.get(`{mathllm}:follower:${body.jobId}`))!.replace(/"acceptedAt":\d+/, '"acceptedAt":1'),
  );
  await expect.poll(async () => (await ended(body.jobId)).status).toBe("completed");
});

test("a worker with another model takes the old one's publication back: nothing of it is served", async () => {
  const first = await system.startWorker();
  await warmUp();
  await solve({ problem: "p" });
  await first.stop(1000);
  await system.startWorker({ STUDENT_MODEL: path.join(import.meta.dirname, "../../models/draft.gguf") });
  await expect.poll(() => system.queues.redis.hexists("{mathllm}:models", "student")).toBe(0);
  await expect.poll(async () => (await post({ problem: "p" })).status).toBe(202);
});

test("the cache survives a restart of the API and the worker; with an Idempotency-Key the same comes again", async () => {
  const worker = await system.startWorker();
  await warmUp();
  await solve({ problem: "p" });
  await worker.stop(1000);
  await api.close();
  api = await startApi({ config: system.configured({ PORT: "0" }), redisUrl: system.redis.url, log });
  const key = { "idempotency-key": "k" };
  const first = await post({ problem: "p" }, key);
  expect([first.status, first.body.result?.cached]).toEqual([200, true]);
  expect(await post({ problem: "p" }, key)).toMatchObject({ status: 200, body: { jobId: first.body.jobId } });
  expect((await post({ problem: "other" }, key)).status).toBe(409);
  expect((await fetch(`${api.url}/cache/${first.body.jobId}`, { method: "DELETE" })).status).toBe(200);
  expect((await fetch(`${api.url}/jobs/${first.body.jobId}`)).status).toBe(404);
  expect((await post({ problem: "p" }, key)).status).toBe(202);
});

const cacheOf = (ttlSeconds: number, maxBytes: number) => new AnswerCache(system.redis.connect(), { ttlSeconds, maxBytes }, () => {});

test("entries expire after their TTL, by the clock they are asked with", async () => {
  const cache = cacheOf(60, 100_000);
  await cache.put("k", { result: stageResult("student") }, 1_000_000);
  expect((await cache.get("k", 1_059_999))?.result.answer).toBe("1");
  expect(await cache.get("k", 1_060_000)).toBeUndefined();
});

test("a poisoned entry is a miss", async () => {
  const cache = cacheOf(60, 100_000);
  await cache.put("k", { result: stageResult("student") });
  for (const poison of ["", "{", "null", '{"version":2}', '{"version":1,"storedAt":1,"expiresAt":9e15,"result":{"text":7}}']) {
    await system.queues.redis.set("{mathllm}:cache:entry:k", poison);
    expect(await cache.get("k")).toBeUndefined();
  }
});

test("the least recently used go when all together would be too large; the books stay right", async () => {
  const cache = cacheOf(3600, 6000);
  const put = (key: string, now: number) => cache.put(key, { result: { ...stageResult("student"), text: "x".repeat(500) } }, now);
  const now = Date.now();
  for (let i = 0; i < 5; i++) await put(`k${i}`, now + i);
  await cache.get("k0", now + 10);
  await cache.flush(now + 10);
  for (let i = 5; i < 8; i++) await put(`k${i}`, now + 20 + i);
  expect(await cache.get("k0", now + 30)).toBeDefined();
  expect(await cache.get("k1", now + 30)).toBeUndefined();
  const { bytes, entries } = await cache.stats();
  expect(bytes).toBeLessThanOrEqual(6000);
  const sizes = Object.values(await system.queues.redis.hgetall("{mathllm}:cache:sizes")).map(Number);
  expect([sizes.length, sizes.reduce((a, b) => a + b)]).toEqual([entries, bytes]);
  // Ten thousand years later all have expired: the next one clears them out.
  await put("k9", now + 1e12);
  expect(await cache.stats()).toMatchObject({ entries: 1 });
  expect(await cache.clear()).toBe(1);
  expect(await cache.stats()).toMatchObject({ entries: 0, bytes: 0 });
});

/** Every record of this kind so far. */
async function telemetry(kind: string): Promise<Record<string, unknown>[]> {
  const lines = (await readFile(path.join(system.redis.dataDir, "telemetry.jsonl"), "utf8")).trim().split("\n");
  return lines.map((line) => JSON.parse(line)).filter((record) => record.kind === kind);
}

test("telemetry tells of no job for a hit, and counts it", async () => {
  await system.startWorker();
  await warmUp();
  await solve({ problem: "p" });
  await post({ problem: "p" });
  expect((await telemetry("job")).length).toBe(3);
  await expect.poll(async () => (await telemetry("sample")).at(-1)?.cache, { timeout: 5000 }).toEqual({ hit: 1, miss: 1, coalesced: 0 });
});

test("a cacheable request is a miss, too, while no model is published; one that asks for nothing of the cache is none", async () => {
  await post({ problem: "p" });
  await post({ problem: "p", explain: true });
  for (const cache of ["off", "refresh"]) await post({ problem: "p", cache });
  await post({ problem: "p", sampling: { temperature: 1 } });
  expect(await stats()).toMatchObject({ hit: 0, miss: 2, coalesced: 0 });
});

test("each requester has its own grade, whether its answer was computed, followed or kept", async () => {
  system.gpu.serviceMs = () => 20;
  await system.startWorker();
  await warmUp();
  const [leads, follows] = await Promise.all(["1", "2"].map((expected) => post({ problem: "p", expected })));
  const results = await Promise.all([leads!, follows!].map(async ({ body }) => (await ended(body.jobId)).result));
  expect(results.map((result) => result?.grade?.verdict)).toEqual(["equal", "different"]);
  expect(results.filter((result) => result?.coalesced).length).toBe(1);
  const kept = await post({ problem: "p", expected: "1.0" });
  expect([kept.status, kept.body.result?.cached, kept.body.result?.grade?.verdict]).toEqual([200, true, "equal"]);
  expect((await post({ problem: "p" })).body.result?.grade).toBeNull();
  expect((await telemetry("job")).map(({ verdict }) => verdict).filter(Boolean)).toEqual([results[0]?.coalesced ? "different" : "equal"]);
});

test("nothing that is kept beside a job expires while the job waits; all of it begins to when the job has ended", async () => {
  const { redis } = system.queues;
  const worker = await system.startWorker();
  await warmUp();
  await worker.stop(1000);
  const withKey = async (key: string) => (await post({ problem: "p" }, { "idempotency-key": key })).body.jobId;
  const leader = await withKey("a");
  const follower = await withKey("b");
  const kept = [...(await redis.keys("{mathllm}:idempotency:*")), `{mathllm}:follower:${follower}`];
  const expiries = async () => Promise.all(kept.map((name) => redis.ttl(name)));
  expect(await expiries()).toEqual([-1, -1, -1]);
  await system.startWorker();
  await ended(leader);
  await expect.poll(async () => (await expiries()).every((seconds) => seconds > 86_000)).toBe(true);
  expect(await redis.keys("{mathllm}:flight:*")).toEqual([]);
  expect([await withKey("a"), await withKey("b")]).toEqual([leader, follower]);
  // Answered from the cache: nothing waits.
  await withKey("c");
  const all = await redis.keys("{mathllm}:idempotency:*");
  expect((await Promise.all(all.map((name) => redis.ttl(name)))).every((seconds) => seconds > 86_000)).toBe(true);
});

test("a flight whose leader has ended, its worker having died before it could say so, is over", async () => {
  const { redis } = system.queues;
  await system.startWorker();
  await warmUp();
  const first = await post({ problem: "p", sampling: { temperature: 1 }, cache: "on" });
  await ended(first.body.jobId);
  await fetch(`${api.url}/cache`, { method: "DELETE" });
  const { flightKey } = (await system.queues.student.getJob(first.body.jobId))!.data;
  await expect.poll(() => redis.exists(`{mathllm}:flight:${flightKey}`)).toBe(0);
  const gone = `solve-${"0".repeat(32)}`;
  for (const stale of [`${first.body.jobId} ${Date.now()}`, `${gone} ${Date.now() - 60_000}`]) {
    await redis.set(`{mathllm}:flight:${flightKey}`, stale);
    await fetch(`${api.url}/cache`, { method: "DELETE" });
    const { body } = await post({ problem: "p", sampling: { temperature: 1 }, cache: "on" });
    expect((await ended(body.jobId)).result).toMatchObject({ coalesced: false, cached: false });
    expect((await system.queues.student.getJob(body.jobId))?.data.flightKey).toBe(flightKey);
  }
});
