import { once } from "node:events";
import net from "node:net";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { TokenFeed, type TokenFollower } from "../../api/token-feed.ts";
import { requestCancel } from "../../queues/cancellation.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { JOB_EVENTS, type JobEventName } from "../../queues/job-events.ts";
import { keys, newJobId, studentStageId } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { startGpuWorker } from "../../workers/main.ts";
import { EventStream } from "../event-stream.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";
import { expectProblem } from "../problem-document.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { ScriptedWorkers } from "../scripted-workers.ts";
import { stageResult } from "../stand-in-worker.ts";

/** Addresses of the requests that the API has ended, in order. */
const ended: string[] = [];
const log = pino({ level: "info" }, { write: (line: string) => ended.push(JSON.parse(line).path) });
const endedStreams = (jobId: string) => ended.filter((address) => address === `/jobs/${jobId}/events`).length;
const published = (modelId: string) => JSON.stringify({ modelId, digest: "d", promptVersion: "p", maxTokens: 100 });

let redis: RedisFixture;
let queues: Queues;
let config: Config;
let api: RunningApi;
let workers: ScriptedWorkers | undefined;
const streams: EventStream[] = [];

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir, GPU_ID: "events" });
});
afterAll(async () => {
  await queues.close();
  await redis.stop();
});
beforeEach(async () => {
  api = await startApi({ config, redisUrl: redis.url, log });
});
afterEach(async () => {
  for (const stream of streams.splice(0)) stream.leave();
  await workers?.close();
  workers = undefined;
  await api.close();
  await queues.redis.flushall();
});

const send = async (body: object = {}): Promise<string> => {
  const response = await fetch(`${api.url}/solve`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ problem: "1 + 0", cache: "off", ...body }),
  });
  return ((await response.json()) as { jobId: string }).jobId;
};
const listen = async (jobId: string, lastId?: string): Promise<EventStream> => {
  const headers: Record<string, string> = lastId === undefined ? {} : { "last-event-id": lastId };
  const stream = await EventStream.open(`${api.url}/jobs/${jobId}/events`, headers);
  streams.push(stream);
  return stream;
};
const start = () => {
  workers = new ScriptedWorkers(redis);
  return workers;
};
/** What never changes of a story: a state may be told or left out, as things go. */
const told = (stream: EventStream) =>
  stream.events.filter(({ event }) => event !== "state" && event !== "position").map(({ id, event, data }) => [id, event, data.text]);
const texts = (stream: EventStream) => stream.of("token").map(({ text }) => text);
const soon = <T>(look: () => T) => expect.poll(look, { timeout: 15_000, interval: 10 });

