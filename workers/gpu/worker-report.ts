import type { Config } from "../../queues/config.ts";
import type { WorkerStatus } from "../../queues/contracts.ts";
import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";
import { hostBoot } from "../../queues/process-identity.ts";
import type { SwapRecord } from "./dispatcher.ts";
import { effectiveDeadlineMs } from "./ge.ts";
import type { VramUse } from "./gpu-memory.ts";
import type { Guardrails } from "./guardrails.ts";
import { type Lane, laneOf } from "./lanes.ts";
import type { Lease } from "./lease.ts";
import type { StageJob } from "./manual-worker.ts";
import type { Decision } from "./policy.ts";
import type { Preparations } from "./preparations.ts";
import { RunningAverage } from "./running-average.ts";
import type { TrafficMeter } from "./traffic-meter.ts";

const KEPT_DECISIONS = 20;
const ESTIMATE_HALF_LIFE_JOBS = 50;

export interface WorkerReportOptions {
  workerId: string;
  gpuId: string;
  config: Config;
  lease: Lease;
  lanes: readonly Lane[];
  guardrails: Guardrails;
  preparations: Preparations;
  meter: TrafficMeter;
  drained: () => boolean;
  vram: () => VramUse | null;
}

/** What a worker says of itself: gathered as it happens, published as its heartbeat. */
export class WorkerReport {
  /** Why it stands by; null once it holds the GPU. */
  standbyReason: string | null = "it is starting";
  stopping = false;
  readonly #options: WorkerReportOptions;
  readonly #startedAt = Date.now();
  readonly #decisions: { at: number; action: string; reason: string }[] = [];
  readonly #estimateError = {
    jobs: 0,
    abs: new RunningAverage(ESTIMATE_HALF_LIFE_JOBS),
    signed: new RunningAverage(ESTIMATE_HALF_LIFE_JOBS),
  };
  #swaps = 0;
  #lastSwap: WorkerStatus["lastSwap"] = null;

  constructor(options: WorkerReportOptions) {
    this.#options = options;
  }

  decided({ action, reason }: Decision, at: number): void {
    this.#decisions.unshift({ at, action, reason });
    this.#decisions.length = Math.min(this.#decisions.length, KEPT_DECISIONS);
  }

  swapped({ from, to, totalMs, overheadMs }: SwapRecord, at: number): void {
    if (from !== null) this.#swaps++;
    this.#lastSwap = { at, from, to, totalMs, overheadMs };
  }

  /** Compares what the job was promised at acceptance with what it waited. Only its first stage was promised anything. */
  picked(role: Role, { data, attemptsStarted }: StageJob, at: number): void {
    if (data.estimatedWaitMs === undefined || attemptsStarted > 1 || (role === "talker" && data.kind === "explain")) return;
    const errorMs = data.estimatedWaitMs - (at - data.acceptedAt);
    this.#estimateError.jobs++;
    this.#estimateError.abs.add(Math.abs(errorMs));
    this.#estimateError.signed.add(errorMs);
  }

  status(now = Date.now()): WorkerStatus {
    const { workerId, gpuId, config, lease, lanes, meter, drained, vram } = this.#options;
    const [{ slot, dispatcher }, beside] = lanes as [Lane, Lane | undefined];
    const rates = meter.rates(now);
    const deadlines = PRIORITY_CLASSES.map((name) => [name, effectiveDeadlineMs(config.deadlinesMs[name], rates)]);
    return {
      workerId,
      gpuId,
      host: hostBoot(),
      pid: process.pid,
      beatAt: now,
      startedAt: this.#startedAt,
      phase: this.stopping ? "stopping" : this.standbyReason !== null ? "standby" : (dispatcher?.phase ?? "idle"),
      waitsFor: this.standbyReason ?? dispatcher?.waitsFor ?? null,
      fence: lease.fence,
      drained: drained(),
      residentModel: slot.resident?.role ?? null,
      residentSince: slot.resident?.since ?? null,
      loadingModel: slot.loading,
      coresidentModel: beside?.slot.resident?.role ?? null,
      server: slot.server,
      running: lanes.reduce((sum, lane) => sum + (lane.dispatcher?.running ?? 0), 0),
      swaps: this.#swaps,
      policy: config.gpuPolicy,
      lastDecision: this.#decisions[0] ?? null,
      decisions: [...this.#decisions],
      lastSwap: this.#lastSwap,
      deadlinesMs: Object.fromEntries(deadlines) as Record<PriorityClass, number>,
      waitEstimate: {
        jobs: this.#estimateError.jobs,
        meanAbsErrorMs: this.#estimateError.abs.value,
        meanErrorMs: this.#estimateError.signed.value,
      },
      vram: vram(),
      models: { student: this.#model("student", now), talker: this.#model("talker", now) },
    };
  }

  #model(role: Role, now: number): WorkerStatus["models"]["student"] {
    const { config, lanes, guardrails, preparations, meter } = this.#options;
    const { slot } = laneOf(lanes, role);
    const resident = slot.resident?.role === role ? slot.resident.model : null;
    const preparation = preparations.status(role);
    const guarded = guardrails.status(role, now);
    return {
      model: config.profiles[role].model,
      preparation,
      ...guarded,
      error: guarded.error ?? (preparation.state === "failed" ? preparation.reason : null),
      arrivalsPerMs: meter.rates(now)[role].arrivalsPerMs,
      serviceMs: meter.serviceMs(role),
      swapMs: meter.swapMs(role),
      measured: meter.measured(role, now),
      contextTokens: resident?.contextTokens ?? null,
      digest: resident?.digest ?? null,
    };
  }
}
