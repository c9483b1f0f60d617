import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { isAlive, startTicksOf } from "../../queues/process-identity.ts";
import { engineFactory } from "../../workers/engines/engines.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { type FakeGpuMachine, fakeGpuMachine } from "../fakes/fake-gpu-machine.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

/** The worker with both models on vLLM, up to the process boundary: what it starts, puts to sleep, wakes and stops, and when. */
let system: GpuSystem;
let machine: FakeGpuMachine;
let worker: GpuWorker | undefined;

beforeEach(async () => {
  system = await startGpuSystem();
  machine = await fakeGpuMachine(system.redis.dataDir);
});

afterEach(async () => {
  await worker?.stop(2000);
  machine.restore();
  await system.stop();
});

async function startWorker(env: Record<string, string> = {}): Promise<GpuWorker> {
  const modes = { STUDENT_MODE: "vllm", TALKER_MODE: "vllm", STUDENT_MODEL: "owner/student", TALKER_MODEL: "owner/talker" };
  const config = system.configured({
    ...modes,
    STUDENT_PORT: "0",
    TALKER_PORT: "0",
    VLLM_BIN: machine.vllmBin,
    GPU_ID: `vllm-${process.pid}`,
    ...env,
  });
  const log = pino({ level: process.env.TEST_LOG ?? "silent" });
  worker = await startGpuWorker({ config, redisUrl: system.redis.url, createEngine: engineFactory(config, log), log, onFatal: () => {} });
  return worker;
}

