import http from "node:http";
import type { AddressInfo } from "node:net";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { jobViewSchema } from "../../queues/contracts.ts";
import { BUCKETS_S, METRICS, MetricCounts } from "../../queues/metrics.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

let system: GpuSystem;
let apis: RunningApi[];
let logged: Record<string, unknown>[];
const SECRET = `whsec_${Buffer.alloc(32, 7).toString("base64")}`;

beforeEach(async () => {
  system = await startGpuSystem();
  const config = system.configured({
    PORT: "0",
    INTERACTIVE_MAX_DEPTH: "1",
    WEBHOOK_SECRET: SECRET,
    WEBHOOK_ALLOW_PRIVATE: "1",
    WEBHOOK_RETRY_MS: "50",
  });
  logged = [];
  const log = pino({ level: "info" }, { write: (line: string) => void logged.push(JSON.parse(line)) });
  const start = () => startApi({ config, redisUrl: system.redis.url, log });
  apis = await Promise.all([start(), start()]);
});
afterEach(async () => {
  for (const api of apis) await api.close();
  await system.stop();
});

const post = (body: object, path = "/solve") =>
  fetch(apis[0]!.url + path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

async function solve(body: object) {
  const { jobId } = (await (await post({ cache: "off", ...body })).json()) as { jobId: string };
  return jobViewSchema.parse(await (await fetch(`${apis[1]!.url}/jobs/${jobId}?wait=30`)).json());
}

/** Every sample by its name with labels. */
async function samplesOf(api: RunningApi): Promise<Record<string, number>> {
  const response = await fetch(`${api.url}/metrics`);
  expect(response.headers.get("content-type")).toContain("version=0.0.4");
  const lines = (await response.text()).split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return Object.fromEntries(
    lines.map((line) => {
      const [, name, value] = /^([a-z0-9_]+(?:\{[^{}]*\})?) (\S+)$/.exec(line) ?? [];
      expect(Number.isFinite(Number(value)), line).toBe(true);
      return [name!, Number(value)];
    }),
  );
}

test("histograms are right over several API processes and through a worker's restart", async () => {
  const worker = await system.startWorker();
  const first = [await solve({ problem: "a" }), await solve({ problem: "b" }), await solve({ problem: "c", explain: true })];
  await worker.stop(1000);
  await system.startWorker();
  const last = await solve({ problem: "d", priority: "interactive" });
  const student = 'model="student",class="normal"';
  const talker = 'model="talker",class="normal"';
  await expect.poll(async () => (await samplesOf(apis[0]!))['mathllm_e2e_seconds_count{model="student",class="interactive"}']).toBe(1);
  const [told, toldByOther] = await Promise.all(apis.map(samplesOf));
  expect(told).toEqual(toldByOther);
  expect(told).toMatchObject({
    [`mathllm_queue_wait_seconds_count{${student}}`]: 3,
    [`mathllm_ttft_seconds_count{${student}}`]: 3,
    [`mathllm_service_seconds_count{${student}}`]: 3,
    [`mathllm_service_seconds_count{${talker}}`]: 1,
    [`mathllm_e2e_seconds_count{${student}}`]: 2,
    [`mathllm_e2e_seconds_count{${talker}}`]: 1,
    [`mathllm_stages_total{${student},outcome="completed"}`]: 3,
    'mathllm_queue_wait_seconds_count{model="student",class="interactive"}': 1,
    'mathllm_swap_seconds_count{model="talker"}': 1,
    'mathllm_swap_seconds_count{model="student"}': 2,
    mathllm_workers_live: 1,
  });
  // The Talker's stage of an explanation waited for the Student's, not for its turn.
  expect(told).not.toHaveProperty([`mathllm_queue_wait_seconds_count{${talker}}`]);

  const e2eMs = first.slice(0, 2).map(({ timestamps }) => timestamps.finishedAt! - timestamps.acceptedAt);
  expect(told![`mathllm_e2e_seconds_sum{${student}}`]).toBeCloseTo((e2eMs[0]! + e2eMs[1]!) / 1000, 6);
  const buckets = [...BUCKETS_S.map(String), "+Inf"].map((le) => told![`mathllm_e2e_seconds_bucket{${student},le="${le}"}`]!);
  expect(buckets).toEqual([...BUCKETS_S, Number.POSITIVE_INFINITY].map((le) => e2eMs.filter((ms) => ms <= le * 1000).length));
  expect(last.status).toBe("completed");
});

test("what was refused, and what became of webhooks and of cancelled jobs, is counted", async () => {
  const waiting = await post({ problem: "a", priority: "interactive" });
  expect(waiting.status).toBe(202);
  expect((await post({ problem: "b", priority: "interactive" })).status).toBe(429);
  const messages = [{ role: "user", content: "c" }];
  expect((await post({ model: "student", service_tier: "priority", messages }, "/v1/chat/completions")).status).toBe(429);

  const { jobId } = (await waiting.json()) as { jobId: string };
  await fetch(`${apis[0]!.url}/jobs/${jobId}`, { method: "DELETE" });
  const statuses = [500, 200];
  const listener = http.createServer((_request, response) => response.writeHead(statuses.shift() ?? 200).end()).listen(0, "127.0.0.1");
  await new Promise((resolve) => listener.once("listening", resolve));
  await system.startWorker();
  const url = `http://127.0.0.1:${(listener.address() as AddressInfo).port}/`;
  await solve({ problem: "d", webhook: { url } });
  await expect
    .poll(() => samplesOf(apis[1]!), { timeout: 5000 })
    .toMatchObject({
      'mathllm_refused_total{code="queue-full"}': 2,
      'mathllm_stages_total{model="student",class="interactive",outcome="cancelled"}': 1,
      'mathllm_webhook_attempts_total{outcome="failed"}': 1,
      'mathllm_webhook_attempts_total{outcome="delivered"}': 1,
    });
  listener.close();
});

test("what could not be written is written the next time", async () => {
  const redis = system.redis.connect();
  const errors: string[] = [];
  const counts = new MetricCounts(redis, ({ message }) => errors.push(message));
  const multi = redis.multi.bind(redis);
  redis.multi = () => {
    redis.multi = multi as typeof redis.multi;
    throw new Error("away");
  };
  counts.count("mathllm_refused_total", { code: "queue-full" });
  await counts.flush();
  expect(errors).toEqual(["away"]);
  counts.count("mathllm_refused_total", { code: "queue-full" });
  await counts.flush();
  expect(await samplesOf(apis[0]!)).toMatchObject({ 'mathllm_refused_total{code="queue-full"}': 2 });
});

test("every metric is told with its help and type, also before anything was counted", async () => {
  const text = await (await fetch(`${apis[0]!.url}/metrics`)).text();
  const types = [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name, type]) => [name, type]);
  expect(types).toEqual(METRICS.map(({ name, type }) => [name, type]));
  expect([...text.matchAll(/^# HELP (\S+) \S/gm)].map(([, name]) => name)).toEqual(METRICS.map(({ name }) => name));
});

test("a request's line in the log carries its id, which the client gets too, and the job that it made", async () => {
  const response = await post({ problem: "What is the secret sum?" });
  const { jobId } = (await response.json()) as { jobId: string };
  const requestId = response.headers.get("x-request-id");
  await expect.poll(() => logged).toContainEqual(expect.objectContaining({ requestId, jobId, path: "/solve", status: 202 }));
  expect(JSON.stringify(logged)).not.toContain("secret sum");
});
