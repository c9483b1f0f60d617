import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { commandGpus, gpuView } from "../../producers/operator.ts";
import { ApiClient } from "../../producers/submit.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { createEmbeddedEngine } from "../../workers/engines/embedded.ts";
import type { Engine } from "../../workers/engines/engine.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

/** Real models, real lack of memory: refused by estimate, refused by the system, killed by it. */

const log = pino({ level: process.env.TEST_LOG ?? "silent" });
let redis: RedisFixture;
let api: RunningApi;
let client: ApiClient;
let worker: GpuWorker | undefined;

beforeEach(async () => {
  redis = await startRedisFixture();
  api = await startApi({ config: configured({}), redisUrl: redis.url, log });
  client = new ApiClient(api.url);
});

afterEach(async () => {
  await worker?.stop(2000);
  worker = undefined;
  await api.close();
  await redis.stop();
});

const configured = (env: Record<string, string>): Config =>
  readConfig({
    DATA_DIR: redis.dataDir,
    TELEMETRY_LOG: path.join(redis.dataDir, "telemetry.jsonl"),
    PORT: "0",
    STUDENT_PORT: "0",
    TALKER_PORT: "0",
    STUDENT_MAX_NUM_SEQS: "256",
    ...env,
  });

async function startWorker(env: Record<string, string>, createEngine?: () => Engine): Promise<Config> {
  const config = configured(env);
  const embedded = () => createEmbeddedEngine({ dataDir: redis.dataDir, ramCapBytes: config.engineRamCapBytes, log });
  worker = await startGpuWorker({ config, redisUrl: redis.url, createEngine: createEngine ?? embedded, log, onFatal: () => {} });
  return config;
}

const solve = async () => client.finished((await client.submit({ problem: "What is 17 + 25?" })).jobId, AbortSignal.timeout(40_000));

const telemetry = (kind: string): Record<string, unknown>[] =>
  readFileSync(path.join(redis.dataDir, "telemetry.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .filter((line) => line.kind === kind);

test("refused by estimate: fewer sequences until it fits, remembered by the next worker, undone by an operator", async () => {
  const cap = { ENGINE_RAM_CAP_BYTES: "60000000" };
  await startWorker(cap);
  expect((await solve()).result?.answer).toBe("42");
  const student = () => worker!.status().models.student;
  expect(student().capacity.maxNumSeqs).toBe(64);
  expect(telemetry("oom")).toMatchObject([
    { role: "student", before: { maxNumSeqs: 256 }, after: { maxNumSeqs: 128 }, evidence: expect.stringContaining("too large") },
    { role: "student", before: { maxNumSeqs: 128 }, after: { maxNumSeqs: 64 } },
  ]);
  const shown = (await gpuView(client)).gpus[0]?.models.student;
  expect(shown?.ladder.map(({ step }) => step)).toEqual(["128 sequences instead of 256", "64 sequences instead of 128"]);

  await worker!.stop(2000);
  await startWorker(cap);
  expect((await solve()).result?.answer).toBe("42");
  expect(telemetry("oom").length).toBe(2);
  expect(student().capacity.maxNumSeqs).toBe(64);

  await commandGpus(client, "reset", {});
  await expect.poll(() => student().ladder.length, { timeout: 5000 }).toBe(0);
  expect(student().capacity.maxNumSeqs).toBe(256);
});

test.skipIf(!existsSync("/usr/bin/prlimit"))("killed for want of memory: the ladder is walked until it serves", async () => {
  const deaths: (string | null)[] = [];
  const limited = (): Engine => {
    const engine = createEmbeddedEngine({ dataDir: redis.dataDir, log });
    const start = engine.start.bind(engine);
    engine.start = async (profile) => {
      const endpoint = await start(profile);
      // Address space that holds data, beyond what the process has before it loads anything.
      const usedBytes = 1024 * Number(/^VmData:\s+(\d+)/m.exec(readFileSync(`/proc/${endpoint.pid}/status`, "utf8"))![1]);
      execFileSync("/usr/bin/prlimit", ["--pid", String(endpoint.pid), `--data=${usedBytes + 110_000_000}`]);
      void engine.exited.then(({ signal }) => deaths.push(signal));
      return endpoint;
    };
    return engine;
  };
  await startWorker({}, limited);
  expect((await solve()).result?.answer).toBe("42");
  expect(deaths).toContain("SIGABRT");
  const steps = telemetry("oom");
  expect(steps.length).toBe(worker!.status().models.student.ladder.length);
  expect(steps.some(({ evidence }) => /SIGABRT.*insufficient memory/s.test(String(evidence)))).toBe(true);
  expect((await gpuView(client)).gpus[0]?.models.student.circuit.state).toBe("closed");
});

test("a model that does not fit at all: the whole ladder, then the circuit opens and every view says why", async () => {
  await startWorker({ ENGINE_RAM_CAP_BYTES: "1048576", STUDENT_MAX_NUM_SEQS: "2", STUDENT_MAX_MODEL_LEN: "512" });
  const { jobId } = await client.submit({ problem: "What is 1 + 1?", timeoutMs: 8000 });
  await expect
    .poll(async () => (await client.job(jobId)).reason, { timeout: 30_000 })
    .toMatch(/^model-unavailable: Even the smallest setting/);
  const student = (await gpuView(client)).gpus[0]!.models.student;
  expect(student.circuit).toMatchObject({ state: expect.stringMatching(/open/), failures: expect.any(Number) });
  expect(student.ladder.map(({ step }) => step)).toEqual(["1 sequences instead of 2", "an 8-bit KV cache instead of 16-bit"]);
  expect(telemetry("guardrail")).toContainEqual(expect.objectContaining({ action: "circuit-open", role: "student" }));
  const view = await client.finished(jobId, AbortSignal.timeout(30_000));
  expect(view.error?.code).toBe("deadline-exceeded");
  expect(view.error?.detail).toContain("Even the smallest setting does not fit");
});