async function telemetryLines(folder: string): Promise<Record<string, unknown>[]> {
  return (await readFile(path.join(folder, "telemetry.jsonl"), "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

const solve = async () => expect((await system.end(await system.send())).status).toBe("completed");
const talk = async () => expect((await system.end(await system.send({ model: "talker" }))).status).toBe("completed");
const events = async () => (await machine.log()).map((line) => line.split(" ").slice(0, 2).join(" "));

test("without sleep every swap is a stop and a start", async () => {
  await startWorker();
  await solve();
  await talk();
  await solve();
  expect(await events()).toEqual(["student start", "student end", "talker start", "talker end", "student start"]);
  expect((await machine.log())[0]).toContain("--gpu-memory-utilization 0.85 --max-model-len 4096 --max-num-seqs 8");
});

test("with sleep level 1 the first swap starts the other, later ones wake", async () => {
  const worker = await startWorker({ STUDENT_SLEEP_LEVEL: "1", TALKER_SLEEP_LEVEL: "1" });
  await solve();
  await talk();
  await solve();
  await talk();
  expect(await machine.log()).toEqual([
    expect.stringMatching(/^student start.*--enable-sleep-mode/),
    "student sleep 1",
    expect.stringContaining("talker start"),
    "talker sleep 1",
    "student wake",
    "student sleep 1",
    "talker wake",
  ]);
  expect(worker.status().server.state).toBe("ready");
  await worker.stop(2000);
  expect((await events()).filter((line) => line.endsWith("end")).length).toBeLessThanOrEqual(2);
});

test("level 2 reads the weights again between the two steps of waking", async () => {
  await startWorker({ STUDENT_SLEEP_LEVEL: "2" });
  await solve();
  await talk();
  await solve();
  expect(await machine.log()).toEqual([
    expect.stringContaining("student start"),
    "student sleep 2",
    expect.stringContaining("talker start"),
    "talker end after 2",
    "student wake weights",
    "student rpc reload_weights",
    "student wake kv_cache",
  ]);
});

test("a server that does not wake is replaced by a new one", async () => {
  await startWorker({ STUDENT_SLEEP_LEVEL: "1" });
  await solve();
  await talk();
  await machine.misbehave("no-wake");
  await solve();
  expect((await events()).filter((line) => line === "student start").length).toBe(2);
  expect(await machine.log()).not.toContain("student asked while asleep");
});

test("release stops the sleeping ones too", async () => {
  const worker = await startWorker({ STUDENT_SLEEP_LEVEL: "1", TALKER_SLEEP_LEVEL: "1", IDLE_UNLOAD_SECONDS: "1" });
  await solve();
  await talk();
  await expect.poll(() => worker.status().residentModel, { timeout: 5000 }).toBeNull();
  await solve();
  expect((await events()).filter((line) => line === "student start").length).toBe(2);
});

test("out of memory in vLLM's words walks the ladder", async () => {
  await machine.misbehave("oom");
  const worker = await startWorker();
  await solve();
  expect(worker.status().models.student).toMatchObject({ capacity: { maxNumSeqs: 2 }, circuit: { state: "closed" } });
});

test("memory that does not come back after a stop: the next load waits, then goes on and it is reported", async () => {
  await machine.misbehave("leaks");
  await startWorker({ VRAM_FREED_TIMEOUT_MS: "700" });
  await solve();
  const leakedAt = Date.now();
  await talk();
  expect(Date.now() - leakedAt).toBeGreaterThan(700);
  const reports = (await telemetryLines(system.redis.dataDir)).filter((line) => line.action === "memory-not-freed");
  expect(reports).toEqual([
    expect.objectContaining({ kind: "guardrail", role: "student", reason: expect.stringContaining("another program has taken memory") }),
  ]);
});

test("a server that says it sleeps but keeps its memory is stopped", async () => {
  await machine.misbehave("sleep-leaks");
  await startWorker({ STUDENT_SLEEP_LEVEL: "1", VRAM_FREED_TIMEOUT_MS: "700" });
  await solve();
  await talk();
  expect(await events()).toEqual(["student start", "student sleep", "student end", "talker start"]);
});

test("a model server that knows nothing of its parent still ends with a worker that is killed", async () => {
  const script = `import { createVllmEngine } from ${JSON.stringify(path.join(import.meta.dirname, "../../workers/engines/vllm.ts"))};
    import { readConfig } from ${JSON.stringify(path.join(import.meta.dirname, "../../queues/config.ts"))};
    const { profiles } = readConfig({ STUDENT_MODE: "vllm", STUDENT_MODEL: "owner/x", STUDENT_PORT: "0" });
    const engine = createVllmEngine({ bin: ${JSON.stringify(machine.vllmBin)}, dataDir: ${JSON.stringify(machine.folder)} });
    const { pid } = await engine.start(profiles.student);
    await engine.ready(10_000);
    console.log(pid);
    setInterval(() => {}, 1000);`;
  const owner = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  const [text] = await once(owner.stdout!, "data");
  const server = { pid: Number(text), startTicks: startTicksOf(Number(text)) };
  expect(isAlive(server)).toBe(true);
  owner.kill("SIGKILL");
  await expect.poll(() => isAlive(server), { timeout: 5000 }).toBe(false);
});

test("each start has a key of its own, the card of the worker, and the hub's token only for a model from the hub", async () => {
  vi.stubEnv("WEBHOOK_SECRET", "whsec_secret");
  vi.stubEnv("VLLM_LOGGING_LEVEL", "DEBUG");
  vi.stubEnv("OF_THE_OWNER", "yes");
  try {
    const folder = path.join(system.redis.dataDir, "local-model");
    await mkdir(folder);
    await writeFile(path.join(folder, "model.safetensors"), "weights");
    await startWorker({ HF_TOKEN: "hf_secret", STUDENT_MODEL: folder, ENGINE_ENV: "OF_THE_OWNER", STUDENT_SLEEP_LEVEL: "1" });
    await solve();
    await talk();
    await solve();
    const student = await machine.environmentOf("student");
    const talker = await machine.environmentOf("talker");
    expect(student).toMatchObject({
      CUDA_VISIBLE_DEVICES: "0",
      CUDA_DEVICE_ORDER: "PCI_BUS_ID",
      VLLM_LOGGING_LEVEL: "DEBUG",
      OF_THE_OWNER: "yes",
    });
    expect(student.VLLM_API_KEY).toMatch(/^[0-9a-f]{64}$/);
    expect(talker.VLLM_API_KEY).not.toBe(student.VLLM_API_KEY);
    expect([student.HF_TOKEN, talker.HF_TOKEN]).toEqual([undefined, "hf_secret"]);
    expect([student.WEBHOOK_SECRET, talker.WEBHOOK_SECRET]).toEqual([undefined, undefined]);
    expect(student.PYTHONPATH).toMatch(/vllm-guard$/);
    const log = await machine.log();
    expect(log[0]).toContain("--middleware mathllm_guard.Guard");
    expect(log.filter((line) => line.includes("without key"))).toEqual([]);
    expect(log.join()).not.toContain(student.VLLM_API_KEY);
  } finally {
    vi.unstubAllEnvs();
  }
});

test("the hub's token is neither printed nor logged", async () => {
  const config = system.configured({ STUDENT_MODE: "vllm", STUDENT_MODEL: "owner/x", VLLM_BIN: machine.vllmBin, HF_TOKEN: "hf_secret" });
  const { command } = await engineFactory(config, pino({ level: "silent" }))(config.profiles.student).dryRun(config.profiles.student);
  expect(command).toContain('HF_TOKEN="$HF_TOKEN"');
  expect(command).not.toContain("hf_secret");
});

test("vLLM's counters come into the samples", async () => {
  await startWorker();
  await solve();
  const config = system.configured({ STUDENT_MODE: "vllm", STUDENT_MODEL: "owner/x", VLLM_BIN: machine.vllmBin, STUDENT_PORT: "0" });
  const engine = engineFactory(config, pino({ level: "silent" }))(config.profiles.student);
  await engine.start(config.profiles.student);
  await engine.ready(10_000);
  expect(await engine.metrics()).toEqual({
    requestsRunning: 3,
    requestsWaiting: 2,
    promptTokensTotal: 1000,
    completionTokensTotal: 500,
    draftTokensTotal: 50,
    draftAcceptedTokensTotal: 40,
    kvCacheUsage: 0.25,
    preemptionsTotal: 1,
    prefixCacheHitTokensTotal: 320,
    prefixCacheQueryTokensTotal: 800,
  });
  await engine.stop(1000);
});
