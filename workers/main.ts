import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { AnswerCache, type CacheOutcome } from "../queues/answer-cache.ts";
import { listenForCancels, moveToEnding } from "../queues/cancellation.ts";
import type { Config, ModelProfile } from "../queues/config.ts";
import { answers, openRedis, type Redis, redisErrorLog, waitForRedis } from "../queues/connection.ts";
import type { WorkerStatus } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { commandDone, type GpuControl, readGpuControl } from "../queues/gpu-control.ts";
import { addGpuEvent, type GpuEventKind } from "../queues/gpu-events.ts";
import { addGpuSample } from "../queues/gpu-samples.ts";
import { MetricCounts } from "../queues/metrics.ts";
import { CLASS_PRIORITY, keys, NEXT_PRIORITY, type PriorityClass, ROLES, type Role } from "../queues/names.ts";
import { openQueues } from "../queues/open-queues.ts";
import { liveWorkers, pruneStatuses, publishStatus, removeStatus } from "../queues/worker-status.ts";
import type { EngineFactory } from "./engines/engine.ts";
import { Dispatcher } from "./gpu/dispatcher.ts";
import { FitCheck } from "./gpu/fit-check.ts";
import { identifyGpu } from "./gpu/gpu-identity.ts";
import { IdleLevel, readVram, VramWatermark } from "./gpu/gpu-memory.ts";
import { GpuMonitor } from "./gpu/gpu-monitor.ts";
import { Guardrails } from "./gpu/guardrails.ts";
import type { HostLock } from "./gpu/host-lock.ts";
import { JobTally } from "./gpu/job-tally.ts";
import { type Lane, laneOf, rolesOfLanes } from "./gpu/lanes.ts";
import { Lease } from "./gpu/lease.ts";
import { ModelSlot } from "./gpu/model-slot.ts";
import { readIntoPageCache } from "./gpu/page-cache.ts";
import { claimLoad, peersOf } from "./gpu/peers.ts";
import { POLICIES } from "./gpu/policies.ts";
import { Preparations } from "./gpu/preparations.ts";
import { publishLoaded, retractOutdated } from "./gpu/published-model.ts";
import { StageMetrics } from "./gpu/stage-metrics.ts";
import { takeGpu } from "./gpu/succession.ts";
import { Telemetry, type TelemetryKind } from "./gpu/telemetry.ts";
import { residentMemoryBytes, TelemetrySampler } from "./gpu/telemetry-sampler.ts";
import { TrafficMeter } from "./gpu/traffic-meter.ts";
import { WakeSignal } from "./gpu/wake-signal.ts";
import { WorkerReport } from "./gpu/worker-report.ts";
import { HandBack } from "./solve/stage.ts";
import { cancelRunning, createStageWorkers } from "./solve/stage-workers.ts";

const HEARTBEAT_MS = 1000;
const REDIS_START_TIMEOUT_MS = 30_000;
const REDIS_ANSWER_TIMEOUT_MS = 1000;
const SUCCESSION_RETRY_MS = 1000;
const MAX_EXPIRED_AT_ONCE = 100;

export interface GpuWorkerOptions {
  config: Config;
  redisUrl: string;
  createEngine: EngineFactory;
  log: Logger;
  /** Called when dispatching ended by an error of ours: the caller stops this worker. */
  onFatal: (error: Error) => void;
}

export interface GpuWorker {
  workerId: string;
  status(): WorkerStatus;
  /** Drains for at most `graceMs`, empties the GPU, gives the lease back and closes every connection. A second call ends the grace. */
  stop(graceMs: number): Promise<void>;
}

/**
 * Starts the worker of one GPU: stands by until it holds the lease, dispatches, and stands by again whenever another has taken the
 * lease, until `stop`. Throws when Redis is not there, and `gpu-unreadable` when it can't be told which GPU there is.
 */
