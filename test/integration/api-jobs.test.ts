import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { UnrecoverableError } from "bullmq";
import { pino } from "pino";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { createApp } from "../../api/app.ts";
import { JobCompletions } from "../../api/job-completions.ts";
import { type RunningApi, startApi } from "../../api/main.ts";
import { cancelledAt, listenForCancels } from "../../queues/cancellation.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { type JobView, jobViewSchema, type StageResult } from "../../queues/contracts.ts";
import { ENDING_PRIORITY, type Role } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { appDeps } from "../app-deps.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { endingJobs, stageResult } from "../stand-in-worker.ts";

let redis: RedisFixture;
let api: RunningApi;
let queues: Queues;
let config: Config;
const log = pino({ level: "silent" });

beforeAll(async () => {
  redis = await startRedisFixture();
  config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir });
  api = await startApi({ config, redisUrl: redis.url, log });
  queues = openQueues(redis.connect(), () => {});
});
afterAll(async () => {
  await queues?.close();
  await api?.close();
  await redis?.stop();
});
beforeEach(async () => {
  await queues.redis.flushall();
});

const get = (address: string, init?: RequestInit) => fetch(api.url + address, init);
const view = async (jobId: string, query = ""): Promise<JobView> => jobViewSchema.parse(await (await get(`/jobs/${jobId}${query}`)).json());
const cancel = async (jobId: string) => {
  const response = await get(`/jobs/${jobId}`, { method: "DELETE" });
  return { status: response.status, view: jobViewSchema.parse(await response.json()) };
};
const accepted = async (body: object): Promise<string> => {
  const headers = { "content-type": "application/json" };
  const response = await get("/solve", { method: "POST", headers, body: JSON.stringify(body) });
  expect(response.status).toBe(202);
  return ((await response.json()) as { jobId: string }).jobId;
};

const result = stageResult("student");

const ending = <T>(role: Role, processor: () => Promise<StageResult>, body: () => Promise<T>) => endingJobs(redis, role, processor, body);

const refuse = async (): Promise<StageResult> => {
  throw new UnrecoverableError("engine-refused: not this one");
};

/** A processor that says when it began and ends when it is told to. */
function gate() {
  const begun = Promise.withResolvers<void>();
  const release = Promise.withResolvers<StageResult>();
  const processor = () => {
    begun.resolve();
    return release.promise;
  };
  return { processor, begun: begun.promise, end: () => release.resolve(result) };
}

test("long polls answer because the job ended: not while it runs, and all of them", async () => {
  const jobId = await accepted({ problem: "1" });
  const { processor, begun, end } = gate();
  await ending("student", processor, async () => {
    const order: string[] = [];
    const polls = [1, 2, 3].map(async () => {
      const seen = await view(jobId, "?wait=60");
      order.push("polled");
      return seen;
    });
    await begun;
    expect(await view(jobId, "?wait=0.2")).toMatchObject({ status: "active", position: null, result: null });
    order.push("ended");
    end();
    for (const seen of await Promise.all(polls)) expect(seen).toMatchObject({ status: "completed", result: { answer: "1" } });
    expect(order).toEqual(["ended", "polled", "polled", "polled"]);
  });
  expect(await view(jobId, "?wait=60")).toMatchObject({ status: "completed" });
});

test("a long poll whose time is up answers with the view of the moment", async () => {
  const jobId = await accepted({ problem: "1" });
  const startedAt = performance.now();
  expect(await view(jobId, "?wait=0.2")).toMatchObject({ status: "waiting", position: 0, reason: "no-worker" });
  expect(performance.now() - startedAt).toBeGreaterThan(190);
});

test("a try that failed and is tried again does not end a long poll", async () => {
  const jobId = await accepted({ problem: "1" });
  let tries = 0;
  const failOnce = async () => {
    tries += 1;
    if (tries === 1) throw new Error("engine-failed: gone");
    return result;
  };
  const seen = await ending("student", failOnce, () => view(jobId, "?wait=30"));
  expect(seen).toMatchObject({ status: "completed", stages: [{ attempts: 2 }] });
});

test("a Student that fails ends the long poll of its explained job, without a worker for the Talker", async () => {
  const jobId = await accepted({ problem: "1", explain: true });
  const polled = view(jobId, "?wait=45");
  expect(await ending("student", refuse, () => polled)).toMatchObject({
    status: "failed",
    error: { code: "engine-refused", detail: "not this one" },
    stages: [{ status: "failed" }, { status: "waiting" }],
    result: null,
  });
}, 20_000);

test("a Student that completes does not end it", async () => {
  const jobId = await accepted({ problem: "1", explain: true });
  const polled = view(jobId, "?wait=30");
  await ending(
    "student",
    async () => result,
    () => expect.poll(() => queues.talker.getJobState(jobId)).toBe("prioritized"),
  );
  expect(
    await ending(
      "talker",
      async () => ({ ...result, role: "talker", text: "because" }),
      () => polled,
    ),
  ).toMatchObject({
    status: "completed",
    result: { solution: "by the student", explanation: "because" },
  });
});

test("a client that leaves frees its long poll", async () => {
  const completions = new JobCompletions(
    () => redis.connect(),
    () => {},
  );
  const server = http.createServer(createApp(appDeps(redis, queues, config, completions))).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const jobId = await accepted({ problem: "1" });
    const leaving = new AbortController();
    const { port } = server.address() as AddressInfo;
    const polled = fetch(`http://127.0.0.1:${port}/jobs/${jobId}?wait=60`, { signal: leaving.signal });
    await expect.poll(() => completions.waiting).toBe(1);
    leaving.abort();
    await expect(polled).rejects.toThrow();
    await expect.poll(() => completions.waiting).toBe(0);
  } finally {
    await completions.close();
    server.close();
  }
});

