import { afterAll, beforeAll, expect, test } from "vitest";
import { Admission } from "../../api/admission.ts";
import { AnswerLookup } from "../../api/answer-lookup.ts";
import { BatchIngest, type UploadLine } from "../../api/batch-ingest.ts";
import type { BatchKeeper } from "../../api/batch-keeper.ts";
import { BatchPlacer, type PlacedLine } from "../../api/batch-placer.ts";
import { submit } from "../../api/submission.ts";
import { AnswerCache, publishModel } from "../../queues/answer-cache.ts";
import { BatchStore } from "../../queues/batch-store.ts";
import { solveKey } from "../../queues/cache-key.ts";
import { readConfig } from "../../queues/config.ts";
import { type ChatMessage, type JobRequest, MAX_PROBLEM_CHARS, solveRequestSchema } from "../../queues/contracts.ts";
import { moveOn } from "../../queues/followers.ts";
import { keys, newJobId } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { endFlight, endFollowers, joinFlights } from "../../queues/single-flight.ts";
import { storeJob } from "../../queues/store-job.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { stageResult } from "../stand-in-worker.ts";

const config = readConfig({});
const STUDENT = { modelId: "m", digest: "d", promptVersion: "p", maxTokens: 100 };
let redis: RedisFixture;
let queues: Queues;
let cache: AnswerCache;

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  cache = new AnswerCache(queues.redis, { ttlSeconds: 60, maxBytes: 1e6 }, () => {});
  await publishModel(queues.redis, "student", { ...STUDENT, settings: "s" });
});

afterAll(async () => {
  await queues.close();
  await redis.stop();
});

const requestFor = (problem: string): JobRequest => solveRequestSchema.parse({ problem });

/** Its first look was before the answer came. `beforeSecond` runs before the next one. */
class EarlyLookup extends AnswerLookup {
  #looks = 0;
  readonly #beforeSecond: () => Promise<unknown>;

  constructor(beforeSecond: () => Promise<unknown> = async () => {}) {
    super(queues.redis, cache);
    this.#beforeSecond = beforeSecond;
  }

