import { execFile } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { promisify } from "node:util";
import type { Redis } from "ioredis";
import type { Logger } from "pino";
import { listenForCancels, moveToEnding } from "../queues/cancellation.ts";
import type { Config } from "../queues/config.ts";
import { openRedis, redisErrorLog, waitForRedis } from "../queues/connection.ts";
import type { StageResult, WorkerStatus } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { clientJobId, isExplainId, keys, ROLES, type Role, roleOfJobId, studentStageId } from "../queues/names.ts";
import { openQueues } from "../queues/open-queues.ts";
import { hostBoot, isAlive, type ProcessIdentity } from "../queues/process-identity.ts";
import { pruneStatuses, publishStatus, removeStatus } from "../queues/worker-status.ts";
import type { EngineFactory } from "./engines/engine.ts";
import { backlogReader } from "./gpu/backlog.ts";
import { Dispatcher } from "./gpu/dispatcher.ts";
import { Lease } from "./gpu/lease.ts";
import { ManualWorker, type StageJob } from "./gpu/manual-worker.ts";
import { ModelSlot } from "./gpu/model-slot.ts";
import { POLICIES } from "./gpu/policy.ts";
import { Telemetry } from "./gpu/telemetry.ts";
import { residentMemoryBytes, TelemetrySampler } from "./gpu/telemetry-sampler.ts";
import { TrafficMeter } from "./gpu/traffic-meter.ts";
import { WakeSignal } from "./gpu/wake-signal.ts";
import { HandBack, stageProcessor } from "./solve/stage.ts";
import { studentStage } from "./solve/student.ts";
import { talkerStage } from "./solve/talker.ts";

const HEARTBEAT_MS = 1000;
const REDIS_START_TIMEOUT_MS = 30_000;
const MAX_EXPIRED_AT_ONCE = 100;

export interface GpuWorkerOptions {
  config: Config;
  redisUrl: string;
  createEngine: EngineFactory;
  log: Logger;
  /** Called when another worker holds the GPU, or dispatching ended by an error: the caller stops this worker. */
  onLeaseLost: () => void;
}

export interface GpuWorker {
  workerId: string;
  status(): WorkerStatus;
  /** Drains for at most `graceMs`, empties the GPU, gives the lease back and closes every connection. A second call ends the grace. */
  stop(graceMs: number): Promise<void>;
}

/** The GPU's UUID; without one, a name made of the data directory, so that separate systems on a CPU don't exclude each other. */
export async function gpuIdOf(config: Config): Promise<string> {
  if (config.gpuId !== undefined) return config.gpuId;
  try {
    const { stdout } = await promisify(execFile)("nvidia-smi", ["--query-gpu=uuid", "--format=csv,noheader"], { timeout: 10_000 });
    const uuid = stdout.split("\n")[0]?.trim();
    if (uuid) return uuid;
  } catch {
    // No NVIDIA driver: the models run on the CPU.
  }
  return `cpu-${createHash("sha256").update(config.dataDir).digest("hex").slice(0, 16)}`;
}