describe("the story of a job", () => {
  test("where it waits, that it runs, every token, the result, then the end; every event has its documented form", async () => {
    const first = await send({ priority: "interactive" });
    const jobId = await send();
    const stream = await listen(jobId);
    expect([stream.status, stream.response.headers["content-type"]]).toEqual([200, "text/event-stream"]);
    await soon(() => stream.events.length).toBe(2);
    expect(stream.events.map(({ event }) => event)).toEqual(["state", "position"]);
    expect(stream.of("state")[0]).toMatchObject({ jobId, status: "waiting", reason: "no-worker" });
    expect(stream.of("position")).toEqual([{ position: 1, estimatedStartMs: null }]);
    await requestCancel(queues, first);
    start();
    const stage = await workers!.picked(jobId);
    await soon(() => stream.of("state").at(-1).status).toBe("active");
    for (const text of ["It ", "is ", "1."]) stage.write(text);
    await soon(() => texts(stream)).toEqual(["It ", "is ", "1."]);
    stage.complete();
    await stream.ended;
    expect(stream.of("model")).toEqual([{ model: "student", attempt: 1, sample: null }]);
    expect(stream.events.at(-1)).toMatchObject({ id: "end", event: "result", data: { jobId, status: "completed" } });
    expect(stream.of("result")[0].result.solution).toBe(stream.text("student"));
    expect(stream.of("state").at(-1)).toMatchObject({ status: "completed" });
    for (const { event, data } of stream.events) JOB_EVENTS[event as JobEventName].parse(data);
  });

  test("a late listener, one that came early and one that comes after the end are told the same", async () => {
    const jobId = await send();
    const early = await listen(jobId);
    const stage = await start().picked(jobId);
    for (let i = 0; i < 1100; i++) stage.write(`${i} `);
    const late = await listen(jobId);
    await soon(() => late.of("token").length).toBe(1100);
    stage.complete();
    await Promise.all([early.ended, late.ended]);
    const after = await listen(jobId);
    await after.ended;
    expect(told(late)).toEqual(told(early));
    expect(told(after)).toEqual(told(early));
    expect(after.of("token")).toHaveLength(1100);
  });

  test("Last-Event-ID: one that comes back again and again misses nothing and hears nothing twice; after the result there is nothing", async () => {
    const jobId = await send();
    const stage = await start().picked(jobId);
    const heard: string[] = [];
    let lastId: string | undefined;
    for (let visit = 0; visit < 6; visit++) {
      const stream = await listen(jobId, lastId);
      for (let i = 0; i < 5; i++) stage.write(`${visit * 5 + i} `);
      await soon(() => stream.of("token").length).toBeGreaterThan(2);
      stream.leave();
      heard.push(...texts(stream));
      lastId = stream.lastId;
    }
    const last = await listen(jobId, lastId);
    stage.complete();
    await last.ended;
    expect([...heard, ...texts(last)]).toEqual(Array.from({ length: 30 }, (_, i) => `${i} `));
    expect((await listen(jobId, "end")).status).toBe(204);
    const again = await listen(jobId, (await queues.redis.xrevrange(keys.tokenStream(jobId), "+", "-", "COUNT", 1))[0]![0]);
    await again.ended;
    expect(told(again).map(([, event]) => event)).toEqual(["result"]);
  });

  test("an explanation streams both stages", async () => {
    const jobId = await send({ explain: true });
    const stream = await listen(jobId);
    const student = await start().picked(studentStageId(jobId));
    student.write("It is 1.");
    student.complete();
    const talker = await workers!.picked(jobId);
    talker.write("Because.");
    talker.complete();
    await stream.ended;
    expect(stream.of("model").map(({ model }) => model)).toEqual(["student", "talker"]);
    expect(stream.of("result")[0].result).toMatchObject({ solution: stream.text("student"), explanation: stream.text("talker") });
    expect([stream.text("student"), stream.text("talker")]).toEqual(["It is 1.", "Because."]);
  });

  test("a vote streams each sample under its number, and tells the solution at the end", async () => {
    const stream = await listen(await send({ samples: 3, sampling: { temperature: 1 } }));
    const gpu = new FakeGpu();
    let answers = 0;
    gpu.answer = () => `Sample ${answers++}: \\boxed{${answers === 1 ? 2 : 1}}`;
    const worker = await startGpuWorker({
      config,
      redisUrl: redis.url,
      createEngine: gpu.create,
      log: pino({ level: "silent" }),
      onFatal: (error) => gpu.violations.push(error.message),
    });
    try {
      await stream.ended;
    } finally {
      await worker.stop(0);
    }
    expect(gpu.violations).toEqual([]);
    const samples = stream.of("model").flatMap(({ sample }) => (sample === null ? [] : [sample]));
    expect(samples.toSorted()).toEqual([0, 1, 2]);
    for (const sample of samples) expect(stream.text("student", sample)).toMatch(/^Sample \d: /);
    expect(stream.of("result")[0].result).toMatchObject({ answer: "1", solution: stream.text("student") });
  });

  test("an attempt that is begun again is told as such, and what the one before still writes is left out", async () => {
    const jobId = await send();
    const stream = await listen(jobId);
    const first = await start().picked(jobId);
    first.write("It is 2, no");
    first.fail(new Error("engine-failed: it died"));
    const second = await workers!.picked(jobId, 2);
    second.write("It is ");
    first.write("w 3.");
    second.write("1.");
    second.complete();
    await stream.ended;
    expect(stream.of("model").map(({ attempt }) => attempt)).toEqual([1, 2]);
    expect(stream.text("student")).toBe("It is 1.");
    expect(stream.of("result")[0].stages[0].attempts).toBe(2);
  });

  test("what no stream holds any more is told from the result: nothing of it, a part, another text", async () => {
    start().script = (stage) => stage.complete({ text: "It is 1." });
    for (const chunks of [[], ["It "], ["What"]]) {
      const jobId = newJobId("solve");
      for (const text of chunks) {
        await queues.redis.xadd(keys.tokenStream(jobId), "*", "role", "student", "text", text, "attempt", "1", "sample", "");
      }
      const data = { version: 1, kind: "solve" as const, problem: "p", sampling: { temperature: 0 }, priority: "normal" as const };
      await queues.student.add("solve", { ...data, acceptedAt: Date.now() }, { jobId, priority: 5 });
      const stream = await listen(jobId);
      await stream.ended;
      expect(stream.text("student")).toBe("It is 1.");
      const resumed = await listen(jobId, "rest-student");
      await resumed.ended;
      expect(told(resumed).map(([, event]) => event)).toEqual(["result"]);
    }
  });

  test("an answer from the cache: its text and its result", async () => {
    await queues.redis.hset(keys.publishedModels, "student", published("s"), "talker", published("t"));
    const seeded = await send({ cache: "auto", explain: true });
    const leading = await listen(seeded);
    start().script = (stage) => {
      if (stage.job.queueName === "student") stage.write("It is 1.");
      stage.complete({ text: stage.job.queueName === "student" ? "It is 1." : "Because." });
    };
    await leading.ended;
    expect(leading.text("talker")).toBe("Because.");
    const { AnswerCache } = await import("../../queues/answer-cache.ts");
    const { solveKey } = await import("../../queues/cache-key.ts");
    const cache = new AnswerCache(queues.redis, { ttlSeconds: 60, maxBytes: 1e6 }, () => {});
    const request = { problem: "2 + 0", sampling: { temperature: 0 } };
    await cache.put(solveKey({ modelId: "s", digest: "d", promptVersion: "p", maxTokens: 100 }, request), {
      result: { ...stageResult("student"), text: "It is 2." },
    });
    const cached = await listen(await send({ ...request, cache: "auto" }));
    await cached.ended;
    expect(cached.text("student")).toBe("It is 2.");
    expect(cached.of("model")).toEqual([{ model: "student", attempt: 0, sample: null }]);
    expect(cached.of("result")[0].result).toMatchObject({ cached: true, solution: "It is 2." });
    // The Student's part alone is in the cache: it is told first, then the Talker's as it comes.
    const half = await listen(await send({ ...request, cache: "auto", explain: true }));
    await half.ended;
    expect(half.of("model").map(({ model }) => model)).toEqual(["student", "talker"]);
    expect([half.text("student"), half.text("talker")]).toEqual(["It is 2.", "Because."]);
  });

  test("a follower hears its leader's tokens; when the leader is cancelled, those of its own job, begun anew", async () => {
    await queues.redis.hset(keys.publishedModels, "student", published("s"));
    const leaderId = await send({ cache: "auto" });
    const followerId = await send({ cache: "auto" });
    const [leader, follower] = [await listen(leaderId), await listen(followerId)];
    const stage = await start().picked(leaderId);
    stage.write("It is ");
    await soon(() => texts(follower)).toEqual(["It is "]);
    const cancelled = await fetch(`${api.url}/jobs/${leaderId}`, { method: "DELETE" });
    expect(cancelled.status).toBe(202);
    stage.fail(Object.assign(new Error("cancelled: on request"), { name: "UnrecoverableError" }));
    await leader.ended;
    expect(leader.of("result")[0]).toMatchObject({ status: "cancelled", result: null, error: { code: "cancelled" } });
    const own = await workers!.picked(followerId);
    own.write("It is 1.");
    own.complete();
    await follower.ended;
    expect(follower.of("result")[0]).toMatchObject({ jobId: followerId, status: "completed" });
    expect(follower.text("student")).toBe("It is 1.");
  });

  test("failed, cancelled while it waits, too late with no worker: each ends with its result", async () => {
    const waiting = await listen(await send());
    await soon(() => waiting.events.length).toBe(2);
    await fetch(`${api.url}/jobs/${waiting.of("state")[0].jobId}`, { method: "DELETE" });
    await waiting.ended;
    expect(waiting.of("result")[0]).toMatchObject({ status: "cancelled", error: { code: "cancelled" } });
    const late = await listen(await send({ timeoutMs: 50 }));
    await late.ended;
    expect(late.of("result")[0]).toMatchObject({ status: "failed", error: { code: "deadline-exceeded" } });
    start().script = (stage) => stage.fail(Object.assign(new Error("problem-too-long: too long"), { name: "UnrecoverableError" }));
    const failed = await listen(await send());
    await failed.ended;
    expect(failed.of("result")[0]).toMatchObject({ status: "failed", error: { code: "problem-too-long" } });
    expect(failed.of("token")).toEqual([]);
  });
});

