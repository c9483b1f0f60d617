import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { commandGpu } from "../../queues/gpu-control.ts";
import { startGpuWorker } from "../../workers/main.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

let system: GpuSystem;
const stops: (() => Promise<void>)[] = [];

beforeEach(async () => {
  system = await startGpuSystem();
});

afterEach(async () => {
  for (const stop of stops.splice(0)) await stop();
  await system.stop();
});

test("a Talker without VRAM stays up beside the Student: no swap, both serve at once, release empties both", async () => {
  const { redis, configured, send, end } = system;
  // Each on a fake GPU of its own: they don't share memory.
  const gpus = { student: new FakeGpu(), talker: new FakeGpu() };
  const worker = await startGpuWorker({
    config: configured({ TALKER_CORESIDENT: "1", TALKER_MODE: "llamacpp", TALKER_MODEL: "talker.gguf", TALKER_NGL: "0" }),
    redisUrl: redis.url,
    createEngine: (profile) => gpus[profile.role].create(profile),
    log: pino({ level: process.env.TEST_LOG ?? "silent" }),
    onFatal: (error) => gpus.student.violations.push(error.message),
  });
  stops.push(() => worker.stop(2000));
  const jobs = await Promise.all(
    Array.from({ length: 60 }, (_, i) => send({ explain: i % 3 === 0, model: i % 3 === 1 ? "talker" : "student" })),
  );
  for (const jobId of jobs) expect((await end(jobId)).status).toBe("completed");
  expect([gpus.student.loads, gpus.talker.loads]).toEqual([["student"], ["talker"]]);
  expect(worker.status()).toMatchObject({ residentModel: "student", coresidentModel: "talker", swaps: 0 });

  gpus.student.serviceMs = () => 60_000;
  gpus.talker.serviceMs = () => 60_000;
  const [solving, talking] = [await send(), await send({ model: "talker" })];
  await expect.poll(() => [gpus.student.engines[0]?.serving, gpus.talker.engines[0]?.serving]).toEqual([1, 1]);
  expect(worker.status().running).toBe(2);
  gpus.student.serviceMs = () => 1;
  gpus.talker.serviceMs = () => 1;
  gpus.talker.engines[0]!.crash({ signal: "SIGKILL" });
  expect((await end(talking)).status).toBe("completed");
  expect(gpus.student.engines[0]?.serving).toBe(1);
  gpus.student.engines[0]!.crash({ signal: "SIGKILL" });
  expect((await end(solving)).status).toBe("completed");

  await commandGpu(redis.connect(), worker.status().gpuId, { release: true });
  await expect.poll(() => [gpus.student.up, gpus.talker.up], { timeout: 5000 }).toEqual([0, 0]);
  expect((await end(await send())).status).toBe("completed");
  expect([...gpus.student.violations, ...gpus.talker.violations]).toEqual([]);
});
