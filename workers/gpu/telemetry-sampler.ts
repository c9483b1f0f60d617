import { readFileSync } from "node:fs";
import os from "node:os";
import type { Engine } from "../engines/engine.ts";
import type { Telemetry } from "./telemetry.ts";

const SAMPLE_MS = 1000;

export interface SampleSource {
  residentModel: string | null;
  engine: Engine | null;
  depths: Record<string, number | null>;
  running: number;
  rssBytes: number | null;
  modelServerRssBytes: number | null;
}

/** Resident set size from /proc; null where there is none. */
export function residentMemoryBytes(pid: number): number | null {
  try {
    const kilobytes = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    return kilobytes === undefined ? null : Number(kilobytes) * 1024;
  } catch {
    return null;
  }
}

/**
 * One `sample` a second. CPU % is the whole machine's, all cores together 100; tokens/s counts generated tokens since the last
 * sample of the same model server. Without a GPU its fields are null, never invented.
 */
export class TelemetrySampler {
  readonly #telemetry: Telemetry;
  readonly #source: () => SampleSource;
  #timer: NodeJS.Timeout | undefined;
  #cpu = cpuTimes();
  #tokens: { engine: Engine; total: number; at: number } | null = null;

  constructor(telemetry: Telemetry, source: () => SampleSource) {
    this.#telemetry = telemetry;
    this.#source = source;
  }

  start(): void {
    this.#timer = setInterval(() => void this.#sample(), SAMPLE_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #sample(): Promise<void> {
    const { engine, ...source } = this.#source();
    const cpu = cpuTimes();
    const busy = (100 * (cpu.busy - this.#cpu.busy)) / Math.max(cpu.total - this.#cpu.total, 1);
    this.#cpu = cpu;
    const record = { ...source, vramUsedBytes: null, vramTotalBytes: null, gpuPercent: null, cpuPercent: Math.round(busy * 10) / 10 };
    this.#telemetry.write("sample", { ...record, tokensPerSecond: engine === null ? null : await this.#tokenRate(engine) });
  }

  async #tokenRate(engine: Engine): Promise<number | null> {
    try {
      const { completionTokensTotal: total } = await engine.metrics();
      const before = this.#tokens;
      const at = performance.now();
      this.#tokens = { engine, total, at };
      return before?.engine === engine ? Math.round(((total - before.total) * 10_000) / (at - before.at)) / 10 : null;
    } catch {
      // The server is just going away; the next sample tells.
      return null;
    }
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
