import { readFileSync } from "node:fs";
import os from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { CacheOutcome } from "../../queues/answer-cache.ts";
import type { Engine, EngineMetrics } from "../engines/engine.ts";
import type { GpuReading } from "./gpu-monitor.ts";
import type { Telemetry } from "./telemetry.ts";

const SAMPLE_MS = 1000;
/** How long a sample waits for the model server's counters. */
const METRICS_WAIT_MS = 500;

export interface SampleSource {
  residentModel: string | null;
  engine: Engine | null;
  depths: Record<string, number | null>;
  running: number;
  rssBytes: number | null;
  modelServerRssBytes: number | null;
  modelServerVramBytes: number | null;
  /** Cacheable requests by what became of them, since the beginning; null before the first look. */
  cache: Record<CacheOutcome, number> | null;
  gpu: GpuReading | null;
}

/** What the model server's counters tell at one moment, and since the sample before; null where it is not known. */
export interface EngineSample {
  requestsRunning: number | null;
  requestsWaiting: number | null;
  kvCacheUsage: number | null;
  preemptionsTotal: number | null;
  /** Shares, 0 to 1, of the tokens since the last sample. */
  prefixCacheHitRate: number | null;
  draftAcceptanceRate: number | null;
  draftTokensTotal: number | null;
  draftAcceptedTokensTotal: number | null;
  promptTokensPerSecond: number | null;
  tokensPerSecond: number | null;
}

interface Counters {
  engine: Engine;
  metrics: EngineMetrics;
  /** Milliseconds of performance.now(). */
  at: number;
}

const NO_GPU: GpuReading = {
  vramUsedBytes: null,
  vramTotalBytes: null,
  vramFreeBytes: null,
  gpuPercent: null,
  temperatureCelsius: null,
  powerWatts: null,
  smClockMhz: null,
};

/** Resident set size from /proc; null where there is none. */
export function residentMemoryBytes(pid: number): number | null {
  return kilobytesIn(`/proc/${pid}/status`, "VmRSS");
}

/**
 * One `sample` a second, of the same fields always: what is not known is null, never invented. CPU % is the whole machine's, all
 * cores together 100; rates are of what the same model server counted since the last sample.
 */
export class TelemetrySampler {
  readonly #telemetry: Pick<Telemetry, "write">;
  readonly #source: () => SampleSource;
  readonly #sampleMs: number;
  #timer: NodeJS.Timeout | undefined;
  #cpu = cpuTimes();
  /** The engine that is being asked: never twice at once. */
  #asked: { engine: Engine; answer: Promise<void> } | null = null;
  #answered: Counters | null = null;
  #before: Counters | null = null;

  constructor(telemetry: Pick<Telemetry, "write">, source: () => SampleSource, sampleMs = SAMPLE_MS) {
    this.#telemetry = telemetry;
    this.#source = source;
    this.#sampleMs = sampleMs;
  }

  start(): void {
    this.#timer = setInterval(() => void this.#sample(), this.#sampleMs);
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async #sample(): Promise<void> {
    const { engine, gpu, ...source } = this.#source();
    const record = {
      ...source,
      ...(gpu ?? NO_GPU),
      cpuPercent: this.#cpuPercent(),
      memAvailableBytes: kilobytesIn("/proc/meminfo", "MemAvailable"),
    };
    const counters = engine === null ? null : await this.#ask(engine);
    if (this.#before?.engine !== engine) this.#before = null;
    const engineSample = sampleOf(counters, this.#before);
    if (counters !== null) this.#before = counters;
    if (this.#timer !== undefined) this.#telemetry.write("sample", { ...record, ...engineSample });
  }

  /** The counters, when they come in time; else those that came too late for the sample before. */
  async #ask(engine: Engine): Promise<Counters | null> {
    if (this.#asked?.engine !== engine) {
      const asked = { engine, answer: this.#answer(engine) };
      this.#asked = asked;
      void asked.answer.then(() => {
        if (this.#asked === asked) this.#asked = null;
      });
    }
    const waited = new AbortController();
    await Promise.race([this.#asked!.answer, delay(METRICS_WAIT_MS, undefined, { signal: waited.signal }).catch(() => {})]);
    waited.abort();
    const answered = this.#answered;
    this.#answered = null;
    return answered?.engine === engine ? answered : null;
  }

  async #answer(engine: Engine): Promise<void> {
    try {
      const metrics = await engine.metrics();
      this.#answered = { engine, metrics, at: performance.now() };
    } catch {
      // The server is just going away; the next sample tells.
    }
  }

  #cpuPercent(): number | null {
    const before = this.#cpu;
    this.#cpu = cpuTimes();
    const total = this.#cpu.total - before.total;
    return total > 0 ? rounded((100 * (this.#cpu.busy - before.busy)) / total, 1) : null;
  }
}

/** `before`: of the same server, or null. Counters that have fallen were started anew, and nothing is known of the time between. */
export function sampleOf(now: Pick<Counters, "metrics" | "at"> | null, before: Pick<Counters, "metrics" | "at"> | null): EngineSample {
  const { metrics } = now ?? { metrics: null };
  const since = (name: keyof EngineMetrics): number | null => {
    const [from, to] = [known(before?.metrics[name]), known(metrics?.[name])];
    return from === null || to === null || to < from ? null : to - from;
  };
  const restarted = since("promptTokensTotal") === null || since("completionTokensTotal") === null;
  const seconds = now === null || before === null || restarted ? 0 : (now.at - before.at) / 1000;
  const perSecond = (name: keyof EngineMetrics): number | null => (seconds > 0 ? rounded(since(name)! / seconds, 1) : null);
  const share = (part: keyof EngineMetrics, whole: keyof EngineMetrics): number | null => {
    const [some, all] = [since(part), since(whole)];
    return restarted || some === null || all === null || all === 0 ? null : rounded(some / all, 4);
  };
  return {
    requestsRunning: known(metrics?.requestsRunning),
    requestsWaiting: known(metrics?.requestsWaiting),
    kvCacheUsage: known(metrics?.kvCacheUsage),
    preemptionsTotal: known(metrics?.preemptionsTotal),
    prefixCacheHitRate: share("prefixCacheHitTokensTotal", "prefixCacheQueryTokensTotal"),
    draftAcceptanceRate: share("draftAcceptedTokensTotal", "draftTokensTotal"),
    draftTokensTotal: known(metrics?.draftTokensTotal),
    draftAcceptedTokensTotal: known(metrics?.draftAcceptedTokensTotal),
    promptTokensPerSecond: perSecond("promptTokensTotal"),
    tokensPerSecond: perSecond("completionTokensTotal"),
  };
}

function known(value: number | null | undefined): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

function rounded(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}

/** A line `name:   123 kB`, in bytes; null without the file or the line. */
function kilobytesIn(file: string, name: string): number | null {
  try {
    const kilobytes = new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(readFileSync(file, "utf8"))?.[1];
    return kilobytes === undefined ? null : Number(kilobytes) * 1024;
  } catch {
    return null;
  }
}

function cpuTimes(): { busy: number; total: number } {
  let busy = 0;
  let total = 0;
  for (const { times } of os.cpus()) {
    const all = times.user + times.nice + times.sys + times.idle + times.irq;
    total += all;
    busy += all - times.idle;
  }
  return { busy, total };
}
