import { readFile } from "node:fs/promises";
import path from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { JobCompletions } from "../../api/job-completions.ts";
import { submit } from "../../api/submission.ts";
import { seededRandom } from "../../maths/seeded-random.ts";
import { requestCancel } from "../../queues/cancellation.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { type JobView, type SolveRequest, solveRequestSchema, TERMINAL_STATUSES } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { loadJobView } from "../../queues/job-view.ts";
import { PRIORITY_CLASSES } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { readTokens } from "../../queues/token-stream.ts";
import { liveWorkers } from "../../queues/worker-status.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

let redis: RedisFixture;
let queues: Queues;
let completions: JobCompletions;
let config: Config;
let gpu: FakeGpu;
const workers: GpuWorker[] = [];

beforeEach(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  completions = new JobCompletions(
    () => redis.connect(),
    () => {},
  );
  gpu = new FakeGpu();
  config = configured({});
});

afterEach(async () => {
  for (const worker of workers.splice(0)) await worker.stop(5000);
  await completions.close();
  await queues.close();
  await redis.stop();
});

const configured = (env: Record<string, string>) =>
  readConfig({ DATA_DIR: redis.dataDir, TELEMETRY_LOG: path.join(redis.dataDir, "telemetry.jsonl"), ...env });

async function startWorker(given = config): Promise<GpuWorker> {
  const worker = await startGpuWorker({
    config: given,
    redisUrl: redis.url,
    createEngine: gpu.create,
    log: pino({ level: process.env.TEST_LOG ?? "silent" }),
    onFatal: (error) => gpu.violations.push(error.message),
  });
  workers.push(worker);
  return worker;
}

const send = async (request: Partial<SolveRequest>) =>
  (await submit(queues, config, solveRequestSchema.parse({ problem: "What is 1 + 0?", ...request }))).jobId;

async function end(jobId: string): Promise<JobView> {
  const patience = AbortSignal.timeout(45_000);
  for (;;) {
    const look = new AbortController();
    const ended = completions.ended(jobId, AbortSignal.any([patience, look.signal]));
    const view = await loadJobView(queues, jobId);
    if (view !== undefined && TERMINAL_STATUSES.includes(view.status)) {
      look.abort();
      return view;
    }
    if (patience.aborted) throw new Error(`not terminal: ${JSON.stringify(view)}`);
    await ended;
  }
}

for (const policy of ["least-wait", "ge", "exhaustive", "fifo"] as const) {
  test(`600 random jobs under ${policy}: never two models, none stopped mid-request, every job ends once`, async () => {
    const random = seededRandom(policy === "fifo" ? 11 : 7);
    gpu.serviceMs = () => random() * 6;
    const outcomes = new Map<string, number>();
    const count = (id: string) => outcomes.set(id, (outcomes.get(id) ?? 0) + 1);
    const worker = await startWorker(configured({ GPU_POLICY: policy }));
    const jobIds: string[] = [];
    const ends: Promise<JobView>[] = [];
    for (let i = 0; i < 600; i++) {
      const kind = random();
      const jobId = await send({
        explain: kind < 0.35,
        model: kind > 0.7 ? "talker" : "student",
        priority: PRIORITY_CLASSES[Math.floor(random() * 3)]!,
        ...(kind > 0.33 && kind < 0.37 ? { samples: 2 + Math.floor(random() * 4), sampling: { temperature: 1 } } : {}),
        ...(random() < 0.05 ? { timeoutMs: 1 + Math.floor(random() * 30) } : {}),
      });
      jobIds.push(jobId);
      ends.push(end(jobId));
      if (random() < 0.08) await requestCancel(queues, jobIds[Math.floor(random() * jobIds.length)]!);
      if (random() < 0.02) await Promise.race(ends.slice(-3));
    }
    const views = await Promise.all(ends);
    for (const view of views) count(view.jobId);
    expect(gpu.violations).toEqual([]);
    expect(gpu.maxUp).toBe(1);
    expect(outcomes.size).toBe(600);
    for (const view of views) {
      if (view.status === "completed") expect(view.result).not.toBeNull();
      else expect(["cancelled", "deadline-exceeded"]).toContain(view.error?.code);
    }
    expect(views.filter((view) => view.status === "completed").length).toBeGreaterThan(450);
    expect(new Set(gpu.loads)).toEqual(new Set(["student", "talker"]));
    // What a view called terminal has to become so in the queues too, with nothing left behind.
    await expect.poll(() => queues.student.getJobCountByTypes("wait", "prioritized", "delayed", "active"), { timeout: 20_000 }).toBe(0);
    await expect
      .poll(() => queues.talker.getJobCountByTypes("wait", "prioritized", "delayed", "active", "waiting-children"), { timeout: 20_000 })
      .toBe(0);
    const after = await Promise.all(jobIds.map((jobId) => loadJobView(queues, jobId)));
    expect(after.map((view) => view?.status)).toEqual(views.map((view) => view.status));
    expect(worker.status().swaps).toBe(gpu.loads.length - 1);
  });
}

