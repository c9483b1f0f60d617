import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { publishModel } from "../../queues/answer-cache.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { acceptedSchema, jobViewSchema, type WorkerStatus } from "../../queues/contracts.ts";
import { type GpuView, gpuViewSchema } from "../../queues/gpu-view.ts";
import { CLASS_PRIORITY, keys, PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { setRateLimit } from "../../queues/rate-limits.ts";
import { publishStatus } from "../../queues/worker-status.ts";
import { expectProblem } from "../problem-document.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { modelStatus, workerStatus } from "../worker-status.ts";

const MAX_DEPTHS: Record<PriorityClass, number> = { interactive: 10, normal: 30, batch: 500 };

let redis: RedisFixture;
let queues: Queues;
let config: Config;
let api: RunningApi;

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  config = readConfig({
    PORT: "0",
    DATA_DIR: redis.dataDir,
    INTERACTIVE_MAX_DEPTH: String(MAX_DEPTHS.interactive),
    NORMAL_MAX_DEPTH: String(MAX_DEPTHS.normal),
    BATCH_MAX_DEPTH: String(MAX_DEPTHS.batch),
  });
});
afterAll(async () => {
  await queues.close();
  await redis.stop();
});
// An API of its own for each test: it looks at the queues only every tenth of a second.
beforeEach(async () => {
  await queues.redis.flushall();
  api = await startApi({ config, redisUrl: redis.url, log: pino({ level: "silent" }) });
});
afterEach(() => api.close());

const soon = <T>(look: () => T) => expect.poll(look, { timeout: 15_000, interval: 20 });

const post = (body: object, headers: Record<string, string> = {}) =>
  fetch(`${api.url}/solve`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ problem: "1 + 1", ...body }),
  });
const accepted = async (response: Response) => {
  expect(response.status).toBe(202);
  return acceptedSchema.parse(await response.json());
};
const gpuView = async (): Promise<GpuView> => gpuViewSchema.parse(await (await fetch(`${api.url}/gpu`)).json());

/** How many jobs of the class stand in the queue, whether they could start now or not. */
async function standing(role: Role, name: PriorityClass): Promise<number> {
  const counts = await queues[role].getCountsPerPriority([CLASS_PRIORITY[name]]);
  return counts[CLASS_PRIORITY[name]]!;
}

/** Jobs from another process. */
async function fill(role: Role, name: PriorityClass, count: number): Promise<void> {
  const data = { version: 1, kind: "solve", problem: "1", sampling: { temperature: 0 }, priority: name, acceptedAt: Date.now() } as const;
  await queues[role].addBulk(
    Array.from({ length: count }, (_, i) => ({
      name: "solve",
      data,
      opts: { jobId: `other-${role}-${name}-${i}`, priority: CLASS_PRIORITY[name] },
    })),
  );
}

async function expectQueueFull(response: Response): Promise<string> {
  expect(response.headers.get("retry-after")).toMatch(/^[1-9]\d*$/);
  return (await expectProblem(response, 429, "queue-full")).detail;
}

test("more tokens of answer than the model's context has are refused; what that is says a live worker", async () => {
  await accepted(await post({ sampling: { maxTokens: 513 } }));
  await publishStatus(queues.redis, workerStatus());
  const refusal = async () => (await post({ sampling: { maxTokens: 513 } })).status;
  await soon(refusal).toBe(400);
  const { detail } = await expectProblem(await post({ sampling: { maxTokens: 513 } }), 400, "invalid-request");
  expect(detail).toMatch(/maxTokens: expected at most 512.*student.*got 513.*STUDENT_MAX_MODEL_LEN/);
  await accepted(await post({ sampling: { maxTokens: 512 } }));
});

const keyCount = () => queues.redis.dbsize();

