import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readConfig } from "../../queues/config.ts";
import { engineFactory } from "../../workers/engines/engines.ts";
import { FitCheck } from "../../workers/gpu/fit-check.ts";
import { readVram } from "../../workers/gpu/gpu-memory.ts";
import { startGpuWorker } from "../../workers/main.ts";
import { type FakeGpuMachine, fakeGpuMachine } from "../fakes/fake-gpu-machine.ts";
import { startGpuSystem } from "../gpu-system.ts";

/** A 12 GB card as far as nvidia-smi can tell, and a Student of the owner's real shape: only its configuration is needed. */
const log = pino({ level: process.env.TEST_LOG ?? "silent" });
let folder: string;
let machine: FakeGpuMachine;
let student: string;

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-fit-"));
  machine = await fakeGpuMachine(folder);
  student = path.join(folder, "student");
  await mkdir(student);
  const shapes = path.join(import.meta.dirname, "../fixtures/model-shapes");
  await copyFile(path.join(shapes, AWQ_SHAPE), path.join(student, "config.json"));
  // The stand-in for vLLM reads no weights.
  await writeFile(path.join(student, "model-00001-of-00001.safetensors"), "");
  await writeFile(
    path.join(student, "model.safetensors.index.json"),
    JSON.stringify({ metadata: { total_size: 5_570_000_000 }, weight_map: {} }),
  );
});

afterEach(async () => {
  machine.restore();
  await rm(folder, { recursive: true, force: true });
});

const AWQ_SHAPE = "qwen2-7b-awq.json";
const configured = (env: Record<string, string> = {}) =>
  readConfig({ DATA_DIR: folder, STUDENT_MODE: "vllm", STUDENT_MODEL: student, STUDENT_PORT: "0", VLLM_BIN: machine.vllmBin, ...env });

async function check(env: Record<string, string> = {}) {
  const config = configured(env);
  return new FitCheck(config, "GPU-1", log).check(config.profiles.student, await readVram("GPU-1"));
}

test("what fits is loaded as asked", async () => {
  expect(await check()).toMatchObject({ maxNumSeqs: 8, maxModelLen: 4096, gpuMemoryUtilization: 0.85 });
});

test("what can never fit is out of memory, with the sum and what would fit; forced, it is tried", async () => {
  await expect(check({ STUDENT_MAX_NUM_SEQS: "64" })).rejects.toMatchObject({
    code: "out-of-memory",
    message: expect.stringMatching(/does not fit: weights .* = .*> 0\.85 .*At this context 1\d sequences would fit/s),
  });
  expect(await check({ STUDENT_MAX_NUM_SEQS: "64", FORCE_LOAD: "1" })).toMatchObject({ maxNumSeqs: 64 });
});

test("a desktop's memory lowers vLLM's share; a game's leaves too little, and who has it is named", async () => {
  await machine.otherUse(2600);
  const { gpuMemoryUtilization } = await check();
  expect(gpuMemoryUtilization).toBeLessThan(0.85);
  expect(gpuMemoryUtilization).toBeGreaterThan(0.6);
  await machine.otherUse(9000);
  await writeFile(path.join(folder, "vram-1"), "500");
  await expect(check()).rejects.toMatchObject({
    code: "memory-taken",
    message: expect.stringMatching(/waits for memory: .*It is held by a-game \(process 1, /s),
  });
});

test("the context is bounded by the model's own", async () => {
  const models = path.join(import.meta.dirname, "../../models");
  const config = readConfig({ DATA_DIR: folder, STUDENT_MODEL: path.join(models, "student.gguf") });
  expect((await new FitCheck(config, "cpu-1", log).check(config.profiles.student, null)).maxModelLen).toBe(512);
});

test("a draft of another vocabulary is refused before anything is loaded, with the first token that differs", async () => {
  const models = path.join(import.meta.dirname, "../../models");
  const check = (draft: string, mode: string) => {
    const env = { STUDENT_MODE: mode, STUDENT_MODEL: path.join(models, "student.gguf"), STUDENT_SPECULATIVE_ENABLED: "1" };
    const config = readConfig({ DATA_DIR: folder, ...env, STUDENT_DRAFT_MODEL: path.resolve(models, draft) });
    return new FitCheck(config, "cpu-1", log).check(config.profiles.student, null);
  };
  const bytes = await readFile(path.join(models, "draft.gguf"));
  bytes.write("Xhe", bytes.indexOf("The"));
  const other = path.join(folder, "other-vocabulary.gguf");
  await writeFile(other, bytes);
  for (const mode of ["embedded", "llamacpp"]) {
    await check("draft.gguf", mode);
    await expect(check(other, mode)).rejects.toMatchObject({
      code: "model-invalid",
      message: expect.stringMatching(/another vocabulary.*token \d+ is/),
    });
  }
});

test("a worker waits while someone else has the memory, says who and why, and goes on when it is given back", async () => {
  const system = await startGpuSystem();
  await machine.otherUse(11_000);
  const config = system.configured({ ...environmentOf(), GPU_ID: `fit-${process.pid}` });
  const worker = await startGpuWorker({
    config,
    redisUrl: system.redis.url,
    createEngine: engineFactory(config, log),
    log,
    onFatal: () => {},
  });
  try {
    const jobId = await system.send();
    await expect.poll(async () => (await system.view(jobId))?.reason, { timeout: 10_000 }).toContain("waits for memory");
    expect(worker.status().models.student).toMatchObject({ ladder: [], circuit: { state: expect.stringMatching(/open/) } });
    await machine.otherUse(600);
    expect((await system.end(jobId)).status).toBe("completed");
  } finally {
    await worker.stop(1000);
    await system.stop();
  }
});

const environmentOf = () => ({ STUDENT_MODE: "vllm", STUDENT_MODEL: student, STUDENT_PORT: "0", VLLM_BIN: machine.vllmBin });