/** Starts the worker of one GPU: waits for the lease, then dispatches until `stop`. Throws when Redis is not there. */
export async function startGpuWorker({ config, redisUrl, createEngine, log, onLeaseLost }: GpuWorkerOptions): Promise<GpuWorker> {
  const onError = redisErrorLog(log);
  const connections: Redis[] = [];
  const connect = () => {
    const redis = openRedis(redisUrl, "worker", onError);
    connections.push(redis);
    return redis;
  };
  const redis = connect();
  try {
    await waitForRedis(redis, REDIS_START_TIMEOUT_MS);
  } catch (error) {
    redis.disconnect();
    throw error;
  }
  const workerId = randomUUID();
  const gpuId = await gpuIdOf(config);
  const queues = openQueues(redis, onError);
  const telemetry = new Telemetry(config.telemetryLog, log);
  const lease = new Lease(redis, gpuId, config.leaseTtlMs);
  const maxNumSeqs = { student: config.profiles.student.maxNumSeqs, talker: config.profiles.talker.maxNumSeqs };
  const meter = new TrafficMeter(maxNumSeqs);
  const startedAt = Date.now();
  const stopped = new AbortController();
  let swaps = 0;
  let standby = true;

  const slot = new ModelSlot({
    profiles: config.profiles,
    createEngine,
    startTimeoutMs: config.engineStartTimeoutMs,
    stopGraceMs: config.shutdownGraceMs,
    recordModelServer: (identity) => lease.recordModelServer(identity),
    onCrash: () => dispatcher.wake(),
    log,
  });
  const makeWorker = (role: Role): ManualWorker => {
    const worker = new ManualWorker(
      role,
      stageProcessor(role === "student" ? studentStage : talkerStage, {
        redis,
        resident: () => slot.resident,
        maxTokens: config.profiles[role].maxTokens,
        jobTimeoutMs: config.jobTimeoutMs,
        retentionSeconds: config.jobRetentionSeconds,
        endParent: (jobId) => moveToEnding(queues, jobId),
        onError,
      }),
      redis,
    );
    worker.on("error", onError);
    worker.on("stalled", (jobId) =>
      log.warn({ jobId, role }, "the job's lock had expired (its worker died, or Redis was away); it waits again"),
    );
    worker.on("lockRenewalFailed", (jobIds: string[]) => {
      for (const jobId of jobIds) worker.cancelJob(jobId, new HandBack("the lock was lost") as unknown as string);
    });
    worker.on("completed", (job, result) => recordJob(job, "completed", result));
    worker.on("failed", (job, error) => {
      if (job !== undefined) recordJob(job, job.finishedOn === undefined ? "retrying" : "failed", null, error.message);
    });
    return worker;
  };
  const recordJob = (job: StageJob, outcome: string, result: StageResult | null, error?: string) => {
    telemetry.write("job", {
      jobId: clientJobId(job.id!),
      role: job.queueName,
      class: job.data.priority,
      outcome,
      acceptedAt: job.data.acceptedAt,
      queuedAt: job.timestamp,
      pickedAt: job.processedOn ?? null,
      firstTokenAt: result?.firstTokenAt ?? null,
      doneAt: job.finishedOn ?? null,
      cached: false,
      retries: Math.max(job.attemptsStarted - 1, 0),
      promptTokens: result?.usage.promptTokens ?? null,
      completionTokens: result?.usage.completionTokens ?? null,
      ...(error === undefined ? {} : { error }),
    });
  };
  const workers = { student: makeWorker("student"), talker: makeWorker("talker") };

  const dispatcher = new Dispatcher({
    workers,
    slot,
    policy: POLICIES[config.gpuPolicy],
    deadlinesMs: config.deadlinesMs,
    meter,
    maxNumSeqs,
    readBacklog: backlogReader(redis),
    mayTake: () => lease.certain,
    expireJobs: async (now) => {
      const due = await redis.zrangebyscore(keys.deadlines, "-inf", now, "LIMIT", 0, MAX_EXPIRED_AT_ONCE);
      for (const jobId of due) {
        await moveToEnding(queues, jobId);
        await redis.zrem(keys.deadlines, jobId);
      }
    },
    onSwap: (record) => {
      if (record.from !== null) swaps++;
      telemetry.write("swap", { ...record });
      log.info(record, "swapped");
      void beat();
    },
    onBlocked: () => void beat(),
    log,
  });

  const modelStatus = (role: Role) => ({
    model: config.profiles[role].model,
    maxNumSeqs: config.profiles[role].maxNumSeqs,
    serviceMs: meter.serviceMs(role),
    swapMs: meter.swapMs(role),
    contextTokens: slot.resident?.role === role ? slot.resident.model.contextTokens : null,
    digest: slot.resident?.role === role ? slot.resident.model.digest : null,
    error: dispatcher.blockedReason(role),
  });
  const status = (): WorkerStatus => ({
    workerId,
    gpuId,
    host: hostBoot(),
    pid: process.pid,
    beatAt: Date.now(),
    startedAt,
    phase: standby ? "standby" : dispatcher.phase,
    residentModel: slot.resident?.role ?? null,
    residentSince: slot.resident?.since ?? null,
    running: dispatcher.running,
    swaps,
    policy: config.gpuPolicy,
    lastDecision: dispatcher.lastDecision,
    models: { student: modelStatus("student"), talker: modelStatus("talker") },
  });
  const beat = () => publishStatus(redis, status()).catch(onError);
  const sampler = new TelemetrySampler(telemetry, () => ({
    residentModel: slot.resident?.role ?? null,
    engine: slot.resident?.engine ?? null,
    depths: Object.fromEntries(ROLES.map((role) => [role, dispatcher.backlog?.[role].depth ?? null])),
    running: dispatcher.running,
    rssBytes: residentMemoryBytes(process.pid),
    modelServerRssBytes: slot.resident === null ? null : residentMemoryBytes(slot.resident.pid),
  }));

  const heartbeat = setInterval(beat, HEARTBEAT_MS);
  await pruneStatuses(redis);
  await beat();
  await listenForCancels(connect(), (jobId) => cancelRunning(workers, jobId));
  const wakeSignal = new WakeSignal(connect(), () => dispatcher.wake(), onError);

  const dispatching = (async () => {
    const leftBehind = await lease.acquire(stopped.signal, onLeaseLost);
    if (leftBehind !== null) await killLeftBehind(leftBehind, log);
    standby = false;
    log.info({ gpuId, fence: lease.fence }, "holds the GPU");
    await Promise.all(Object.values(workers).map((worker) => worker.watchLocks()));
    wakeSignal.start();
    sampler.start();
    await dispatcher.run();
  })().catch((error) => {
    if (!stopped.signal.aborted) throw error;
  });
  dispatching.catch((error) => {
    log.fatal({ err: error }, "the dispatcher ended");
    onLeaseLost();
  });

  /** While Redis is away every command waits for it: cut off, they fail and the stop goes on. What was running is found stalled later. */
  const cutOff = () => {
    if (redis.status !== "ready") for (const connection of connections) connection.disconnect();
  };
  const stop = async (graceMs: number) => {
    stopped.abort();
    sampler.stop();
    const cut = setTimeout(cutOff, graceMs);
    await dispatcher.stop(graceMs);
    await dispatching.catch(() => {});
    clearTimeout(cut);
    clearInterval(heartbeat);
    await wakeSignal.close();
    await Promise.all(Object.values(workers).map((worker) => worker.close(true)));
    await telemetry.close();
    if (redis.status === "ready") {
      await lease.release();
      await removeStatus(redis, workerId);
    }
    await queues.close();
    for (const connection of connections) connection.disconnect();
  };
  let stopping: Promise<void> | undefined;

  return {
    workerId,
    status,
    stop: (graceMs) => {
      if (stopping !== undefined) {
        dispatcher.hurry();
        cutOff();
      }
      stopping ??= stop(graceMs);
      return stopping;
    },
  };
}

/** A cancel reaches whichever stage of the job runs here. */
function cancelRunning(workers: Record<Role, ManualWorker>, jobId: string): void {
  const reason = new MathllmError("cancelled", "Cancelled on request.") as unknown as string;
  if (isExplainId(jobId)) workers.student.cancelJob(studentStageId(jobId), reason);
  const role = roleOfJobId(jobId);
  if (role !== undefined) workers[role].cancelJob(jobId, reason);
}

/** A model server whose worker died: it may still hold the memory, so it must be gone before anything is loaded. */
async function killLeftBehind(identity: ProcessIdentity, log: Logger): Promise<void> {
  if (!isAlive(identity)) return;
  log.warn({ pid: identity.pid }, "stopping the model server that the last worker left behind");
  process.kill(identity.pid, "SIGKILL");
  const giveUpAt = Date.now() + 10_000;
  while (isAlive(identity)) {
    if (Date.now() > giveUpAt)
      throw new MathllmError("engine-failed", `Process ${identity.pid} still holds the model's memory; stop it by hand.`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