describe("requests", () => {
  test("an unknown job, a wrong Last-Event-ID and other methods are problems", async () => {
    await expectProblem(await fetch(`${api.url}/jobs/${newJobId("solve")}/events`), 404, "unknown-job");
    await expectProblem(await fetch(`${api.url}/jobs/nonsense/events`), 404, "unknown-job");
    const jobId = await send();
    for (const id of ["x", "1", "0x1-1", "rest-", "ends"]) {
      const response = await fetch(`${api.url}/jobs/${jobId}/events`, { headers: { "last-event-id": id } });
      expect((await expectProblem(response, 400, "invalid-request")).detail).toContain("Last-Event-ID");
    }
    await expectProblem(await fetch(`${api.url}/jobs/${jobId}/events`, { method: "POST" }), 405, "method-not-allowed");
  });
});

describe("many listeners", () => {
  test("who comes while the one reader waits for others is read at once; who leaves is read no more", async () => {
    const blocking = redis.connect();
    const feed = new TokenFeed(redis.connect(), blocking, () => {}, 3_600_000);
    const heard: string[] = [];
    const follower = (): TokenFollower => ({ lastId: "0-0", onChunks: (chunks) => heard.push(...chunks.map(({ text }) => text)) });
    const add = (jobId: string, text: string) =>
      queues.redis.xadd(keys.tokenStream(jobId), "*", "role", "student", "text", text, "attempt", "1", "sample", "");
    const isBlocked = async () => /cmd=xread/.test((await queues.redis.client("LIST")) as string);
    const followers = new Map<string, TokenFollower>();
    for (const jobId of ["a", "b", "c"]) {
      followers.set(jobId, follower());
      feed.follow(jobId, followers.get(jobId)!);
      await soon(isBlocked).toBe(true);
      await add(jobId, jobId);
      await soon(() => heard.at(-1)).toBe(jobId);
    }
    feed.unfollow("a", followers.get("a")!);
    await add("a", "unheard");
    await add("b", "d");
    await soon(() => heard).toEqual(["a", "b", "c", "d"]);
    expect(feed.following).toBe(2);
    feed.close();
    blocking.disconnect();
  });

  test("of many jobs: nothing lost or doubled, over the connections that were there before", async () => {
    start();
    const jobIds = await Promise.all(Array.from({ length: 10 }, () => send()));
    const stages = await Promise.all(jobIds.map((jobId) => workers!.picked(jobId)));
    const connections = async () => ((await queues.redis.client("LIST")) as string).split("\n").length;
    const before = await connections();
    const listeners = await Promise.all(Array.from({ length: 60 }, (_, i) => listen(jobIds[i % 10]!)));
    for (let i = 0; i < 40; i++) for (const stage of stages) stage.write(`${i} `);
    await soon(() => listeners.every((each) => each.of("token").length === 40)).toBe(true);
    expect(await connections()).toBe(before);
    for (const stage of stages) stage.complete();
    await Promise.all(listeners.map(({ ended }) => ended));
    for (const each of listeners) {
      expect(texts(each)).toEqual(Array.from({ length: 40 }, (_, i) => `${i} `));
      expect(each.events.at(-1)!.event).toBe("result");
    }
  });

  test("closing the API ends the streams at once, without a result", async () => {
    const jobId = await send();
    const listeners = await Promise.all(Array.from({ length: 20 }, () => listen(jobId)));
    for (const each of listeners) await soon(() => each.events.length).toBe(2);
    const startedAt = performance.now();
    await api.close();
    expect(performance.now() - startedAt).toBeLessThan(1500);
    await Promise.all(listeners.map(({ ended }) => ended));
    for (const each of listeners) expect(each.of("result")).toEqual([]);
  });

  test("one that never reads is cut off; the others hear everything meanwhile", async () => {
    const jobId = await send();
    const other = await listen(jobId);
    const stage = await start().picked(jobId);
    const { hostname, port } = new URL(api.url);
    const deaf = net.connect(Number(port), hostname);
    deaf.on("error", () => {});
    deaf.pause();
    const closed = once(deaf, "close");
    deaf.write(`GET /jobs/${jobId}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    const big = "x".repeat(500_000);
    for (let i = 0; i < 20; i++) stage.write(big);
    await soon(() => other.of("token").length).toBe(20);
    stage.complete();
    await other.ended;
    // Two streams of this job: the other one's is over.
    await soon(() => endedStreams(jobId)).toBe(2);
    deaf.resume();
    await closed;
  });
});