test("late batch jobs get every fifth pick, however many interactive ones wait", async () => {
  const batch = [await send({ priority: "batch" }), await send({ priority: "batch" })];
  const interactive = await Promise.all(Array.from({ length: 40 }, () => send({ priority: "interactive" })));
  await startWorker(configured({ STUDENT_MAX_NUM_SEQS: "1", BATCH_DEADLINE_MS: "1" }));
  const picks = await Promise.all(
    [...batch, ...interactive].map(async (jobId) => ({ jobId, at: (await end(jobId)).timestamps.pickedAt! })),
  );
  const order = picks.sort((a, b) => a.at - b.at).map(({ jobId }) => jobId);
  expect(batch.map((jobId) => order.indexOf(jobId))).toEqual([expect.closeTo(4, -1), expect.closeTo(9, -1)]);
});

test("a failed Student ends the whole job without loading the Talker", async () => {
  await startWorker(configured({ JOB_TIMEOUT_MS: "20" }));
  gpu.serviceMs = () => 200;
  const view = await end(await send({ explain: true }));
  expect(view.status).toBe("failed");
  expect(view.error?.code).toBe("job-timeout");
  await expect.poll(() => queues.talker.getJobCountByTypes("failed"), { timeout: 10_000 }).toBe(1);
  expect(gpu.loads).toEqual(["student"]);
});

test("a failed Talker keeps the solution and says that the explanation failed", async () => {
  let asked = 0;
  gpu.serviceMs = () => (++asked > 1 ? 500 : 1);
  await startWorker(configured({ JOB_TIMEOUT_MS: "100" }));
  const view = await end(await send({ explain: true }));
  expect(view.status).toBe("completed");
  expect(view.result).toMatchObject({ answer: "1", explanation: null });
  expect(view.stages[1]).toMatchObject({ model: "talker", status: "failed", error: { code: "job-timeout" } });
});

test("a cut solution has no answer and is not explained: the Talker is not loaded, and its stage says why", async () => {
  gpu.cuts = "student";
  await startWorker();
  const view = await end(await send({ explain: true }));
  expect(view.status).toBe("completed");
  expect(view.result).toMatchObject({ answer: null, truncated: true, explanation: null });
  expect(view.stages).toMatchObject([
    { model: "student", status: "completed", truncated: true, error: null },
    { model: "talker", status: "failed", truncated: null, error: { code: "solution-unfinished" } },
  ]);
  expect(view.stages[1]!.error!.detail).toContain("cut after 5 tokens; raise STUDENT_MAX_TOKENS");
  expect(gpu.loads).toEqual(["student"]);
});

test("a cut explanation is told apart from a cut solution", async () => {
  gpu.cuts = "talker";
  await startWorker();
  const view = await end(await send({ explain: true }));
  expect(view.result).toMatchObject({ answer: "1", truncated: true });
  expect(view.stages.map(({ truncated }) => truncated)).toEqual([false, true]);
});

test("a waiting job of the other model is cancelled without a swap, a running one is aborted", async () => {
  gpu.serviceMs = () => 60_000;
  await startWorker();
  const running = await send({});
  await expect.poll(() => gpu.engines[0]?.serving).toBe(1);
  const waiting = await send({ model: "talker" });
  await requestCancel(queues, waiting);
  expect((await loadJobView(queues, waiting))?.status).toBe("cancelled");
  await expect.poll(() => queues.talker.getJobCountByTypes("failed")).toBe(1);
  await requestCancel(queues, running);
  expect((await end(running)).status).toBe("cancelled");
  expect(gpu.engines[0]?.serving).toBe(0);
  expect(gpu.loads).toEqual(["student"]);
});

