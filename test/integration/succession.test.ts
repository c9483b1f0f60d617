import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { keys } from "../../queues/names.ts";
import { isAlive, type ProcessIdentity, startTicksOf } from "../../queues/process-identity.ts";
import { liveWorkers } from "../../queues/worker-status.ts";
import { takeHostLock } from "../../workers/gpu/host-lock.ts";
import { clearPort, killModelServer, portOwner } from "../../workers/gpu/left-behind.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

let system: GpuSystem;
const children: ChildProcess[] = [];

beforeEach(async () => {
  system = await startGpuSystem();
});

afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  await system.stop();
});

const root = path.join(import.meta.dirname, "../..");

/** A worker as its user starts it, in a process of its own, with the shipped models. */
function spawnWorker(env: Record<string, string> = {}): ChildProcess & { pid: number } {
  const child = spawn(process.execPath, [path.join(root, "mathllm.ts"), "worker"], {
    env: {
      ...process.env,
      REDIS_URL: system.redis.url,
      DATA_DIR: system.redis.dataDir,
      TELEMETRY_LOG: path.join(system.redis.dataDir, `telemetry-${children.length}.jsonl`),
      STUDENT_PORT: "0",
      TALKER_PORT: "0",
      LEASE_TTL_MS: "2000",
      LOG_LEVEL: process.env.TEST_LOG ?? "fatal",
      ...env,
    },
    stdio: ["ignore", "inherit", "inherit"],
  });
  children.push(child);
  return child as ChildProcess & { pid: number };
}

const workers = () => liveWorkers(system.queues.redis);
const holder = async () => (await workers()).find((worker) => worker.phase !== "standby");

function modelServersOf(pid: number): ProcessIdentity[] {
  const list = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number);
  return list.map((child) => ({ pid: child, startTicks: startTicksOf(child) }));
}

test("a stopped worker with a loaded model and running jobs is succeeded: its server dies first, then it, then the next one loads", {
  timeout: 90_000,
}, async () => {
  const { send, end } = system;
  const first = spawnWorker();
  await expect.poll(async () => (await holder())?.pid, { timeout: 20_000 }).toBe(first.pid);
  expect((await end(await send())).status).toBe("completed");
  const second = spawnWorker();
  await expect.poll(async () => (await workers()).length, { timeout: 20_000 }).toBe(2);
  const jobs = await Promise.all(Array.from({ length: 200 }, () => send()));
  await expect.poll(() => system.queues.student.getJobCountByTypes("active"), { timeout: 20_000, interval: 2 }).toBeGreaterThan(0);
  process.kill(first.pid, "SIGSTOP");
  const [server] = modelServersOf(first.pid);
  const exited = once(first, "exit");
  expect(server !== undefined && isAlive(server)).toBe(true);
  await expect.poll(async () => (await holder())?.pid, { timeout: 20_000 }).toBe(second.pid);
  expect(isAlive(server!)).toBe(false);
  expect((await exited)[1]).toBe("SIGKILL");
  for (const jobId of jobs) expect((await end(jobId)).status).toBe("completed");
  expect((await holder())?.fence).toBe(2);
});

test("jobs of a dead worker are taken up at once by the one that stands by, not when their locks expire", { timeout: 60_000 }, async () => {
  const { send, end, startWorker, gpu } = system;
  const first = spawnWorker();
  await expect.poll(async () => (await holder())?.pid, { timeout: 20_000 }).toBe(first.pid);
  const jobs = await Promise.all(Array.from({ length: 300 }, () => send()));
  await expect.poll(() => system.queues.student.getJobCountByTypes("active"), { timeout: 20_000, interval: 2 }).toBeGreaterThan(0);
  first.kill("SIGKILL");
  await once(first, "exit");
  const active = await system.queues.student.getJobCountByTypes("active");
  expect(active).toBeGreaterThan(0);
  const killedAt = Date.now();
  await startWorker();
  for (const jobId of jobs) expect((await end(jobId)).status).toBe("completed");
  // BullMQ itself would take its lock's 15 s. This bounds a behaviour, not a speed.
  expect(Date.now() - killedAt).toBeLessThan(12_000);
  expect(gpu.violations).toEqual([]);
});

