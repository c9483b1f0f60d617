import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import type net from "node:net";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import type { Logger } from "pino";
import { endWithUs } from "../../queues/end-with-us.ts";
import type { VramUse } from "./gpu-memory.ts";

/** One line of nvidia-smi; null where the GPU or its driver doesn't tell. */
export interface GpuReading {
  vramUsedBytes: number | null;
  vramTotalBytes: number | null;
  vramFreeBytes: number | null;
  gpuPercent: number | null;
  temperatureCelsius: number | null;
  powerWatts: number | null;
  smClockMhz: number | null;
}

export interface GpuMonitorOptions {
  gpuId: string;
  /** The leader of the model server's process group, whose own VRAM is looked for; null while there is none. */
  modelServerPid: () => number | null;
  log: Logger;
  /** Milliseconds. */
  timings?: Partial<typeof TIMINGS>;
}

const TIMINGS = {
  intervalMs: 1000,
  processesMs: 5000,
  /** A reading this old says nothing of now. */
  staleMs: 5000,
  /** Without a line for so long nvidia-smi hangs. */
  silentMs: 10_000,
  restartMs: 1000,
  restartCapMs: 60_000,
  /** One that ran this long was well: the next back-off starts anew, and faults are news again. */
  healthyMs: 60_000,
};
const STOP_TIMEOUT_MS = 1000;
const PROCESSES_TIMEOUT_MS = 4000;
const LINE_LIMIT_CHARACTERS = 65_536;
const KEPT_LINES = 3;
const SHOWN_CHARACTERS = 300;

const MEBIBYTE = 1_048_576;
const QUERY = "timestamp,memory.total,memory.used,memory.free,utilization.gpu,temperature.gpu,power.draw,clocks.sm";
const FORMAT = "--format=csv,noheader,nounits";
const LOST = /GPU is lost|Unable to determine the device handle|fallen off the bus|requires reset/i;

const run = promisify(execFile);

type Fault = "lost" | "unreadable" | "silent" | "exited" | "not-started";

const FAULTS: Record<Fault, string> = {
  lost: "the GPU is lost to its driver: its readings are unknown",
  unreadable: "nvidia-smi prints lines that are no readings; they are left out",
  silent: "nvidia-smi hangs: it is started again",
  exited: "nvidia-smi ended by itself: it is started again",
  "not-started": "nvidia-smi could not be started",
};

/**
 * What the GPU says of itself once a second, by one nvidia-smi that runs as long as the worker: starting one a second would cost
 * more than the reading.
 *
 *   off ──start()──► watching ──exits, GPU lost, silent for 10 s──► resting (1 s, doubled up to 60 s) ──► watching
 *    ▲                  └──there is no nvidia-smi──► off for good                │
 *    └──stop()───────────────────────────────────────────────────────────────────┘
 *
 * The next one is started only when the last one is gone: one stuck in the driver can't be killed, and must not be joined by others.
 * Each fault is logged once until it was well again for a minute.
 */
export class GpuMonitor {
  readonly #options: GpuMonitorOptions;
  readonly #timings: typeof TIMINGS;
  readonly #logged = new Set<Fault>();
  readonly #stopped = new AbortController();
  readonly #firstWord = Promise.withResolvers<void>();
  #reading: { value: GpuReading; at: number } | null = null;
  #serverVram: { pid: number; bytes: number | null; at: number } | null = null;
  #child: ChildProcess | undefined;
  #gone: Promise<unknown> = Promise.resolve();
  #everRead = false;
  #ill = false;
  #failures = 0;
  #faultAt = 0;
  #restart: NodeJS.Timeout | undefined;
  #processes: NodeJS.Timeout | undefined;
  #processesBusy = false;

  constructor(options: GpuMonitorOptions) {
    this.#options = options;
    this.#timings = { ...TIMINGS, ...options.timings };
  }