describe("depth", () => {
  test.each(
    PRIORITY_CLASSES.flatMap(
      (name) =>
        [
          { name, model: "student" as Role },
          { name, model: "talker" as Role },
        ] as const,
    ),
  )(
    "a hundred too many at once: exactly as many $name jobs of the $model are accepted as may wait, the others leave nothing",
    async ({ name, model }) => {
      const responses = await Promise.all(
        Array.from({ length: 100 + MAX_DEPTHS[name] }, () => post({ priority: name, model, timeoutMs: 80_000_000 })),
      );
      const refused = responses.filter(({ status }) => status === 429);
      expect(responses.filter(({ status }) => status === 202)).toHaveLength(MAX_DEPTHS[name]);
      expect(refused).toHaveLength(100);
      for (const response of refused) expect(await expectQueueFull(response)).toContain(`${name.toUpperCase()}_MAX_DEPTH`);
      expect(await standing(model, name)).toBe(MAX_DEPTHS[name]);
      expect(await queues[model].getJobCountByTypes("prioritized", "wait", "delayed", "waiting-children")).toBe(MAX_DEPTHS[name]);
      expect(await queues.redis.zcard(keys.deadlines)).toBe(MAX_DEPTHS[name]);
    },
  );

  test.each([{}, { explain: true }])("a stream that goes on past several looks at the queues is held as exactly: %j", async (kind) => {
    const statuses: number[] = [];
    const sender = async () => {
      while (statuses.filter((status) => status === 429).length < 20)
        statuses.push((await post({ priority: "batch", timeoutMs: 80_000_000, ...kind })).status);
    };
    await Promise.all(Array.from({ length: 40 }, sender));
    expect(statuses.filter((status) => status === 202)).toHaveLength(MAX_DEPTHS.batch);
    expect(await standing("student", "batch")).toBe(MAX_DEPTHS.batch);
  });

  test("each class and each queue has a depth of its own", async () => {
    await Promise.all([fill("student", "interactive", MAX_DEPTHS.interactive), fill("talker", "batch", MAX_DEPTHS.batch)]);
    await expectQueueFull(await post({ priority: "interactive" }));
    await expectQueueFull(await post({ priority: "batch", model: "talker" }));
    await accepted(await post({ priority: "interactive", model: "talker" }));
    await accepted(await post({ priority: "normal" }));
    await accepted(await post({ priority: "batch" }));
  });

  test("there is room again as soon as one has been taken", async () => {
    await fill("student", "interactive", MAX_DEPTHS.interactive);
    await expectQueueFull(await post({ priority: "interactive" }));
    await queues.student.remove("other-student-interactive-0");
    await soon(async () => (await post({ priority: "interactive" })).status).toBe(202);
    await expectQueueFull(await post({ priority: "interactive" }));
  });

  test.each(["student", "talker"] as const)("explain needs room in both queues: the %s's is full", async (full) => {
    await fill(full, "normal", MAX_DEPTHS.normal);
    const before = await keyCount();
    expect(await expectQueueFull(await post({ explain: true }))).toContain(`the ${full}`);
    expect(await keyCount()).toBe(before);
    await accepted(await post({ explain: true, priority: "batch" }));
  });

  test("explain jobs count in the Student's queue", async () => {
    const responses = await Promise.all(Array.from({ length: 100 }, () => post({ explain: true, priority: "interactive" })));
    expect(responses.filter(({ status }) => status === 202)).toHaveLength(MAX_DEPTHS.interactive);
    expect(await standing("student", "interactive")).toBe(MAX_DEPTHS.interactive);
    expect(await queues.talker.getJobCountByTypes("waiting-children")).toBe(MAX_DEPTHS.interactive);
  });

  test.each(["used up rate limit", "pause"])("a %s does not open the queue to any number of jobs", async (why) => {
    await fill("student", "interactive", MAX_DEPTHS.interactive - 1);
    if (why === "pause") await queues.student.pause();
    else {
      await setRateLimit(queues, "student", { max: 1, durationMs: 600_000 });
      await queues.redis.set(queues.student.toKey("limiter"), 1, "PX", 600_000);
      expect((await gpuView()).queues.student.limitedMs > 0).toBe(true);
    }
    await accepted(await post({ priority: "interactive" }));
    await soon(async () => {
      const { status } = await post({ priority: "interactive" });
      return [status, (await standing("student", "interactive")) <= MAX_DEPTHS.interactive];
    }).toEqual([429, true]);
  });
});