test("a crash of the model server is survived: its jobs run again and end", async () => {
  gpu.serviceMs = () => 60_000;
  await startWorker();
  const jobs = await Promise.all([send({}), send({}), send({})]);
  await expect.poll(() => gpu.engines[0]?.serving).toBe(3);
  gpu.serviceMs = () => 1;
  gpu.engines[0]!.crash();
  for (const jobId of jobs) {
    const view = await end(jobId);
    expect(view.status).toBe("completed");
    expect(view.stages[0]?.attempts).toBe(2);
  }
  expect(gpu.violations).toEqual([]);
});

test("a model that can't be loaded keeps its jobs waiting with the reason, and the other model works on", async () => {
  gpu.loadError = () => new MathllmError("model-invalid", "the file is broken");
  const worker = await startWorker();
  const jobId = await send({});
  await expect.poll(async () => (await loadJobView(queues, jobId))?.reason ?? "", { timeout: 5000 }).toContain("the file is broken");
  expect((await loadJobView(queues, jobId))?.status).toBe("waiting");
  gpu.loadError = () => null;
  expect((await end(jobId)).status).toBe("completed");
  expect(worker.status().models.student.error).toBeNull();
  expect(gpu.violations).toEqual([]);
});

test("a second worker of the same GPU stands by and takes over when the first leaves", async () => {
  const first = await startWorker();
  await expect.poll(() => first.status().phase).toBe("idle");
  const second = await startWorker();
  expect((await end(await send({}))).status).toBe("completed");
  expect(second.status().phase).toBe("standby");
  await first.stop(5000);
  workers.splice(workers.indexOf(first), 1);
  expect((await end(await send({}))).status).toBe("completed");
  expect(second.status().residentModel).toBe("student");
  expect(gpu.violations).toEqual([]);
});

test("a graceful stop hands back what does not end in time, and the job ends with the next worker", async () => {
  gpu.serviceMs = () => 60_000;
  const first = await startWorker();
  const jobId = await send({ explain: false, priority: "interactive" });
  await expect.poll(() => gpu.engines[0]?.serving).toBe(1);
  await first.stop(50);
  workers.splice(0);
  expect(gpu.up).toBe(0);
  expect(await queues.student.getJobCountByTypes("prioritized", "wait")).toBe(1);
  gpu.serviceMs = () => 1;
  await startWorker();
  expect((await end(jobId)).status).toBe("completed");
});

test("Redis killed with -9 while jobs run: nothing is lost, the worker goes on", async () => {
  gpu.serviceMs = () => 20;
  await startWorker();
  const jobs = await Promise.all(Array.from({ length: 60 }, (_, i) => send({ explain: i % 3 === 0 })));
  await expect.poll(() => gpu.served).toBeGreaterThan(5);
  process.kill(redis.server.pid, "SIGKILL");
  for (const jobId of jobs) expect((await end(jobId)).status).toBe("completed");
  expect(gpu.violations).toEqual([]);
});

test("telemetry, heartbeat and token stream tell what happened", async () => {
  await startWorker();
  const jobId = await send({ explain: true, metadata: { user: "a" } });
  const view = await end(jobId);
  const { acceptedAt, pickedAt, firstTokenAt, finishedAt } = view.timestamps;
  expect([acceptedAt, pickedAt, firstTokenAt, finishedAt]).toEqual(
    [acceptedAt, pickedAt, firstTokenAt, finishedAt].sort((a, b) => Number(a) - Number(b)),
  );
  expect(view).toMatchObject({
    status: "completed",
    metadata: { user: "a" },
    result: { answer: "1", usage: { promptTokens: 20, completionTokens: 10 } },
  });
  await expect.poll(async () => (await readTokens(queues.redis, jobId)).map((chunk) => chunk.role)).toEqual(["student", "talker"]);
  const serviceMs = async () => (await liveWorkers(queues.redis))[0]?.models.student.serviceMs ?? 0;
  await expect.poll(serviceMs, { timeout: 5000 }).toBeGreaterThan(0);
  for (const worker of workers.splice(0)) await worker.stop(5000);
  expect(await liveWorkers(queues.redis)).toEqual([]);
  const lines = (await readFile(config.telemetryLog, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines.filter((line) => line.kind === "job").map((line) => [line.role, line.outcome])).toEqual([
    ["student", "completed"],
    ["talker", "completed"],
  ]);
  expect(lines.filter((line) => line.kind === "swap").map((line) => [line.from, line.to])).toEqual([
    [null, "student"],
    ["student", "talker"],
  ]);
});