  override async findMany(asked: Parameters<AnswerLookup["findMany"]>[0]): ReturnType<AnswerLookup["findMany"]> {
    if (++this.#looks === 2) await this.#beforeSecond();
    const found = await super.findMany(asked);
    return this.#looks === 1 ? found.map((lookup) => ({ ...lookup, hit: null })) : found;
  }
}

test("an answer that came between the look and the start is everybody's: nobody follows a request that will not be computed", async () => {
  const request = requestFor("lands");
  await cache.put(solveKey(STUDENT, request), { result: stageResult("student") });
  const second = () => submit(queues, config, request, { answers: { lookup: new EarlyLookup(), cache } });
  let meanwhile: ReturnType<typeof second> | undefined;
  const lookup = new EarlyLookup(() => {
    meanwhile = second();
    return meanwhile;
  });
  const first = await submit(queues, config, request, { answers: { lookup, cache } });
  expect([first.cached?.status, (await meanwhile)?.cached?.status]).toEqual(["completed", "completed"]);
  const placer = new BatchPlacer(queues, config, { lookup: new EarlyLookup(second), cache });
  const lines = [1, 2].map(
    (line): PlacedLine => ({ line, index: line - 1, customId: null, request, kind: "solve", jobId: newJobId("solve") }),
  );
  const { cached, coalesced } = await placer.place(lines, { mayBeThere: false, patience: { leftMs: 0 } });
  expect([cached.size, coalesced]).toEqual([2, 0]);
  expect(await queues.student.count()).toBe(0);
  expect(await queues.redis.keys("{mathllm}:f*")).toEqual([]);
});

test("an answer in the cache that can't be read is computed anew", async () => {
  const request = requestFor("poisoned");
  await queues.redis.set(`{mathllm}:cache:entry:${solveKey(STUDENT, request)}`, "{");
  const { jobId, cached } = await submit(queues, config, request, { answers: { lookup: new AnswerLookup(queues.redis, cache), cache } });
  expect(cached).toBeNull();
  expect(await queues.student.getJob(jobId)).toBeDefined();
});

test("whoever goes on for a leader that has left leads its flight: the same request again follows it", async () => {
  const answers = { lookup: new AnswerLookup(queues.redis, cache), cache };
  const request = requestFor("goes on");
  const [left, next] = [await submit(queues, config, request, { answers }), await submit(queues, config, request, { answers })];
  const { data } = (await queues.student.getJob(left.jobId))!;
  await queues.student.remove(left.jobId);
  await endFlight(queues.redis, data.flightKey!, left.jobId);
  await moveOn(queues, config, left.jobId);
  expect((await queues.student.getJob(next.jobId))?.data).toMatchObject({ problem: "goes on", flightKey: data.flightKey });
  const again = await submit(queues, config, request, { answers });
  expect(await queues.student.getJob(again.jobId)).toBeUndefined();
  expect(await queues.redis.smembers(`{mathllm}:followers:${next.jobId}`)).toEqual([again.jobId]);
});

test("where somebody has made one follower a job already, and is not done or has died, the others follow that one", async () => {
  const answers = { lookup: new AnswerLookup(queues.redis, cache), cache };
  const request = requestFor("half-way");
  const ids: string[] = [];
  for (let i = 0; i < 3; i++) ids.push((await submit(queues, config, request, { answers })).jobId);
  const [left, next, last] = ids as [string, string, string];
  const { data } = (await queues.student.getJob(left))!;
  await queues.student.remove(left);
  await endFlight(queues.redis, data.flightKey!, left);
  await joinFlights(queues.redis, [{ flightKey: data.flightKey!, jobId: next }]);
  await storeJob(queues, config, next, data);
  await queues.redis.del(keys.follower(next));
  await moveOn(queues, config, left);
  expect(await queues.student.getJob(last)).toBeUndefined();
  expect(await queues.redis.smembers(keys.followers(next))).toEqual([last]);
});

test("of several requests of one flight the first leads; a flight that is led already keeps its leader", async () => {
  const [a, b, c] = [newJobId("solve"), newJobId("solve"), newJobId("solve")];
  const flightKey = "one flight";
  const both = await joinFlights(
    queues.redis,
    [
      { flightKey, jobId: a },
      { flightKey, jobId: b },
      { flightKey: "other", jobId: b },
    ],
    5,
  );
  expect(both).toEqual([a, a, b].map((leaderId) => ({ leaderId, since: 5 })));
  expect(await joinFlights(queues.redis, [{ flightKey, jobId: c }])).toEqual([{ leaderId: a, since: 5 }]);
});

test("a line of a batch whose leader never came is computed, for the key that sent it", async () => {
  const request = requestFor("never came");
  await joinFlights(queues.redis, [{ flightKey: solveKey(STUDENT, request), jobId: newJobId("solve") }], Date.now() - 60_000);
  const jobId = newJobId("solve");
  const placer = new BatchPlacer(queues, config, { lookup: new AnswerLookup(queues.redis, cache), cache });
  const owner = { name: "ann", maxJobs: 5 };
  await placer.place([{ line: 1, index: 0, customId: null, request, kind: "solve", jobId }], {
    owner,
    mayBeThere: false,
    patience: { leftMs: 0 },
  });
  expect((await queues.student.getJob(jobId))?.data.owner).toBe("ann");
  expect(await queues.redis.zrange(keys.apiKeyJobs("ann"), "0", "-1")).toEqual([jobId]);
});

/** The number of the event loop's turn. */
function countTurns(): { now: () => number; stop: () => void } {
  let turn = 0;
  let next = setImmediate(function again() {
    turn++;
    next = setImmediate(again);
  });
  return { now: () => turn, stop: () => clearImmediate(next) };
}

test("long lines are checked, and looked for, over many turns of the event loop; each text is read once for all of its keys", async () => {
  const text = "x".repeat(MAX_PROBLEM_CHARS - 10);
  const turns = countTurns();
  const checkedIn = new Set<number>();
  const readIn: number[] = [];
  const parse = (value: unknown) => {
    checkedIn.add(turns.now());
    return { customId: null, request: requestFor(`${value} ${text}`) };
  };
  async function* lines(): AsyncGenerator<UploadLine> {
    for (let line = 1; line <= 60; line++) yield { line, bytes: text, read: () => line };
  }
  const asked = Array.from({ length: 60 }, () => {
    const messages: ChatMessage[] = [{ role: "user", content: text }];
    Object.defineProperty(messages, "toJSON", { value: () => readIn.push(turns.now()) });
    return { kind: "solve" as const, request: { ...requestFor("1"), messages } };
  });
  try {
    const lookup = new AnswerLookup(queues.redis, cache);
    const store = new BatchStore(queues.redis, 60);
    const { batch } = await store.open({ chunkSize: 60, seedDigest: "", metadata: {} });
    const neverAsked = {} as BatchKeeper;
    await new BatchIngest(store, new BatchPlacer(queues, config, { lookup, cache }), neverAsked).ingest(batch, lines(), { parse });
    await lookup.findMany(asked);
    await lookup.findMany(asked);
  } finally {
    turns.stop();
  }
  expect(checkedIn.size).toBeGreaterThanOrEqual(20);
  expect(new Set(readIn).size).toBeGreaterThanOrEqual(20);
  expect(readIn.length).toBe(60);
});

test("followers keep what is theirs alone, are as many as may wait, and are counted until they have ended or gone on", async () => {
  // What other tests have left waits and follows, too.
  await queues.redis.flushall();
  await publishModel(queues.redis, "student", { ...STUDENT, settings: "s" });
  const few = readConfig({ NORMAL_MAX_DEPTH: "3" });
  const answers = { lookup: new AnswerLookup(queues.redis, cache), cache };
  const problem = `bounded ${"x".repeat(20_000)}`;
  const post = () => submit(queues, few, requestFor(problem), { answers, admission: new Admission(queues, few) });
  const [leader, ...followers] = [await post(), await post(), await post(), await post()];
  await expect(post()).rejects.toMatchObject({ code: "queue-full", message: expect.stringContaining("NORMAL_MAX_DEPTH") });
  const lines = [1, 2].map(
    (line): PlacedLine => ({
      line,
      index: line - 1,
      customId: null,
      request: requestFor(problem),
      kind: "solve",
      jobId: newJobId("solve"),
    }),
  );
  const placer = new BatchPlacer(queues, few, answers);
  const inBatch = () => placer.place(lines, { mayBeThere: false, patience: { leftMs: 0 } });
  await expect(inBatch()).rejects.toMatchObject({ code: "queue-full", message: expect.stringContaining("NORMAL_MAX_DEPTH") });
  const sizes = await Promise.all(followers.map(({ jobId }) => queues.redis.strlen(keys.follower(jobId))));
  expect(Math.max(...sizes)).toBeLessThan(600);
  const { data } = (await queues.student.getJob(leader!.jobId))!;
  await queues.student.remove(leader!.jobId);
  await endFlight(queues.redis, data.flightKey!, leader!.jobId);
  await moveOn(queues, few, leader!.jobId);
  const led = await Promise.all(followers.map(({ jobId }) => queues.student.getJob(jobId)));
  expect(led.flatMap((job) => job?.data.problem ?? [])).toEqual([problem]);
  // One of three leads: one more may follow, and then as many as may wait do again.
  await post();
  await expect(post()).rejects.toMatchObject({ code: "queue-full" });
  const next = led.find((job) => job !== undefined)!;
  await endFollowers(queues.redis, next.id!, 60);
  expect(await queues.redis.scard(keys.following("normal"))).toBe(0);
  expect(await queues.redis.ttl(keys.followed(next.id!))).toBeLessThanOrEqual(60);
  await queues.student.remove(next.id!);
});