describe("a refused job", () => {
  test("leaves its Idempotency-Key free, for the same body and for another", async () => {
    await fill("student", "interactive", MAX_DEPTHS.interactive);
    const before = await keyCount();
    for (const key of ["same", "other"]) await expectQueueFull(await post({ priority: "interactive" }, { "idempotency-key": key }));
    expect(await keyCount()).toBe(before);
    const other = await accepted(await post({ priority: "batch" }, { "idempotency-key": "other" }));
    await queues.student.remove("other-student-interactive-0");
    await soon(async () => (await post({ priority: "interactive" }, { "idempotency-key": "same" })).status).toBe(202);
    const again = await post({ priority: "interactive" }, { "idempotency-key": "same" });
    expect([again.status, again.headers.get("idempotent-replayed")]).toEqual([202, "true"]);
    expect(await standing("student", "interactive")).toBe(MAX_DEPTHS.interactive);
    expect((await accepted(await post({ priority: "batch" }, { "idempotency-key": "other" }))).jobId).toBe(other.jobId);
    await expectProblem(await post({ priority: "normal" }, { "idempotency-key": "other" }), 409, "idempotency-conflict");
  });

  test("a replay of an accepted job is answered though the queue is full by now", async () => {
    const first = await accepted(await post({ priority: "interactive" }, { "idempotency-key": "k" }));
    await fill("student", "interactive", MAX_DEPTHS.interactive);
    await soon(async () => (await post({ priority: "interactive" })).status).toBe(429);
    expect((await accepted(await post({ priority: "interactive" }, { "idempotency-key": "k" }))).jobId).toBe(first.jobId);
  });

  test("100 at once with keys of their own: as exact, and every refused key is free", async () => {
    const send = (i: number) => post({ priority: "interactive" }, { "idempotency-key": `k${i}` });
    const responses = await Promise.all(Array.from({ length: 100 }, (_, i) => send(i)));
    expect(responses.filter(({ status }) => status === 202)).toHaveLength(MAX_DEPTHS.interactive);
    expect(await queues.redis.keys(keys.idempotency("*"))).toHaveLength(MAX_DEPTHS.interactive);
    const replays = await Promise.all(Array.from({ length: 100 }, (_, i) => send(i)));
    expect(replays.map(({ status }) => status)).toEqual(responses.map(({ status }) => status));
    expect(await standing("student", "interactive")).toBe(MAX_DEPTHS.interactive);
  });
});

