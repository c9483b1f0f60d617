import path from "node:path";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createBoard } from "../../dashboards/board.ts";
import { ApiClient, type Submission } from "../../producers/submit.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { type JobView, jobViewSchema, TERMINAL_STATUSES } from "../../queues/contracts.ts";
import { PRIORITY_CLASSES, ROLES, type Role } from "../../queues/names.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { type ClusterFixture, startClusterFixture } from "../cluster-fixture.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";

const JOBS = 60;
/** A worker that was cut off never gave its lease back: the next one waits for that. */
const LEASE_TTL_MS = 2000;

let cluster: ClusterFixture;
let config: Config;
let api: RunningApi;
let client: ApiClient;
let gpu: FakeGpu;
let worker: GpuWorker;
const log = pino({ level: process.env.TEST_LOG ?? "silent" });

beforeAll(async () => {
  cluster = await startClusterFixture();
  config = readConfig({
    PORT: "0",
    REDIS_URL: cluster.url,
    DATA_DIR: cluster.dataDir,
    TELEMETRY_LOG: path.join(cluster.dataDir, "telemetry.jsonl"),
    LEASE_TTL_MS: String(LEASE_TTL_MS),
  });
  api = await startApi({ config, redisUrl: cluster.url, log, createBoard });
  client = new ApiClient(api.url);
});

beforeEach(async () => {
  gpu = new FakeGpu();
  worker = await startGpuWorker({
    config,
    redisUrl: cluster.url,
    createEngine: gpu.create,
    log,
    onFatal: (error) => gpu.violations.push(error.message),
  });
});

afterEach(() => worker.stop(5000));

afterAll(async () => {
  await api?.close();
  await cluster?.stop();
});

/** Solve, talk and explain in all classes. */
const mixed = Array.from(
  { length: JOBS },
  (_, i): Submission => ({
    problem: `What is 1 + ${i} - ${i}?`,
    model: i % 3 === 1 ? "talker" : "student",
    explain: i % 3 === 2,
    priority: PRIORITY_CLASSES[Math.floor(i / 3) % 3]!,
  }),
);

const submitAll = () => Promise.all(mixed.map(async (submission) => (await client.submit({ ...submission, cache: "off" })).jobId));

/** One long poll: it returns when the job ended, and says 503 while Redis is away. */
const poll = (jobId: string) => fetch(`${api.url}/jobs/${jobId}?wait=30`);

interface BoardQueue {
  name: Role;
  counts: Record<string, number>;
  jobs: { id: string }[];
}

async function board(query: string): Promise<Record<Role, BoardQueue>> {
  const response = await fetch(`${api.url}/dashboards/queues/api/queues?${query}`);
  expect(response.status).toBe(200);
  const { queues } = (await response.json()) as { queues: BoardQueue[] };
  return Object.fromEntries(queues.map((queue) => [queue.name, queue])) as Record<Role, BoardQueue>;
}

async function unfinished(): Promise<number> {
  const queues = await board("activeQueue=student&page=1&jobsPerPage=10");
  const states = ["waiting", "prioritized", "delayed", "active", "waiting-children"];
  return ROLES.flatMap((role) => states.map((state) => queues[role].counts[state] ?? Number.NaN)).reduce((sum, count) => sum + count, 0);
}

test("60 mixed jobs go through HTTP to their end, and the board shows them", async () => {
  gpu.serviceMs = () => 10;
  const jobIds = await submitAll();
  const [last] = jobIds.slice(-1);
  expect((await fetch(`${api.url}/jobs/${last}`, { method: "DELETE" })).ok).toBe(true);
  const views = await Promise.all(jobIds.map(async (jobId) => jobViewSchema.parse(await (await poll(jobId)).json())));
  expect(views.at(-1)?.status).toBe("cancelled");
  for (const view of views.slice(0, -1))
    expect(view).toMatchObject({ status: "completed", result: view.model === "student" ? { answer: "1" } : {} });
  expect(gpu.violations).toEqual([]);
  expect(gpu.maxUp).toBe(1);
  expect(new Set(gpu.loads)).toEqual(new Set(ROLES));
  await expect.poll(unfinished, { timeout: 10_000 }).toBe(0);

  const page = await fetch(`${api.url}/dashboards/queues`);
  expect(page.status).toBe(200);
  expect(await page.text()).toContain("mathllm");
  const { student, talker } = await board("activeQueue=student&status=completed&page=1&jobsPerPage=100");
  // Of each three one is solved only, one is talk, one is both; the last, which is both, was cancelled before its first stage ended.
  expect([student.counts.completed, talker.counts.completed]).toEqual([(2 * JOBS) / 3 - 1, (2 * JOBS) / 3 - 1]);
  expect([student.counts.failed, talker.counts.failed]).toEqual([1, 1]);
  expect(student.jobs.map(({ id }) => id)).toContain(jobIds[0]);
  expect(await (await fetch(`${api.url}/dashboards/queues/api/redis/stats`)).json()).toMatchObject({ mode: "cluster" });
});