test("a live worker whose lease another took stops its server, hands its jobs back and stands by", async () => {
  const { gpu, queues, send, end, startWorker } = system;
  gpu.serviceMs = () => 60_000;
  const first = await startWorker({ LEASE_TTL_MS: "1000" });
  const jobId = await send();
  await expect.poll(() => gpu.engines[0]?.serving).toBe(1);
  const { gpuId } = first.status();
  await queues.redis.multi().incr(keys.leaseFence(gpuId)).set(keys.lease(gpuId), "another", "PX", 1500).exec();
  await expect.poll(() => first.status().phase, { timeout: 5000 }).toBe("standby");
  await expect.poll(() => gpu.up).toBe(0);
  await expect.poll(() => queues.student.getJobCountByTypes("active")).toBe(0);
  gpu.serviceMs = () => 1;
  expect((await end(jobId)).status).toBe("completed");
  expect(first.status().fence).toBe(3);
});

test("two systems with Redis servers of their own don't share a GPU: the second waits and says for whom", async () => {
  const { send, startWorker } = system;
  const other = await startGpuSystem();
  try {
    const first = await startWorker({ GPU_ID: `test-${process.pid}` });
    await expect.poll(() => first.status().phase).toBe("idle");
    const second = await other.startWorker({ GPU_ID: `test-${process.pid}` });
    await expect.poll(() => second.status().waitsFor).toContain(`a GPU worker, process ${process.pid} holds the GPU on this host`);
    const jobId = await other.send();
    await system.end(await send());
    expect((await other.view(jobId))?.status).toBe("waiting");
    await first.stop(1000);
    expect((await other.end(jobId)).status).toBe("completed");
    expect(system.gpu.violations).toEqual([]);
  } finally {
    await other.stop();
  }
});

