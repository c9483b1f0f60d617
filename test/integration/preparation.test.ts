import { utimes, writeFile } from "node:fs/promises";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { MathllmError } from "../../queues/errors.ts";
import { commandGpu } from "../../queues/gpu-control.ts";
import type { Role } from "../../queues/names.ts";
import type { PreparedModel, PrepareOptions } from "../../workers/engines/engine.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

/** Preparations that a test brings to their end. */
class HeldPreparations {
  readonly begun: Role[] = [];
  readonly aborted: Role[] = [];
  readonly #held = new Map<Role, { options: PrepareOptions; end: (result: PreparedModel | Error) => void }>();

  constructor({ gpu }: GpuSystem, roles: Role[]) {
    gpu.prepare = ({ role }, options) => {
      this.begun.push(role);
      if (!roles.includes(role)) return Promise.resolve({ files: [] });
      return new Promise((resolve, reject) => {
        const end = (result: PreparedModel | Error) => (result instanceof Error ? reject(result) : resolve(result));
        options.signal!.addEventListener("abort", () => {
          this.aborted.push(role);
          reject(options.signal!.reason);
        });
        this.#held.set(role, { options, end });
      });
    };
  }

  progress(role: Role, doneBytes: number, totalBytes: number): void {
    this.#held.get(role)!.options.onProgress!({ doing: "downloading", doneBytes, totalBytes });
  }

  downloadTurn(role: Role): Promise<void> {
    return this.#held.get(role)!.options.downloadTurn!();
  }

  end(role: Role, result: PreparedModel | Error = { files: [] }): void {
    this.#held.get(role)!.end(result);
  }
}

let system: GpuSystem;

beforeEach(async () => {
  system = await startGpuSystem();
});

afterEach(async () => {
  await system.stop();
  expect(system.gpu.violations).toEqual([]);
});

const reasonOf = async (jobId: string) => (await system.view(jobId))?.reason;

test("while the Talker is downloaded the Student goes on, late Talker jobs or not, and the swap follows at once", async () => {
  const { gpu, send, end, startWorker } = system;
  const held = new HeldPreparations(system, ["talker"]);
  const worker = await startWorker({ INTERACTIVE_DEADLINE_MS: "1", GPU_POLICY: "fifo" });
  await end(await send());
  held.progress("talker", 34, 100);
  const talk = await send({ model: "talker", priority: "interactive" });
  await expect.poll(() => reasonOf(talk), { timeout: 5000 }).toBe("model-preparing: downloading the Talker, 34 %");
  for (let i = 0; i < 5; i++) expect((await end(await send({ priority: "interactive" }))).status).toBe("completed");
  await expect
    .poll(() => worker.status(), { timeout: 5000 })
    .toMatchObject({
      residentModel: "student",
      waitsFor: "downloading the Talker, 34 %",
      lastDecision: { reason: expect.stringContaining("the talker's jobs wait until their model is on this machine") },
      models: {
        talker: { preparation: { state: "preparing", doneBytes: 34, totalBytes: 100 }, error: null, circuit: { state: "closed" } },
      },
    });
  expect([gpu.loads, gpu.up]).toEqual([["student"], 1]);
  expect(await system.queues.talker.getJobCountByTypes("active")).toBe(0);
  held.end("talker");
  expect((await end(talk)).status).toBe("completed");
  expect(gpu.loads).toEqual(["student", "talker"]);
});

test("jobs come before their model: they wait with the reason, and the load begins once it is prepared", async () => {
  const { gpu, send, end, startWorker } = system;
  const held = new HeldPreparations(system, ["student"]);
  const worker = await startWorker();
  const solve = await send();
  await expect.poll(() => reasonOf(solve), { timeout: 5000 }).toBe("model-preparing: preparing the Student");
  await expect.poll(() => worker.status().phase).toBe("idle");
  expect(gpu.loads).toEqual([]);
  expect((await end(await send({ model: "talker" }))).status).toBe("completed");
  held.end("student");
  expect((await end(solve)).status).toBe("completed");
});