test("a running job is aborted, a waiting one of the other model ends without a swap; both long polls hear of it", async () => {
  gpu.serviceMs = () => 60_000;
  const { jobId: running } = await client.submit({ problem: "1 + 0", cache: "off" });
  await expect.poll(() => gpu.engines[0]?.serving, { timeout: 10_000 }).toBe(1);
  const { jobId: waiting } = await client.submit({ problem: "1 + 0", cache: "off", model: "talker" });
  for (const jobId of [waiting, running]) {
    const polled = poll(jobId);
    await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" });
    expect(await (await polled).json()).toMatchObject({ status: "cancelled" });
  }
  await expect.poll(unfinished, { timeout: 10_000 }).toBe(0);
  expect(gpu.engines[0]?.serving).toBe(0);
  expect(gpu.loads).toEqual(["student"]);
});

test("kill -9 of the node that holds the queues while jobs run: nothing is lost, everything ends", async () => {
  gpu.serviceMs = () => 40;
  const jobIds = await submitAll();
  const polls = jobIds.map(async (jobId): Promise<JobView | undefined> => {
    const response = await poll(jobId);
    return response.ok ? jobViewSchema.parse(await response.json()) : undefined;
  });
  await expect.poll(() => gpu.served, { timeout: 10_000 }).toBeGreaterThan(8);
  await cluster.holder.kill();
  const refused = await fetch(`${api.url}/solve`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ problem: "1 + 0", cache: "off" }),
  });
  expect(refused.status).toBe(503);
  expect(await refused.json()).toMatchObject({ type: expect.stringContaining("redis-unavailable") });
  await cluster.holder.start();

  const heard = await Promise.all(polls);
  const views = new Map(heard.flatMap((view) => (view === undefined ? [] : [[view.jobId, view]])));
  for (const jobId of jobIds) {
    const ended = async () => {
      const view = views.get(jobId);
      if (view !== undefined && TERMINAL_STATUSES.includes(view.status)) return view.status;
      const response = await poll(jobId);
      if (response.ok) views.set(jobId, jobViewSchema.parse(await response.json()));
      return views.get(jobId)?.status;
    };
    await expect.poll(ended, { timeout: 30_000 }).toBe("completed");
  }
  await expect.poll(unfinished, { timeout: 10_000 }).toBe(0);
  expect(gpu.violations).toEqual([]);
  expect(gpu.maxUp).toBe(1);
  expect((await client.finished((await client.submit({ problem: "1 + 0", cache: "off" })).jobId)).status).toBe("completed");
  // The worker's subscription has to have outlived it too.
  gpu.serviceMs = () => 60_000;
  const { jobId } = await client.submit({ problem: "1 + 0", cache: "off" });
  await expect.poll(() => gpu.engines.at(-1)?.serving, { timeout: 10_000 }).toBe(1);
  await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" });
  await expect.poll(() => gpu.engines.at(-1)?.serving, { timeout: 10_000 }).toBe(0);
});

test.each([
  ["the node that holds the queues", () => [cluster.holder]],
  ["the whole cluster", () => cluster.nodes],
])("a worker stops while %s is away", async (_, away) => {
  gpu.serviceMs = () => 60_000;
  const { jobId } = await client.submit({ problem: "1 + 0", cache: "off" });
  await expect.poll(() => gpu.engines[0]?.serving, { timeout: 10_000 }).toBe(1);
  await Promise.all(away().map((node) => node.kill()));
  await worker.stop(50);
  expect(gpu.up).toBe(0);
  await Promise.all(away().map((node) => node.start()));
  await Promise.all(cluster.nodes.map((node) => node.ready()));
  // Cancelled, so that no later test waits for it until its lock expires.
  await expect.poll(async () => (await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" })).status).toBe(202);
});

test("one node's url alone says what to do, unless that node holds the queues; passwords are not shown", async () => {
  const other = cluster.nodes.find((node) => node !== cluster.holder)!;
  const wrong = startApi({ config, redisUrl: other.url, log });
  await expect(wrong).rejects.toMatchObject({ code: "redis-unavailable", message: expect.stringMatching(/one node of a cluster.*commas/) });
  await expect(wrong).rejects.not.toThrow(/secret/);
  await (await startApi({ config, redisUrl: cluster.holder.url, log })).close();
  await (await startApi({ config, redisUrl: `${other.url},${other.url}`, log })).close();
});