describe("time", () => {
  const SERVICE_MS = 5000;
  const serving = (over: Partial<WorkerStatus> = {}): WorkerStatus =>
    workerStatus({ running: 2, models: { student: { ...modelStatus, serviceMs: SERVICE_MS }, talker: modelStatus }, ...over });
  const beat = (over: Partial<WorkerStatus> = {}) => publishStatus(queues.redis, serving(over));

  test("no worker: accepted, and nobody knows when", async () => {
    const { jobId, estimatedStartMs } = await accepted(await post({ priority: "interactive", timeoutMs: 1 }));
    expect(estimatedStartMs).toBeNull();
    expect((await queues.student.getJob(jobId))!.data).not.toHaveProperty("estimatedWaitMs");
  });

  test("nothing measured yet: accepted, and nobody knows when", async () => {
    const unknown = { ...modelStatus, serviceMs: null, swapMs: null };
    await beat({ models: { student: unknown, talker: unknown } });
    expect((await accepted(await post({ priority: "interactive", timeoutMs: 1 }))).estimatedStartMs).toBeNull();
  });

  test("the 202, the stored job, the view and the queue's view tell the same wait", async () => {
    await beat();
    await fill("student", "normal", 7);
    const told = (await gpuView()).queues.student.estimatedWaitMs.normal!;
    const { jobId, estimatedStartMs } = await accepted(await post({}));
    // Both places are taken and seven wait: the eighth place that comes free is its own.
    expect(estimatedStartMs).toBe((8 * SERVICE_MS) / 2);
    expect(told).toBe(estimatedStartMs);
    expect((await queues.student.getJob(jobId))!.data.estimatedWaitMs).toBe(estimatedStartMs);
    const view = jobViewSchema.parse(await (await fetch(`${api.url}/jobs/${jobId}`)).json());
    expect(view).toMatchObject({ status: "waiting", position: 7 });
    expect(view.estimatedStartMs).toBe(estimatedStartMs);
  });

  test("those accepted in the same moment wait one behind the other", async () => {
    await beat();
    const answers = await Promise.all(Array.from({ length: 10 }, async () => accepted(await post({}))));
    const waits = answers.map(({ estimatedStartMs }) => estimatedStartMs!).sort((a, b) => a - b);
    expect(waits).toEqual(Array.from({ length: 10 }, (_, i) => ((i + 1) * SERVICE_MS) / 2));
  });

  test.each(["interactive", "normal"] as const)("%s is refused once it could not start within its class's deadline", async (name) => {
    const deadlineMs = 20_000;
    await beat({ deadlinesMs: { interactive: deadlineMs, normal: deadlineMs, batch: deadlineMs } });
    await fill("student", name, 7);
    expect((await accepted(await post({ priority: name }))).estimatedStartMs).toBe(deadlineMs);
    const before = await keyCount();
    const response = await post({ priority: name }, { "idempotency-key": "late" });
    expect(response.headers.get("retry-after")).toBe("3");
    const problem = await expectProblem(response, 429, "deadline-unmeetable");
    expect(problem).toMatchObject({ estimatedStartMs: 22_500, retryAfterSeconds: 3 });
    expect(problem.detail).toContain("22.5 s");
    expect(problem.detail).toContain("20.0 s");
    expect(await keyCount()).toBe(before);
    expect((await accepted(await post({ priority: "batch" }, { "idempotency-key": "late" }))).estimatedStartMs).toBeGreaterThan(deadlineMs);
  });

  test("a more urgent class passes the waiting ones and is accepted where they are refused", async () => {
    const deadlineMs = 20_000;
    await beat({ deadlinesMs: { interactive: deadlineMs, normal: deadlineMs, batch: deadlineMs } });
    await fill("student", "normal", 20);
    await expectProblem(await post({ priority: "normal" }), 429, "deadline-unmeetable");
    expect((await accepted(await post({ priority: "interactive" }))).estimatedStartMs).toBe(SERVICE_MS / 2);
  });

  test.each(PRIORITY_CLASSES)("%s with a timeoutMs that its wait and its work would pass is refused", async (name) => {
    await beat();
    await fill("student", name, 3);
    const waitMs = (4 * SERVICE_MS) / 2;
    const response = await post({ priority: name, timeoutMs: waitMs + SERVICE_MS - 1 });
    expect(response.headers.get("retry-after")).toBe("1");
    expect((await expectProblem(response, 429, "deadline-unmeetable")).detail).toContain("timeoutMs");
    expect((await accepted(await post({ priority: name, timeoutMs: waitMs + SERVICE_MS }))).estimatedStartMs).toBe(waitMs);
  });

  test("a request that follows another is held to its leader's time, and is refused when that is too late for it", async () => {
    await publishModel(queues.redis, "student", { modelId: "m", digest: "d", promptVersion: "p", maxTokens: 100, settings: "s" });
    await beat();
    await fill("student", "normal", 3);
    const { jobId } = await accepted(await post({}));
    // It waits for four places to come free; whoever comes after these would wait for many more.
    await fill("talker", "normal", 1);
    for (let i = 0; i < 12; i++) await accepted(await post({ problem: `another ${i}` }));
    const waitMs = (4 * SERVICE_MS) / 2;
    const before = await keyCount();
    for (const timeoutMs of [1, waitMs + SERVICE_MS - 1000]) {
      await expectProblem(await post({ timeoutMs }), 429, "deadline-unmeetable");
    }
    expect(await keyCount()).toBe(before);
    const follower = await accepted(await post({ timeoutMs: waitMs + SERVICE_MS }));
    expect(await queues.redis.smembers(keys.followers(jobId))).toEqual([follower.jobId]);
  });

  test("the work of an explain job is both stages and the swap between them", async () => {
    await beat();
    const workMs = SERVICE_MS + modelStatus.swapMs! + modelStatus.serviceMs!;
    const waitMs = SERVICE_MS / 2;
    await expectProblem(await post({ explain: true, timeoutMs: waitMs + workMs - 1 }), 429, "deadline-unmeetable");
    await accepted(await post({ explain: true, timeoutMs: waitMs + workMs }));
  });

  test.each([
    ["stands by", { phase: "standby" }],
    ["is drained", { drained: true }],
    ["stops", { phase: "stopping" }],
  ] as const)("a worker that %s is not asked, whichever comes first", async (_what, over) => {
    const strict = { interactive: 1, normal: 1, batch: 1 };
    const idle = { ...modelStatus, serviceMs: null, swapMs: null };
    // Redis gives them in no certain order.
    const others = { residentModel: null, deadlinesMs: strict, models: { student: idle, talker: idle }, ...over };
    for (const workerId of "abcdefghij") await beat({ workerId, ...others });
    await beat({ workerId: "serving" });
    const waitMs = SERVICE_MS / 2;
    expect((await accepted(await post({}))).estimatedStartMs).toBe(waitMs);
    await expectProblem(await post({ timeoutMs: 2 * waitMs + SERVICE_MS - 1 }), 429, "deadline-unmeetable");
  });

  test("only workers that do not serve: accepted, and nobody knows when", async () => {
    await beat({ workerId: "a", phase: "standby" });
    await beat({ workerId: "b", drained: true });
    expect((await accepted(await post({ priority: "interactive", timeoutMs: 1 }))).estimatedStartMs).toBeNull();
  });
});