test("the host lock tells who holds it, and is free when that one ends", async () => {
  const gpuId = `lock-${process.pid}`;
  const mine = await takeHostLock(gpuId, "the test");
  expect(mine).toHaveProperty("lock");
  expect(await takeHostLock(gpuId, "another")).toEqual({ owner: expect.objectContaining({ pid: process.pid, what: "the test" }) });
  if ("lock" in mine) await mine.lock.release();
  const script = `import { takeHostLock } from ${JSON.stringify(path.join(root, "workers/gpu/host-lock.ts"))};
    await takeHostLock(${JSON.stringify(gpuId)}, "a child"); console.log("has it"); setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  await once(child.stdout!, "data");
  expect(await takeHostLock(gpuId, "another")).toMatchObject({ owner: { pid: child.pid, what: "a child" } });
  child.kill("SIGSTOP");
  expect(await takeHostLock(gpuId, "another")).toEqual({ owner: null });
  child.kill("SIGKILL");
  await once(child, "exit");
  const again = await takeHostLock(gpuId, "another");
  expect(again).toHaveProperty("lock");
  if ("lock" in again) await again.lock.release();
});

test("a port is freed of a model server whose worker is gone; anyone else's is refused by name", async () => {
  const listener = (env: Record<string, string>) => {
    const script = `require("net").createServer().listen(0, "127.0.0.1", function () { console.log(this.address().port); });`;
    const child = spawn(process.execPath, ["-e", script], { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "inherit"] });
    children.push(child);
    return new Promise<{ child: ChildProcess; port: number }>((resolve) => {
      child.stdout!.once("data", (text) => resolve({ child, port: Number(text) }));
    });
  };
  const gone = spawn("true");
  const goneTicks = startTicksOf(gone.pid!);
  await once(gone, "exit");

  const orphan = await listener({ MATHLLM_PARENT: `${gone.pid}:${goneTicks ?? 1}` });
  orphan.child.kill("SIGSTOP");
  expect(portOwner(orphan.port)?.pid).toBe(orphan.child.pid);
  expect((await clearPort(orphan.port))?.pid).toBe(orphan.child.pid);
  expect(await clearPort(orphan.port)).toBeNull();

  const wanted = await listener({ MATHLLM_PARENT: `${process.pid}:${startTicksOf(process.pid)}` });
  await expect(clearPort(wanted.port)).rejects.toMatchObject({
    code: "port-in-use",
    message: expect.stringContaining(`process ${wanted.child.pid}`),
  });
  const strange = await listener({});
  await expect(clearPort(strange.port)).rejects.toMatchObject({ code: "port-in-use" });
});

test("a model server is ended with what it started, also when itself is gone already", async () => {
  const env = { ...process.env, MATHLLM_PARENT: "1:1" };
  // A leader that starts a child holding on, as vLLM's server does with its engine core.
  // It says its own number: only a program that runs already has the variable to be known by.
  const script = "sh -c 'echo $$; read never <&3' & wait";
  const leader = spawn("/bin/sh", ["-c", script], { env, detached: true, stdio: ["ignore", "pipe", "inherit", "pipe"] });
  children.push(leader);
  const [text] = await once(leader.stdout!, "data");
  const core = { pid: Number(text), startTicks: startTicksOf(Number(text)) };
  const identity = { pid: leader.pid!, startTicks: startTicksOf(leader.pid!) };
  leader.kill("SIGKILL");
  await once(leader, "exit");
  expect(isAlive(core)).toBe(true);
  expect(await killModelServer(identity)).toBe(1);
  expect(isAlive(core)).toBe(false);
  expect(await killModelServer(identity)).toBe(0);
});

test("two GPUs on the same queues: each serves one model, nothing thrashes", async () => {
  const { send, end, startWorker } = system;
  const gpus = [new FakeGpu(), new FakeGpu()];
  for (const gpu of gpus) gpu.serviceMs = () => 10;
  const started = await Promise.all(
    gpus.map((gpu, i) => startWorker({ GPU_ID: `gpu-${process.pid}-${i}`, STUDENT_MAX_NUM_SEQS: "2", TALKER_MAX_NUM_SEQS: "2" }, gpu)),
  );
  const jobs = await Promise.all(Array.from({ length: 400 }, (_, i) => send({ model: i % 2 === 0 ? "student" : "talker" })));
  for (const jobId of jobs) expect((await end(jobId)).status).toBe("completed");
  expect(gpus.flatMap((gpu) => gpu.violations)).toEqual([]);
  expect(gpus.map((gpu) => gpu.maxUp)).toEqual([1, 1]);
  expect(gpus.map((gpu) => gpu.loads[0]).sort()).toEqual(["student", "talker"]);
  expect(gpus[0]!.loads.length + gpus[1]!.loads.length).toBeLessThanOrEqual(4);
  expect(gpus.every((gpu) => gpu.served > 50)).toBe(true);
  expect(started.map((worker) => worker.status().fence)).toEqual([1, 1]);
});

test("a stopped worker is found although the one that was about to end it died over that", { timeout: 60_000 }, async () => {
  const { queues, send, end } = system;
  const stopped = spawnWorker();
  await expect.poll(async () => (await holder())?.pid, { timeout: 20_000 }).toBe(stopped.pid);
  const { gpuId } = (await holder())!;
  await end(await send());
  process.kill(stopped.pid, "SIGSTOP");
  // What a second worker would have left on record, had it died right after it took the lease.
  const record = JSON.parse((await queues.redis.get(keys.leaseHolder(gpuId)))!);
  const dead = { owner: "dead", worker: { pid: 2 ** 22 - 1, startTicks: 1 } };
  const { owner, worker, modelServers } = record;
  await queues.redis.set(keys.leaseHolder(gpuId), JSON.stringify({ ...record, ...dead, modelServers, predecessors: [{ owner, worker }] }));
  await queues.redis.del(keys.lease(gpuId));
  const exited = once(stopped, "exit");
  const next = spawnWorker();
  await expect.poll(async () => (await holder())?.pid, { timeout: 20_000 }).toBe(next.pid);
  expect((await exited)[1]).toBe("SIGKILL");
  expect((await end(await send())).status).toBe("completed");
});
