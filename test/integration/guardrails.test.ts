import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { MathllmError } from "../../queues/errors.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

let system: GpuSystem;

beforeEach(async () => {
  system = await startGpuSystem();
});

afterEach(async () => {
  await system.stop();
});

const serving = (count: number) => expect.poll(() => system.gpu.engines.at(-1)?.serving).toBe(count);

async function telemetry(kind: string): Promise<Record<string, unknown>[]> {
  const text = await readFile(path.join(system.redis.dataDir, "telemetry.jsonl"), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .filter((line) => line.kind === kind);
}

test("a job that kills its server three times, the last time alone, is set aside; those beside it are completed", async () => {
  const { gpu, send, end, view, startWorker } = system;
  gpu.serviceMs = () => 60_000;
  await startWorker({ JOB_ATTEMPTS: "1" });
  const poison = await send({ problem: "poison" });
  const beside = [await send({ problem: "beside 1" }), await send({ problem: "beside 2" })];
  for (const crash of [1, 2]) {
    await serving(3);
    if (crash === 2) gpu.serviceMs = (prompt) => (prompt.includes("poison") ? 60_000 : 20);
    gpu.engines.at(-1)!.crash();
    await expect.poll(() => gpu.loads.length).toBe(crash + 1);
  }
  // All three were there twice, so each now runs alone, whichever comes first.
  const later = await send({ problem: "later" });
  await expect.poll(async () => (await view(poison))?.stages[0]?.attempts, { timeout: 10_000 }).toBe(3);
  await serving(1);
  gpu.engines.at(-1)!.crash({ lastLines: ["poisoned by it"] });
  const set = await end(poison);
  expect(set).toMatchObject({ status: "failed", error: { code: "job-crashes-model", detail: expect.stringContaining("poisoned by it") } });
  for (const jobId of [...beside, later]) expect((await end(jobId)).status).toBe("completed");
  expect(gpu.violations).toEqual([]);
  expect(await telemetry("guardrail")).toContainEqual(expect.objectContaining({ action: "job-set-aside", jobId: poison }));
});

test("kills from outside are never a job's fault and use up no attempt", async () => {
  const { gpu, send, end, startWorker } = system;
  gpu.serviceMs = () => 60_000;
  await startWorker({ JOB_ATTEMPTS: "1" });
  const jobId = await send();
  for (let kill = 1; kill <= 5; kill++) {
    await serving(1);
    if (kill === 5) gpu.serviceMs = () => 1;
    gpu.engines.at(-1)!.crash({ signal: "SIGKILL" });
    await expect.poll(() => gpu.loads.length, { timeout: 10_000 }).toBe(kill + 1);
  }
  expect(await end(jobId)).toMatchObject({ status: "completed", stages: [{ attempts: 6 }] });
});

test("a crash loop opens the circuit: jobs wait with the reason, no attempt is used, and it closes once a job is done", async () => {
  const { gpu, send, end, view, startWorker } = system;
  gpu.serviceMs = () => 60_000;
  const worker = await startWorker({ JOB_ATTEMPTS: "1" });
  const jobId = await send();
  for (let crash = 1; crash <= 3; crash++) {
    await serving(1);
    gpu.engines.at(-1)!.crash({ signal: "SIGKILL", lastLines: ["again"] });
    if (crash < 3) await expect.poll(() => gpu.loads.length).toBe(crash + 1);
  }
  await expect.poll(async () => (await view(jobId))?.reason).toMatch(/^model-unavailable: The model server was ended by SIGKILL.*again/);
  expect(worker.status().models.student.circuit).toMatchObject({ state: "open", failures: 3 });
  expect((await view(jobId))?.status).toBe("active");
  gpu.serviceMs = () => 1;
  expect((await end(jobId)).status).toBe("completed");
  await expect.poll(() => worker.status().models.student.circuit).toEqual({ state: "closed", failures: 0, until: null });
});

test("out of memory walks the ladder and never opens the circuit while a step is left", async () => {
  const { gpu, send, end, startWorker } = system;
  gpu.loadError = (profile) =>
    profile.maxNumSeqs > 2 ? new MathllmError("engine-failed", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate") : null;
  const worker = await startWorker();
  expect((await end(await send())).status).toBe("completed");
  expect(worker.status().models.student).toMatchObject({ capacity: { maxNumSeqs: 2 }, circuit: { state: "closed" }, error: null });
  expect((await telemetry("oom")).map(({ step }) => step)).toEqual(["4 sequences instead of 8", "2 sequences instead of 4"]);
});

test("another setting forgets the ladder of the old one", async () => {
  const { gpu, send, end, startWorker } = system;
  gpu.loadError = (profile) => (profile.maxNumSeqs > 4 ? new MathllmError("out-of-memory", "no room") : null);
  const first = await startWorker();
  await end(await send());
  expect(first.status().models.student.ladder.length).toBe(1);
  await first.stop(1000);
  const second = await startWorker({ STUDENT_MAX_NUM_SEQS: "3" });
  await end(await send());
  expect(second.status().models.student).toMatchObject({ ladder: [], capacity: { maxNumSeqs: 3 } });
});

test("a server that hangs is killed by the health watch and its jobs run again", async () => {
  const { gpu, send, end, startWorker } = system;
  gpu.serviceMs = () => 60_000;
  const worker = await startWorker({ ENGINE_HEALTH_TIMEOUT_MS: "300", JOB_ATTEMPTS: "1" });
  const jobId = await send();
  await serving(1);
  gpu.healthy = false;
  gpu.serviceMs = () => 1;
  await expect.poll(() => worker.status().server.lastError, { timeout: 10_000 }).not.toBeNull();
  gpu.healthy = true;
  expect((await end(jobId)).status).toBe("completed");
  expect(gpu.loads).toEqual(["student", "student"]);
});

test("idle for long, the model is unloaded, and the next job loads it again", async () => {
  const { gpu, send, end, startWorker } = system;
  const worker = await startWorker({ IDLE_UNLOAD_SECONDS: "1" });
  await end(await send());
  expect(gpu.up).toBe(1);
  await expect.poll(() => gpu.up, { timeout: 5000 }).toBe(0);
  await expect.poll(() => worker.status()).toMatchObject({ residentModel: null, phase: "idle", server: { state: "stopped" } });
  expect(worker.status().decisions.map(({ reason }) => reason)).toContain("the GPU is free: no work for 1 s");
  expect((await end(await send())).status).toBe("completed");
});

test("above the VRAM watermark one job runs at a time; below it as many as fit", async () => {
  const { gpu, redis, send, end, startWorker } = system;
  // A stand-in for nvidia-smi: what it says is what stands in a file.
  const bin = path.join(redis.dataDir, "bin");
  await mkdir(bin);
  const vram = (usedMebibytes: number) => writeFile(path.join(bin, "vram"), `${usedMebibytes}, 12227\n`);
  await vram(11_700);
  await writeFile(
    path.join(bin, "nvidia-smi"),
    `#!/bin/sh
vram=${path.join(bin, "vram")}
case "$*" in
  *query-gpu=name*) read -r used total < $vram; echo "NVIDIA GeForce RTX 5070, $total, $((total - \${used%,}))" ;;
  *uuid*) echo 0, GPU-test ;;
  *-lms*)
    while [ -e $vram ]; do
      read -r used total < $vram && echo "2026/10/05 12:00:00.000, $total, $used 0, 0, 40, 20.00, 300"
      sleep 0.2
    done ;;
  *) cat $vram ;;
esac
`,
  );
  await chmod(path.join(bin, "nvidia-smi"), 0o755);
  const before = process.env.PATH;
  process.env.PATH = `${bin}:${before}`;
  try {
    gpu.serviceMs = () => 60_000;
    const worker = await startWorker({ VRAM_WATERMARK: "0.95", SHUTDOWN_GRACE_MS: "100" });
    await expect.poll(() => worker.status().vram?.usedBytes, { timeout: 5000 }).toBe(11_700 * 1_048_576);
    const jobs = [await send(), await send(), await send()];
    await serving(1);
    await expect.poll(() => worker.status().waitsFor).toContain("95.7 % of the VRAM is in use");
    expect(gpu.engines.at(-1)?.serving).toBe(1);
    await vram(9000);
    await expect.poll(() => gpu.engines.at(-1)?.serving, { timeout: 5000 }).toBe(3);
    expect((await telemetry("guardrail")).map(({ action }) => action)).toEqual(["watermark-reached", "watermark-left"]);
    gpu.serviceMs = () => 1;
    gpu.engines.at(-1)!.crash({ signal: "SIGKILL" });
    for (const jobId of jobs) expect((await end(jobId)).status).toBe("completed");
  } finally {
    process.env.PATH = before;
  }
});

test("the states of a model server follow each other as written down", async () => {
  const { gpu, send, end, startWorker, queues } = system;
  await startWorker();
  await end(await send());
  await end(await send({ model: "talker" }));
  gpu.engines.at(-1)!.crash();
  const states = async () => {
    const events = await queues.redis.xrange("{mathllm}:gpu-events", "-", "+");
    return events.filter(([, fields]) => fields[1] === "server").map(([, fields]) => JSON.parse(fields[3]!).state);
  };
  const life = ["starting", "warming", "ready"];
  await expect.poll(states).toEqual([...life, "draining", "stopping", "stopped", ...life, "failed", "stopping", "stopped"]);
});