test("a preparation that fails is tried again, says why, and leaves the circuits and the other queue alone", async () => {
  const { gpu, send, end, startWorker, queues } = system;
  const held = new HeldPreparations(system, ["talker"]);
  const worker = await startWorker();
  await expect.poll(() => held.begun).toContain("talker");
  held.end("talker", new MathllmError("model-download-failed", "Could not download it: 404."));
  const talk = await send({ model: "talker" });
  await expect.poll(() => reasonOf(talk), { timeout: 5000 }).toBe("model-unavailable: Could not download it: 404.");
  expect((await end(await send())).status).toBe("completed");
  expect(worker.status().models.talker).toMatchObject({
    preparation: { state: "failed", retryAt: expect.any(Number) },
    error: "Could not download it: 404.",
    circuit: { state: "closed", failures: 0 },
  });
  const events = await queues.redis.xrange("{mathllm}:gpu-events", "-", "+");
  expect(events.map(([, fields]) => fields[3])).toContainEqual(expect.stringContaining('"action":"preparation-failed"'));
  await expect.poll(() => held.begun.filter((role) => role === "talker").length, { timeout: 5000 }).toBe(2);
  held.end("talker");
  expect((await end(talk)).status).toBe("completed");
  expect(gpu.loads).toEqual(["student", "talker"]);
});

test("files that have changed since they were prepared keep the resident model where it is until they are prepared anew", async () => {
  const { gpu, redis, send, end, startWorker } = system;
  const file = path.join(redis.dataDir, "talker.gguf");
  await writeFile(file, "weights");
  let preparations = 0;
  let prepareAgain = () => {};
  gpu.prepare = async ({ role }) => {
    if (role === "student") return { files: [] };
    if (++preparations > 1) {
      await new Promise<void>((resolve) => {
        prepareAgain = resolve;
      });
    }
    return { files: [file] };
  };
  const worker = await startWorker();
  await end(await send());
  await expect.poll(() => worker.status().models.talker.preparation.state).toBe("ready");
  await utimes(file, 1, 1);
  const talk = await send({ model: "talker" });
  await expect.poll(() => preparations).toBe(2);
  expect(await reasonOf(talk)).toMatch(/^model-preparing: .*its files have changed/);
  expect((await end(await send())).status).toBe("completed");
  expect(gpu.loads).toEqual(["student"]);
  prepareAgain();
  expect((await end(talk)).status).toBe("completed");
});

test("the model whose jobs wait is downloaded first, the other's download makes room and goes on afterwards", async () => {
  const { send, end, startWorker } = system;
  const held = new HeldPreparations(system, ["student", "talker"]);
  await startWorker();
  await expect.poll(() => held.begun.length).toBe(2);
  await held.downloadTurn("student");
  const talkersTurn = held.downloadTurn("talker");
  const talk = await send({ model: "talker" });
  await talkersTurn;
  await expect.poll(() => held.aborted).toEqual(["student"]);
  await expect.poll(() => held.begun).toEqual(["student", "talker", "student"]);
  const studentsTurn = held.downloadTurn("student");
  held.end("talker");
  await studentsTurn;
  expect((await end(talk)).status).toBe("completed");
});

test("a start that never ends is given up within ENGINE_START_TIMEOUT_MS, and the other model works on", async () => {
  const { gpu, send, end, startWorker } = system;
  gpu.starting = ({ role }) => (role === "talker" ? new Promise(() => {}) : Promise.resolve());
  await startWorker({ ENGINE_START_TIMEOUT_MS: "200" });
  const talk = await send({ model: "talker" });
  await expect.poll(() => reasonOf(talk), { timeout: 5000 }).toContain("was not started within 200 ms");
  expect((await end(await send())).status).toBe("completed");
});

test("an operator's swap to a model that is still being prepared is carried out when it is", async () => {
  const { gpu, send, end, startWorker, redis } = system;
  const held = new HeldPreparations(system, ["talker"]);
  const worker = await startWorker();
  await end(await send());
  await commandGpu(redis.connect(), worker.status().gpuId, { swapTo: "talker" });
  expect((await end(await send())).status).toBe("completed");
  expect(gpu.loads).toEqual(["student"]);
  held.end("talker");
  await expect.poll(() => worker.status().residentModel, { timeout: 5000 }).toBe("talker");
});

test("stopping the worker stops its downloads", async () => {
  const { startWorker } = system;
  const held = new HeldPreparations(system, ["student", "talker"]);
  const worker = await startWorker();
  await expect.poll(() => held.begun.length).toBe(2);
  await worker.stop(1000);
  expect(held.aborted.sort()).toEqual(["student", "talker"]);
});