test("closing the API answers long polls with the view of the moment and waits for no kept-alive connection", async () => {
  const other = await startApi({ config, redisUrl: redis.url, log });
  const jobId = await accepted({ problem: "1" });
  const { port } = other;
  const agent = new http.Agent({ keepAlive: true });
  const asked = http.get({ host: "127.0.0.1", port, path: `/jobs/${jobId}?wait=60`, agent });
  const answered = once(asked, "response");
  await once(asked, "finish");
  // The poll was sent first, so that it has been received when this is answered.
  await (await fetch(`${other.url}/readyz`)).text();
  const closed = other.close();
  const [response] = (await answered) as [http.IncomingMessage];
  expect(JSON.parse(await text(response))).toMatchObject({ jobId, status: "waiting" });
  const late = once(AbortSignal.timeout(2000), "abort").then(() => "late");
  expect(await Promise.race([closed.then(() => "closed"), late])).toBe("closed");
  agent.destroy();
  await closed;
});

test("cancelling a running job: 202 and still active, the worker is told, its end ends the poll", async () => {
  const jobId = await accepted({ problem: "1" });
  const told: string[] = [];
  await listenForCancels(redis.connect(), (id) => told.push(id));
  const aborted = Promise.withResolvers<StageResult>();
  const begun = Promise.withResolvers<void>();
  const processor = () => {
    begun.resolve();
    return aborted.promise;
  };
  const polled = view(jobId, "?wait=30");
  await ending("student", processor, async () => {
    await begun.promise;
    expect(await cancel(jobId)).toMatchObject({ status: 202, view: { status: "active", error: null } });
    expect(await cancelledAt(queues.redis, jobId)).not.toBeNull();
    await expect.poll(() => told).toEqual([jobId]);
    aborted.reject(new UnrecoverableError("cancelled: Cancelled on request."));
    expect(await polled).toMatchObject({ status: "cancelled", error: { code: "cancelled" }, stages: [{ status: "cancelled" }] });
  });
  expect(await cancel(jobId)).toMatchObject({ status: 200, view: { status: "cancelled" } });
});

test.each([
  ["while its Student waits", async (_jobId: string) => {}],
  [
    "while its Talker waits",
    async (jobId: string) => {
      await ending(
        "student",
        async () => result,
        () => expect.poll(() => queues.talker.getJobState(jobId)).toBe("prioritized"),
      );
    },
  ],
])(
  "an explained job can be cancelled %s: terminal at once, and so is its long poll",
  async (_name, before) => {
    const jobId = await accepted({ problem: "1", explain: true });
    await before(jobId);
    const polled = view(jobId, "?wait=45");
    expect(await cancel(jobId)).toMatchObject({ status: 202, view: { status: "cancelled", position: null } });
    expect(await polled).toMatchObject({ status: "cancelled", error: { code: "cancelled" } });
    const waiting = await queues.student.getJobs(["prioritized"]);
    for (const job of [...waiting, ...(await queues.talker.getJobs(["prioritized"]))]) expect(job.priority).toBe(ENDING_PRIORITY);
  },
  20_000,
);

test("cancelling what has ended changes nothing", async () => {
  const jobId = await accepted({ problem: "1" });
  const before = await ending(
    "student",
    async () => result,
    () => view(jobId, "?wait=30"),
  );
  expect(await cancel(jobId)).toEqual({ status: 200, view: before });
  expect(await cancelledAt(queues.redis, jobId)).toBeNull();
});

test("a job past its time in the queue is terminal: the poll returns at once and DELETE leaves it", async () => {
  const jobId = await accepted({ problem: "1", timeoutMs: 1, metadata: { user: "u" } });
  await expect.poll(async () => (await view(jobId)).status).toBe("failed");
  const seen = await view(jobId, "?wait=60");
  expect(seen).toMatchObject({ error: { code: "deadline-exceeded" }, position: null, reason: null, metadata: { user: "u" } });
  expect(seen.timestamps.finishedAt).toBe(seen.timestamps.acceptedAt + 1);
  expect(await cancel(jobId)).toEqual({ status: 200, view: seen });
});

test.each(["solve-0000", `explain-${"0".repeat(32)}`, `solve-${"0".repeat(32)}-solve`, "SOLVE-X", "a".repeat(2000)])(
  "unknown id %.40s is 404 at once, even with wait",
  async (id) => {
    for (const method of ["GET", "DELETE"]) {
      const response = await get(`/jobs/${id}${method === "GET" ? "?wait=60" : ""}`, { method });
      expect([response.status, await response.json()]).toMatchObject([404, { code: "unknown-job", status: 404 }]);
    }
  },
);

test.each(["-1", "60.5", "61", "99999", "abc", "1e1", "0x1", "", "NaN"])("wait=%s is refused and named", async (wait) => {
  const response = await get(`/jobs/${await accepted({ problem: "1" })}?wait=${wait}`);
  expect(response.headers.get("content-type")).toContain("application/problem+json");
  expect([response.status, await response.json()]).toMatchObject([
    400,
    { code: "invalid-request", detail: expect.stringContaining(`"${wait}"`) },
  ]);
});