  /** Resolves at the first reading, or when it is known that there is none for now; after 10 s at the latest. Never rejects. */
  async start(): Promise<void> {
    // Nothing else of the monitor keeps the process from ending, and the caller waits.
    const hold = setTimeout(() => this.#firstWord.resolve(), this.#timings.silentMs);
    this.#watch();
    this.#processes = setInterval(() => void this.#readProcesses(), this.#timings.processesMs).unref();
    await this.#firstWord.promise;
    clearTimeout(hold);
  }

  /** Resolves when nvidia-smi is gone, or stuck for good. */
  async stop(): Promise<void> {
    this.#stopped.abort();
    clearTimeout(this.#restart);
    clearInterval(this.#processes);
    this.#reading = null;
    this.#firstWord.resolve();
    if (this.#child !== undefined && runs(this.#child)) killGroup(this.#child);
    await Promise.race([this.#gone, delay(STOP_TIMEOUT_MS, undefined, { ref: false })]);
  }

  /** The last reading; null when there is none of the last 5 s. */
  get latest(): GpuReading | null {
    const reading = this.#reading;
    return reading !== null && performance.now() - reading.at <= this.#timings.staleMs ? reading.value : null;
  }

  get vram(): VramUse | null {
    const { vramUsedBytes, vramTotalBytes } = this.latest ?? {};
    return vramUsedBytes == null || !vramTotalBytes ? null : { usedBytes: vramUsedBytes, totalBytes: vramTotalBytes };
  }

  /** VRAM of the model server's process group; null where the driver doesn't tell it by process. */
  get modelServerVramBytes(): number | null {
    const known = this.#serverVram;
    if (known === null || known.pid !== this.#options.modelServerPid()) return null;
    return performance.now() - known.at <= 2 * this.#timings.processesMs + PROCESSES_TIMEOUT_MS ? known.bytes : null;
  }

  #watch(): void {
    const { intervalMs, silentMs, healthyMs } = this.#timings;
    let child: ChildProcess;
    try {
      child = spawn("nvidia-smi", [...selection(this.#options.gpuId), `--query-gpu=${QUERY}`, FORMAT, "-lms", String(intervalMs)], {
        stdio: ["ignore", "pipe", "pipe"],
        // In a group of its own, Ctrl-C on the terminal is not for it.
        detached: true,
      });
    } catch (error) {
      this.#fail("not-started", (error as Error).message);
      return;
    }
    this.#child = child;
    this.#gone = once(child, "close").catch(() => {});
    child.unref();
    const startedAt = performance.now();
    let readAt = startedAt;
    let over = false;
    const end = (fault: Fault, detail: string) => {
      if (over) return;
      over = true;
      clearTimeout(silence);
      if (runs(child)) killGroup(child);
      this.#fail(fault, detail);
    };
    const silence = setTimeout(() => {
      const last = readAt;
      // We may have been stopped ourselves, and its lines wait to be read.
      setImmediate(() => {
        if (readAt === last) end("silent", `No reading for ${silentMs} ms. ${words()}`);
      });
    }, silentMs).unref();

    /** Since the last reading. */
    let lastLines: string[] = [];
    const words = () => lastLines.join(" | ").slice(0, SHOWN_CHARACTERS) || "It said nothing.";
    const keep = (line: string) => {
      if (line.trim() === "") return;
      lastLines.push(line.trim());
      if (lastLines.length > KEPT_LINES) lastLines.shift();
    };
    eachLine(child.stderr, keep);
    eachLine(child.stdout, (line) => {
      if (over || this.#stopped.signal.aborted || line.trim() === "") return;
      const reading = parseReading(line);
      if (reading === null) {
        keep(line);
        if (LOST.test(line)) end("lost", words());
        return;
      }
      if (lastLines.length > 0) this.#tell("unreadable", words());
      lastLines = [];
      readAt = performance.now();
      silence.refresh();
      this.#read(reading, readAt, readAt - Math.max(startedAt, this.#faultAt) >= healthyMs);
    });

    let watcher: ChildProcess | undefined;
    child.once("spawn", () => {
      watcher = endWithUs(child.pid!);
    });
    child.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" && !this.#everRead) {
        over = true;
        clearTimeout(silence);
        this.#firstWord.resolve();
      } else end("not-started", error.message);
    });
    child.once("exit", () => {
      watcher?.kill("SIGKILL");
      // What it may have started holds its output open.
      killGroup(child);
    });
    child.once("close", (code, signal) => end("exited", `Code ${code}, signal ${signal}. ${words()}`));
  }

  #read(value: GpuReading, at: number, well: boolean): void {
    this.#reading = { value, at };
    this.#everRead = true;
    this.#firstWord.resolve();
    if (this.#ill) {
      this.#ill = false;
      this.#options.log.info("nvidia-smi tells of the GPU again");
    }
    if (!well) return;
    this.#failures = 0;
    this.#logged.clear();
  }

  #fail(fault: Fault, detail: string): void {
    this.#firstWord.resolve();
    if (this.#stopped.signal.aborted) return;
    this.#failures++;
    this.#ill = this.#tell(fault, detail) || this.#ill;
    const waitMs = Math.min(this.#timings.restartMs * 2 ** (this.#failures - 1), this.#timings.restartCapMs);
    void this.#gone.then(() => {
      if (this.#stopped.signal.aborted) return;
      this.#restart = setTimeout(() => this.#watch(), waitMs).unref();
    });
  }

  /** Whether it was news. */
  #tell(fault: Fault, detail: string): boolean {
    this.#faultAt = performance.now();
    if (this.#logged.has(fault) || this.#stopped.signal.aborted) return false;
    this.#logged.add(fault);
    this.#options.log.warn({ gpuId: this.#options.gpuId, detail }, FAULTS[fault]);
    return true;
  }

  async #readProcesses(): Promise<void> {
    const pid = this.#options.modelServerPid();
    if (pid === null || this.latest === null || this.#processesBusy) return;
    this.#processesBusy = true;
    try {
      const { stdout } = await run("nvidia-smi", [...selection(this.#options.gpuId), "--query-compute-apps=pid,used_memory", FORMAT], {
        timeout: PROCESSES_TIMEOUT_MS,
        killSignal: "SIGKILL",
        signal: this.#stopped.signal,
      });
      this.#serverVram = { pid, bytes: memoryOfGroup(parseProcesses(stdout), pid, processGroupOf), at: performance.now() };
    } catch {
      // Best effort: the value grows old and is unknown then.
    } finally {
      this.#processesBusy = false;
    }
  }
}

/** The GPU of this UUID; of any other name the first one, as everywhere. */
function selection(gpuId: string): string[] {
  return ["-i", gpuId.startsWith("GPU-") ? gpuId : "0"];
}

/** One whole line of the query, or null. A field that is no plain number (`[N/A]`, `[Unknown Error]`) is null. */
export function parseReading(line: string): GpuReading | null {
  const fields = line.split(",").map((field) => field.trim());
  if (fields.length !== QUERY.split(",").length || !/^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d/.test(fields[0]!)) return null;
  const [total, used, free, percent, celsius, watts, megahertz] = fields.slice(1).map(numberOf);
  return {
    vramUsedBytes: bytesOf(used!),
    vramTotalBytes: bytesOf(total!),
    vramFreeBytes: bytesOf(free!),
    gpuPercent: percent!,
    temperatureCelsius: celsius!,
    powerWatts: watts!,
    smClockMhz: megahertz!,
  };
}

/** Bytes by pid of `--query-compute-apps=pid,used_memory`; null where the driver doesn't tell, as on WSL. */
export function parseProcesses(text: string): Map<number, number | null> {
  const processes = new Map<number, number | null>();
  for (const line of text.split("\n")) {
    const [, pid, memory] = /^\s*(\d{1,10})\s*,([^,]*)$/.exec(line) ?? [];
    if (pid === undefined) continue;
    const bytes = bytesOf(numberOf(memory!.trim()));
    const before = processes.get(Number(pid)) ?? (processes.has(Number(pid)) ? null : 0);
    processes.set(Number(pid), bytes === null || before === null ? null : before + bytes);
  }
  return processes;
}

/** What the processes of one group hold together; null when none of them is listed, or one's share is not known. */
export function memoryOfGroup(
  processes: Map<number, number | null>,
  leader: number,
  groupOf: (pid: number) => number | null,
): number | null {
  const own = [...processes].filter(([pid]) => pid === leader || groupOf(pid) === leader).map(([, bytes]) => bytes);
  return own.length === 0 || own.includes(null) ? null : own.reduce<number>((sum, bytes) => sum + bytes!, 0);
}

function numberOf(field: string): number | null {
  return /^-?\d{1,15}(\.\d{1,9})?$/.test(field) ? Number(field) : null;
}

function bytesOf(mebibytes: number | null): number | null {
  return mebibytes === null || mebibytes < 0 ? null : mebibytes * MEBIBYTE;
}

function processGroupOf(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The command's name, in parentheses, may itself contain spaces and parentheses.
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[2]);
  } catch {
    return null;
  }
}

/** Calls `onLine` for each line that is ended: what is left when the stream ends may be torn. */
function eachLine(stream: Readable | null, onLine: (line: string) => void): void {
  // None, when the process could not be started.
  if (!stream) return;
  let rest = "";
  stream.setEncoding("utf8");
  (stream as net.Socket).unref();
  stream.on("error", () => {});
  stream.on("data", (chunk: string) => {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop()!.slice(-LINE_LIMIT_CHARACTERS);
    for (const line of lines) onLine(line);
  });
}

function runs(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null;
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    // Nothing of it is left.
  }
}
