import { UnrecoverableError } from "bullmq";
import { pino } from "pino";
import { request } from "undici";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { readConfig } from "../../queues/config.ts";
import { JOB_DATA_VERSION, jobViewSchema, type StageResult } from "../../queues/contracts.ts";
import { CLASS_PRIORITY, ENDING_PRIORITY, KEY_PREFIX, keys, type Role, studentStageId } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { publishStatus, removeStatus } from "../../queues/worker-status.ts";
import { expectProblem } from "../problem-document.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { endingJobs, stageResult } from "../stand-in-worker.ts";
import { modelStatus, workerStatus } from "../worker-status.ts";

let redis: RedisFixture;
let api: RunningApi;
let queues: Queues;
const log = pino({ level: "silent" });

beforeAll(async () => {
  redis = await startRedisFixture();
  api = await startApi({ config: readConfig({ PORT: "0", DATA_DIR: redis.dataDir }), redisUrl: redis.url, log });
  queues = openQueues(redis.connect(), () => {});
});
afterAll(async () => {
  await queues.close();
  await api.close();
  await redis.stop();
});
beforeEach(async () => {
  await queues.redis.flushall();
});

const json = { "content-type": "application/json" };
const post = (body: unknown, headers: Record<string, string> = {}) =>
  fetch(`${api.url}/solve`, {
    method: "POST",
    headers: { ...json, ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
const get = (address: string, init?: RequestInit) => fetch(api.url + address, init);
const accepted = async (body: unknown, headers = {}): Promise<string> => {
  const response = await post(body, headers);
  expect(response.status).toBe(202);
  return ((await response.json()) as { jobId: string }).jobId;
};
const view = async (jobId: string) => jobViewSchema.parse(await (await get(`/jobs/${jobId}`)).json());

const ending = <T>(role: Role, processor: () => Promise<StageResult>, body: () => Promise<T>) => endingJobs(redis, role, processor, body);

describe("POST /solve", () => {
  test("202, Location, and the job stands in its queue with everything it needs", async () => {
    const before = Date.now();
    const response = await post({
      problem: "1 + 0",
      priority: "interactive",
      timeoutMs: 60_000,
      metadata: { a: "b" },
      sampling: { seed: 3 },
    });
    const body = (await response.json()) as { jobId: string };
    expect(response.status).toBe(202);
    expect(body).toEqual({ jobId: body.jobId, status: "waiting", estimatedStartMs: null, links: { self: `/jobs/${body.jobId}` } });
    expect(response.headers.get("location")).toBe(`/jobs/${body.jobId}`);
    const job = (await queues.student.getJob(body.jobId))!;
    expect(job.opts.priority).toBe(CLASS_PRIORITY.interactive);
    expect(job.data).toMatchObject({
      version: JOB_DATA_VERSION,
      kind: "solve",
      problem: "1 + 0",
      sampling: { temperature: 0, seed: 3 },
      metadata: { a: "b" },
    });
    expect(job.data.acceptedAt).toBeGreaterThanOrEqual(before);
    expect(job.data.deadlineAt).toBe(job.data.acceptedAt + 60_000);
    expect(Number(await queues.redis.zscore(keys.deadlines, body.jobId))).toBe(job.data.deadlineAt);
  });

  test("model talker goes to the Talker's queue", async () => {
    const jobId = await accepted({ problem: "hello", model: "talker" });
    expect((await queues.talker.getJob(jobId))?.data.kind).toBe("talk");
    expect(await view(jobId)).toMatchObject({ status: "waiting", model: "talker", position: 0, reason: "no-worker" });
  });

  test("explain is a flow: the Student's stage first, then the Talker's, in the parent's class", async () => {
    const jobId = await accepted({ problem: "1 + 0", explain: true, priority: "batch" });
    expect(await view(jobId)).toMatchObject({ status: "waiting", stages: [{ model: "student" }, { model: "talker" }], position: 0 });
    expect(await queues.talker.getJobState(jobId)).toBe("waiting-children");
    await ending(
      "student",
      async () => stageResult("student"),
      async () => {
        await expect.poll(() => queues.talker.getJobState(jobId)).toBe("prioritized");
      },
    );
    expect((await queues.talker.getJob(jobId))?.priority).toBe(CLASS_PRIORITY.batch);
    expect(await view(jobId)).toMatchObject({ status: "active", stages: [{ status: "completed" }, { status: "waiting" }], result: null });
    await ending(
      "talker",
      async () => stageResult("talker"),
      async () => {
        expect((await (await get(`/jobs/${jobId}?wait=10`)).json()) as object).toMatchObject({
          status: "completed",
          result: {
            answer: "1",
            solution: "by the student",
            explanation: "by the talker",
            usage: { promptTokens: 2, completionTokens: 4 },
          },
        });
      },
    );
    await queues.redis.del(`${KEY_PREFIX}:student:${studentStageId(jobId)}`);
    expect((await view(jobId)).result).toMatchObject({ solution: "by the student" });
  });

  test.each(
    [
      ["{", 400, "malformed-json"],
      ["", 400, "invalid-request"],
      ["[]", 400, "invalid-request"],
      ['"text"', 400, "malformed-json"],
      ["{}", 400, "invalid-request"],
      ['{"problem":""}', 400, "invalid-request"],
      ['{"problem":"  \\n "}', 400, "invalid-request"],
      ['{"problem":7}', 400, "invalid-request"],
      ['{"problem":"1","explian":true}', 400, "invalid-request"],
      ['{"problem":"1","__proto__":{"explain":true}}', 400, "invalid-request"],
      ['{"problem":"1","constructor":1}', 400, "invalid-request"],
      ['{"problem":"1","explain":true,"model":"talker"}', 400, "invalid-request"],
      ['{"problem":"1","priority":"urgent"}', 400, "invalid-request"],
      ['{"problem":"1","sampling":{"temperature":"hot"}}', 400, "invalid-request"],
      ['{"problem":"1","timeoutMs":0}', 400, "invalid-request"],
      [`{"problem":"${"1".repeat(40_000)}"}`, 400, "invalid-request"],
      [`{"problem":"${"1".repeat(10_000_000)}"}`, 413, "body-too-large"],
    ].map(([body, status, code]) => ({ body: String(body), status: Number(status), code: String(code), start: String(body).slice(0, 60) })),
  )("$code: $start", async ({ body, status, code }) => {
    await expectProblem(await post(body), status, code);
    expect(await queues.student.getJobCountByTypes("prioritized", "wait")).toBe(0);
  });

  test("names every wrong field with what was expected and what came", async () => {
    const problem = await expectProblem(
      await post({ problem: 7, priority: "urgent", sampling: { temperature: 9 }, extra: 1 }),
      400,
      "invalid-request",
    );
    expect(problem.errors?.map((error) => error.path).sort()).toEqual(["", "priority", "problem", "sampling.temperature"]);
    expect(problem.detail).toContain('got "urgent"');
  });

  test("refuses another content type", async () => {
    await expectProblem(await post("problem=1", { "content-type": "application/x-www-form-urlencoded" }), 415, "unsupported-media-type");
    await expectProblem(await post("{}", { "content-type": "application/json; charset=latin1" }), 415, "unsupported-media-type");
  });
});

describe("Idempotency-Key", () => {
  test("the same request is the same job, whatever the order of its keys and the spelled-out defaults; another is refused", async () => {
    const key = { "idempotency-key": "k1" };
    const first = await accepted({ problem: "1", priority: "batch" }, key);
    const again = await post({ priority: "batch", explain: false, problem: "1" }, key);
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(await again.json()).toMatchObject({ jobId: first });
    await expectProblem(await post({ problem: "2" }, key), 409, "idempotency-conflict");
    expect(await queues.student.getJobCountByTypes("prioritized")).toBe(1);
  });

  test("twenty at once are one job", async () => {
    const ids = await Promise.all(Array.from({ length: 20 }, () => accepted({ problem: "1", explain: true }, { "idempotency-key": "k2" })));
    expect(new Set(ids).size).toBe(1);
    expect(await queues.student.getJobCountByTypes("prioritized")).toBe(1);
    expect(await queues.talker.getJobCountByTypes("waiting-children")).toBe(1);
  });

  test("a crash between the record and the job is made up for", async () => {
    const first = await accepted({ problem: "1" }, { "idempotency-key": "k3" });
    await (await queues.student.getJob(first))!.remove();
    expect(await accepted({ problem: "1" }, { "idempotency-key": "k3" })).toBe(first);
    expect(await queues.student.getJob(first)).toBeDefined();
  });

  test.each([
    ["empty", ""],
    ["too long", "x".repeat(256)],
    ["with a space", "a b"],
  ])("refuses a key that is %s", async (_name, key) => {
    await expectProblem(await post({ problem: "1" }, { "idempotency-key": key }), 400, "invalid-request");
  });
});

describe("GET and DELETE /jobs/:id", () => {
  test.each(["solve-00000000000000000000000000000000", "x", "..%2f..%2fetc", "%00", "solve-0%0d%0aX: 1"])(
    "an unknown id %j is 404",
    async (id) => {
      await expectProblem(await get(`/jobs/${id}`), 404, "unknown-job");
      await expectProblem(await get(`/jobs/${id}`, { method: "DELETE" }), 404, "unknown-job");
    },
  );

  test.each(["-1", "61", "abc", "", "1e1", "0x1", "1&wait=2"])("refuses wait=%s", async (wait) => {
    const jobId = await accepted({ problem: "1" });
    await expectProblem(await get(`/jobs/${jobId}?wait=${wait}`), 400, "invalid-request");
  });

  test("a long poll answers when the job ends, and with the view of the moment when its time is up", async () => {
    const jobId = await accepted({ problem: "1" });
    expect(await (await get(`/jobs/${jobId}?wait=0.05`)).json()).toMatchObject({ status: "waiting" });
    const polled = get(`/jobs/${jobId}?wait=60`).then((response) => response.json());
    await ending(
      "student",
      async () => stageResult("student"),
      async () => {
        expect(await polled).toMatchObject({ status: "completed", result: { answer: "1" } });
      },
    );
  });

  test("a cancelled waiting job is terminal at once, ends its long poll, and stands where a worker ends it first", async () => {
    const jobId = await accepted({ problem: "1", priority: "batch" });
    const polled = get(`/jobs/${jobId}?wait=60`).then((response) => response.json());
    const response = await get(`/jobs/${jobId}`, { method: "DELETE" });
    expect([response.status, await response.json()]).toMatchObject([202, { status: "cancelled", error: { code: "cancelled" } }]);
    expect(await polled).toMatchObject({ status: "cancelled" });
    expect((await queues.student.getJob(jobId))?.priority).toBe(ENDING_PRIORITY);
    expect((await get(`/jobs/${jobId}`, { method: "DELETE" })).status).toBe(200);
  });

  test("a failed Student fails an explained job with the Student's reason", async () => {
    const jobId = await accepted({ problem: "1", explain: true });
    const fail = async () => {
      throw new UnrecoverableError("engine-refused: not this one");
    };
    await ending("student", fail, async () => {
      await expect.poll(async () => (await view(jobId)).status).toBe("failed");
      expect((await view(jobId)).error).toMatchObject({ code: "engine-refused", detail: "not this one" });
    });
  });

  test("a job past its time in the queue has failed, whether a worker lives or not", async () => {
    const jobId = await accepted({ problem: "1", timeoutMs: 1 });
    await expect.poll(async () => (await view(jobId)).error?.code).toBe("deadline-exceeded");
  });

  test("position and estimate follow what the worker measured", async () => {
    const status = workerStatus({ models: { student: modelStatus, talker: { ...modelStatus, error: "no such file" } } });
    const ids = await Promise.all(Array.from({ length: 5 }, () => accepted({ problem: "1" })));
    expect((await get("/readyz")).status).toBe(503);
    await publishStatus(queues.redis, status);
    expect([await (await get("/readyz")).json()]).toMatchObject([
      { ready: true, workers: 1, residentModel: "student", reason: "no such file" },
    ]);
    const views = (await Promise.all(ids.map(view))).sort((a, b) => a.position! - b.position!);
    expect(views.map(({ position, estimatedStartMs }) => [position, estimatedStartMs])).toEqual([
      [0, 50],
      [1, 100],
      [2, 150],
      [3, 200],
      [4, 250],
    ]);
    expect((await view(await accepted({ problem: "1", model: "talker" }))).reason).toBe("model-unavailable: no such file");
    await publishStatus(queues.redis, { ...status, beatAt: Date.now() - 60_000 });
    expect(await (await get("/readyz")).json()).toMatchObject({ ready: false, reason: "no-worker" });
    await removeStatus(queues.redis, "w");
  });
});

test("unknown addresses are 404, other methods 405 with Allow", async () => {
  await expectProblem(await get("/nothing"), 404, "not-found");
  const response = await get("/solve");
  expect(response.headers.get("allow")).toBe("POST");
  await expectProblem(response, 405, "method-not-allowed");
  await expectProblem(await get("/healthz", { method: "POST" }), 405, "method-not-allowed");
  await expectProblem(await get("/jobs/%E0%A4%A"), 400, "invalid-request");
  expect(await (await get("/healthz")).json()).toEqual({ status: "ok" });
});

test("a web page of another name or origin is refused", async () => {
  await expectProblem(await get("/healthz", { headers: { origin: "https://example.org" } }), 403, "forbidden-origin");
  await expectProblem(await get("/dashboards/queues", { headers: { origin: "http://127.0.0.1.example.org" } }), 403, "forbidden-origin");
  const { statusCode, body } = await request(`${api.url}/healthz`, { headers: { host: "rebound.example.org" } });
  expect([statusCode, ((await body.json()) as { code: string }).code]).toEqual([403, "forbidden-origin"]);
  await expectProblem(await get("/healthz", { headers: { origin: "http://localhost:5000" } }), 403, "forbidden-origin");
  expect((await get("/healthz", { headers: { origin: api.url } })).status).toBe(200);
});

test("a taken port and an absent Redis are said clearly, without the password", async () => {
  const config = readConfig({ PORT: String(api.port), DATA_DIR: redis.dataDir });
  await expect(startApi({ config, redisUrl: redis.url, log })).rejects.toMatchObject({
    code: "port-in-use",
    message: expect.stringContaining(String(api.port)),
  });
  await expect(startApi({ config, redisUrl: "redis://:secret@127.0.0.1:9", log })).rejects.toMatchObject({
    code: "redis-unavailable",
    message: expect.not.stringContaining("secret"),
  });
});

test("while Redis is gone nothing is accepted and the API says so; afterwards everything accepted is there", async () => {
  const jobId = await accepted({ problem: "1" });
  process.kill(redis.server.pid, "SIGSTOP");
  try {
    const [ready, posted, healthy] = await Promise.all([get("/readyz"), post({ problem: "2" }), get("/healthz")]);
    expect(healthy.status).toBe(200);
    expect(await ready.json()).toMatchObject({ ready: false, redis: false, reason: "redis-unavailable" });
    expect(posted.headers.get("retry-after")).toBe("1");
    await expectProblem(posted, 503, "redis-unavailable");
  } finally {
    process.kill(redis.server.pid, "SIGCONT");
  }
  process.kill(redis.server.pid, "SIGKILL");
  await expect.poll(async () => (await post({ problem: "3" })).status, { timeout: 15_000 }).toBe(202);
  expect((await view(jobId)).status).toBe("waiting");
});