export async function startGpuWorker({ config, redisUrl, createEngine: engineOn, log, onFatal }: GpuWorkerOptions): Promise<GpuWorker> {
  const { id: gpuId, visible: visibleGpu } = await identifyGpu(config);
  /** The card that nvidia-smi is asked for; null: none is. */
  const card = typeof visibleGpu === "object" ? visibleGpu.uuid : null;
  const onGpu = card !== null && (await readVram(card)) !== null;
  const createEngine = (profile: ModelProfile) => engineOn(profile, visibleGpu);
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
  let control: GpuControl = await readGpuControl(redis, gpuId);
  let peers = peersOf(gpuId, await liveWorkers(redis));
  const queues = openQueues(redis, onError);
  const telemetry = new Telemetry(config.telemetryLog, log);
  const lease = new Lease(redis, gpuId, workerId, config.leaseTtlMs);
  const stopped = new AbortController();

  /** Telemetry keeps it, `/gpu/events` tells it. */
  const tell = (kind: GpuEventKind, record: object) => {
    if (kind !== "server" && kind !== "control") telemetry.write(kind satisfies TelemetryKind, { gpuId, ...record });
    if (redis.status === "ready") addGpuEvent(redis, kind, { ts: Date.now(), gpuId, ...record }).catch(onError);
  };
  const guardrails = new Guardrails({ redis, gpuId, profiles: config.profiles, onAction: tell, log });
  await guardrails.restore();
  const watermark = new VramWatermark(config.vramWatermark, (action, reason) => tell("guardrail", { action, reason }));
  const meter = new TrafficMeter({
    get student() {
      return guardrails.capacity("student").maxNumSeqs;
    },
    get talker() {
      return guardrails.capacity("talker").maxNumSeqs;
    },
  });
  const preparations = new Preparations({
    profiles: config.profiles,
    createEngine,
    onChange: (role, { state, reason }) => {
      if (state === "failed") tell("guardrail", { role, action: "preparation-failed", reason });
      void beat();
      wakeAll();
    },
    log,
  });
  const fitCheck = new FitCheck(config, card ?? gpuId, log);
  const lanes = rolesOfLanes(config.talkerCoresident).map((roles): Lane => {
    const slot = new ModelSlot({
      profileOf: (role) => guardrails.profile(role),
      createEngine,
      startTimeoutMs: config.engineStartTimeoutMs,
      healthTimeoutMs: config.engineHealthTimeoutMs,
      stopGraceMs: config.shutdownGraceMs,
      recordModelServers: (identities) => {
        lane.modelServers = identities;
        return lease.recordModelServers(lanes.flatMap(({ modelServers }) => modelServers));
      },
      idleLevel: new IdleLevel(card ?? gpuId, onGpu, config.vramFreedTimeoutMs),
      fit: (profile, vram) => fitCheck.check(profile, vram),
      onNotFreed: (role, reason) => {
        log.warn({ role }, reason);
        tell("guardrail", { action: "memory-not-freed", role, reason });
      },
      onState: (state) => {
        tell("server", { state, role: slot.resident?.role ?? slot.loading });
        void beat();
      },
      onDeath: async (role, death) => {
        await guardrails.died(role, death, Date.now());
        lane.dispatcher?.wake();
      },
      log,
    });
    const lane: Lane = { roles, slot, dispatcher: null, released: false, modelServers: [] };
    return lane;
  });
  const monitor = new GpuMonitor({ gpuId: card ?? gpuId, modelServerPid: () => lanes[0]!.slot.server.pid, log });
  if (card !== null) await monitor.start();
  watermark.see(monitor.vram);
  const wakeAll = () => {
    for (const lane of lanes) lane.dispatcher?.wake();
  };
  const report = new WorkerReport({
    workerId,
    gpuId,
    config,
    lease,
    lanes,
    guardrails,
    preparations,
    meter,
    drained: () => control.drained,
    vram: () => monitor.vram,
  });
  const beat = () => publishStatus(redis, report.status()).catch(onError);

  const cache = new AnswerCache(redis, { ttlSeconds: config.cacheTtlSeconds, maxBytes: config.cacheMaxBytes }, onError);
  let cacheCounts: Record<CacheOutcome, number> | null = null;
  const workers = createStageWorkers({
    workerId,
    config,
    redis,
    queues,
    telemetry,
    slotOf: (role) => laneOf(lanes, role).slot,
    cache,
    unavailable: (role) => guardrails.status(role, Date.now()).error ?? preparations.status(role).reason,
    onDone: (role) => guardrails.jobDone(role),
    onPoison: (role, jobId, reason) => tell("guardrail", { action: "job-set-aside", role, jobId, reason }),
    onError,
    log,
  });
  const tally = new JobTally();
  const counts = new MetricCounts(redis, onError);
  const metrics = new StageMetrics(counts);
  for (const role of ROLES) {
    workers[role].on("completed", (job, result) => {
      tally.completed(role);
      metrics.completed(role, job, result);
    });
    workers[role].on("failed", (job, error) => {
      if (job?.finishedOn === undefined) return;
      tally.failed(role, error.message);
      metrics.failed(role, job, error.message);
    });
  }

  const bringForward = async (role: Role, name: PriorityClass) => {
    const key = queues[role].toKey("prioritized");
    const low = CLASS_PRIORITY[name] * 2 ** 32;
    const [jobId] = await redis.zrangebyscore(key, low, `(${low + 2 ** 32}`, "LIMIT", 0, 1);
    const job = jobId === undefined ? undefined : await queues[role].getJob(jobId);
    await job?.changePriority({ priority: NEXT_PRIORITY });
  };
  const newDispatcher = (lane: Lane) =>
    new Dispatcher({
      roles: lane.roles,
      workers,
      slot: lane.slot,
      guardrails,
      preparations,
      policy: POLICIES[config.gpuPolicy],
      deadlinesMs: config.deadlinesMs,
      meter,
      idleUnloadMs: config.idleUnloadSeconds * 1000,
      readBacklog: queues.readBacklog,
      mayTake: () => lease.certain,
      pressure: () => watermark.reason,
      control: () => ({ ...control, release: control.release && !lane.released, reset: control.reset && lane === lanes[0] }),
      controlDone: async (command) => {
        if (command === "release") {
          lane.released = true;
          if (!lanes.every(({ released }) => released)) return;
        }
        control = { ...control, [command]: command === "swapTo" ? null : false };
        await commandDone(redis, gpuId, command);
        for (const each of lanes) each.released = false;
        tell("control", { done: command });
      },
      peers: () => peers,
      claimLoad: (role) => claimLoad(redis, gpuId, role),
      expireJobs: async (now) => {
        const due = await redis.zrangebyscore(keys.deadlines, "-inf", now, "LIMIT", 0, MAX_EXPIRED_AT_ONCE);
        for (const jobId of due) {
          await moveToEnding(queues, jobId);
          await redis.zrem(keys.deadlines, jobId);
        }
      },
      bringForward,
      prefetch: async (role, signal) => void (await readIntoPageCache(preparations.files(role), signal)),
      onPick: (role, job) => {
        report.picked(role, job, Date.now());
        tally.picked(role, job, Date.now());
        metrics.picked(role, job, Date.now());
      },
      onDecision: (decision) => {
        report.decided(decision, Date.now());
        tell("decision", decision);
      },
      onSwap: (record) => {
        report.swapped(record, Date.now());
        metrics.swapped(record);
        const loaded = lane.slot.resident;
        if (loaded !== null) publishLoaded(redis, config, loaded).catch(onError);
        tell("swap", record);
        log.info(record, "swapped");
        void beat();
      },
      log,
    });

  const refresh = async () => {
    control = await readGpuControl(redis, gpuId);
    wakeAll();
  };
  const heartbeat = setInterval(async () => {
    try {
      watermark.see(monitor.vram);
      await beat();
      peers = peersOf(gpuId, await liveWorkers(redis));
      cacheCounts = await cache.counts();
      await refresh();
    } catch (error) {
      onError(error as Error);
    }
  }, HEARTBEAT_MS);
  /** Telemetry keeps it, `/gpu/events` shows it. */
  const keepSample = async (kind: TelemetryKind, record: object) => {
    telemetry.write(kind, record);
    if (redis.status !== "ready" || report.standbyReason !== null) return;
    const now = Date.now();
    const { residentModel, coresidentModel, server, loadingModel } = report.status(now);
    // The dispatchers don't look while they load a model.
    const backlog = await queues.readBacklog(now);
    const depths = Object.fromEntries(ROLES.map((role) => [role, backlog[role].depth]));
    const serverModel = residentModel ?? loadingModel;
    const state = { residentModel, coresidentModel, serverModel, serverState: server.state };
    await addGpuSample(redis, { ...record, ...tally.take(), ...state, depths, ts: now, gpuId });
  };
  const sampler = new TelemetrySampler({ write: (kind, record) => void keepSample(kind, record).catch(onError) }, () => ({
    residentModel: lanes[0]!.slot.resident?.role ?? null,
    engine: lanes[0]!.slot.resident?.engine ?? null,
    depths: Object.fromEntries(ROLES.map((role) => [role, laneOf(lanes, role).dispatcher?.backlog?.[role].depth ?? null])),
    running: lanes.reduce((sum, lane) => sum + (lane.dispatcher?.running ?? 0), 0),
    rssBytes: residentMemoryBytes(process.pid),
    modelServerRssBytes: lanes[0]!.slot.server.pid === null ? null : residentMemoryBytes(lanes[0]!.slot.server.pid),
    modelServerVramBytes: monitor.modelServerVramBytes,
    cache: cacheCounts,
    gpu: monitor.latest,
  }));
  await pruneStatuses(redis);
  preparations.start();
  await beat();
  const subscriber = connect();
  await listenForCancels(subscriber, (jobId) => cancelRunning(workers, jobId));
  subscriber.on("message", (channel: string) => {
    if (channel === keys.gpuControlChannel) refresh().catch(onError);
  });
  await subscriber.subscribe(keys.gpuControlChannel);
  const wakeSignal = new WakeSignal(connect(), wakeAll, onError);

  const standBy = (reason: string | null) => {
    if (report.standbyReason === reason) return;
    report.standbyReason = reason;
    void beat();
  };
  const stopDispatchers = async (graceMs: number) => {
    await Promise.all(lanes.map((lane) => lane.dispatcher?.stop(graceMs)));
    for (const lane of lanes) lane.dispatcher = null;
  };
  let lock: HostLock | undefined;
  let watching = false;
  /** One turn of holding the GPU, from waiting for it to having lost it, or to `stop`. */
  const holdGpu = async () => {
    const lost = new AbortController();
    const ended = AbortSignal.any([stopped.signal, lost.signal]);
    lock = await takeGpu({ lease, gpuId, queues, redis, signal: ended, onLost: () => lost.abort(), onWaiting: standBy, log });
    try {
      log.info({ gpuId, fence: lease.fence }, "holds the GPU");
      await guardrails.restore();
      await retractOutdated(redis, config);
      for (const profile of Object.values(config.profiles).filter(({ mode }) => mode === "ollama")) {
        await createEngine(profile)
          .clear?.(profile)
          .catch((error) =>
            log.warn({ role: profile.role, reason: error.message }, "what an earlier worker left loaded could not be freed"),
          );
      }
      if (!watching) {
        watching = true;
        await Promise.all(Object.values(workers).map((worker) => worker.watchLocks()));
        wakeSignal.start();
        sampler.start();
      }
      for (const lane of lanes) {
        lane.dispatcher = newDispatcher(lane);
        lane.dispatcher.run().catch(onFatal);
      }
      if (!ended.aborted) await new Promise((resolve) => ended.addEventListener("abort", resolve, { once: true }));
      if (stopped.signal.aborted) return;
      log.error("another worker holds the GPU: stopping the model server; running jobs go back to their queue");
      report.standbyReason = "another worker has taken the GPU";
      await stopDispatchers(0);
    } finally {
      // While this worker stops, its jobs drain under the lock, which `stop` gives back.
      if (!stopped.signal.aborted) await lock.release();
    }
  };
  const holding = (async () => {
    while (!stopped.signal.aborted) {
      try {
        await holdGpu();
      } catch (error) {
        if (stopped.signal.aborted) return;
        if (!(error instanceof MathllmError)) log.warn({ err: error }, "the GPU could not be taken");
        standBy((error as Error).message);
        await delay(SUCCESSION_RETRY_MS, undefined, { signal: stopped.signal }).catch(() => {});
      }
    }
  })();

  /** While Redis is away every command waits for it: cut off, they fail and the stop goes on. What was running is found stalled later. */
  const cutOff = async () => {
    if (await answers(redis, REDIS_ANSWER_TIMEOUT_MS)) return;
    for (const worker of Object.values(workers)) {
      worker.cancelAllJobs(new HandBack("Redis is away") as unknown as string);
      // One that is not closing tries again for ever to tell Redis how its jobs ended.
      worker.close(true).catch(onError);
    }
    for (const connection of connections) connection.disconnect();
  };
  const stop = async (graceMs: number) => {
    report.stopping = true;
    stopped.abort();
    sampler.stop();
    const cut = setTimeout(() => void cutOff(), graceMs);
    await holding.catch(() => {});
    const nothingFetched = preparations.stop();
    await stopDispatchers(graceMs).catch((error) => log.error({ err: error }, "a model server could not be stopped"));
    await nothingFetched;
    clearTimeout(cut);
    clearInterval(heartbeat);
    await wakeSignal.close();
    await Promise.all(Object.values(workers).map((worker) => worker.close(true)));
    await monitor.stop();
    await telemetry.close();
    if (await answers(redis, REDIS_ANSWER_TIMEOUT_MS)) {
      await counts.flush();
      await lease.release();
      await removeStatus(redis, workerId);
    }
    await lock?.release();
    await queues.close();
    for (const connection of connections) connection.disconnect();
  };
  let stopping: Promise<void> | undefined;

  return {
    workerId,
    status: () => report.status(),
    stop: (graceMs) => {
      if (stopping !== undefined) {
        for (const lane of lanes) lane.dispatcher?.hurry();
        void cutOff();
      }
      stopping ??= stop(graceMs);
      return stopping;
    },
  };
}
