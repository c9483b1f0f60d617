import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { lstat, mkdir, readFile, symlink } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { MathllmError } from "../../queues/errors.ts";
import { type GpuView, gpuViewSchema } from "../../queues/gpu-view.ts";
import type { Role } from "../../queues/names.ts";
import { ApiClient } from "../submit.ts";
import type { Settings } from "./settings.ts";

/** How long a system may take until its API answers. Loading a model is not part of it: the first job does that. */
const START_TIMEOUT_MS = 60_000;
const STOP_GRACE_MS = 30_000;
const WORKER_TIMEOUT_MS = 60_000;
const POLL_MS = 100;

export interface MeasuredSystemOptions {
  /** The command line's file: the system is `node MAIN start`. */
  main: string;
  /** What this system is called, in the names of its files. */
  name: string;
  /** Its own Redis data, logs and telemetry. */
  folder: string;
  /** Where models were downloaded to before; they are not downloaded again. */
  modelsFolder: string;
  /** On top of the environment. */
  settings: Settings;
  env: NodeJS.ProcessEnv;
}

/**
 * The whole product in processes of its own, with other settings than ours: nothing of the user's configuration is touched, so that there
 * is nothing that a crash could leave changed. It drains and leaves when the channel to us breaks.
 *
 *   starting ──prints its address──► up ──stop()──► draining ──exits, or is killed after the grace──► ended
 */
export class MeasuredSystem {
  readonly url: string;
  readonly telemetryPath: string;
  readonly apiPid: number;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, url: string, telemetryPath: string) {
    this.#child = child;
    this.url = url;
    this.telemetryPath = telemetryPath;
    this.apiPid = child.pid!;
  }

  /** Resolves when the API answers and a worker serves it. Rejects with the system's own last words. */
  static async start({ main, name, folder, modelsFolder, settings, env }: MeasuredSystemOptions): Promise<MeasuredSystem> {
    const dataDir = path.join(folder, "data");
    await mkdir(dataDir, { recursive: true, mode: 0o700 });
    await mkdir(modelsFolder, { recursive: true });
    const models = path.join(dataDir, "models");
    if (!(await lstat(models).catch(() => null))) await symlink(modelsFolder, models);
    const logPath = path.join(folder, `${name}.log`);
    const telemetryPath = path.join(folder, `${name}-telemetry.jsonl`);
    const own = {
      REDIS_URL: "",
      API_KEYS: "",
      HOST: "127.0.0.1",
      PORT: "0",
      STUDENT_PORT: "0",
      TALKER_PORT: "0",
      DATA_DIR: dataDir,
      TELEMETRY_LOG: telemetryPath,
      LOG_LEVEL: "warn",
      IDLE_UNLOAD_SECONDS: "0",
    };
    const log = openSync(logPath, "a");
    const child = spawn(process.execPath, [main, "start"], {
      cwd: folder,
      env: { ...env, ...settings, ...own },
      stdio: ["ignore", "pipe", log, "ipc"],
      // Ctrl-C on the terminal reaches us alone, and we decide what it means.
      detached: true,
    });
    closeSync(log);
    try {
      const system = new MeasuredSystem(child, await addressOf(child, logPath), telemetryPath);
      await system.#workerUp(logPath);
      return system;
    } catch (error) {
      child.kill("SIGKILL");
      throw error;
    }
  }

  async gpu(): Promise<GpuView> {
    return gpuViewSchema.parse(await new ApiClient(this.url).json("/gpu"));
  }

  /** Loads a model and waits until it serves, so that no measured request pays for the load. */
  async load(role: Role, timeoutMs: number): Promise<void> {
    const until = performance.now() + timeoutMs;
    const api = new ApiClient(this.url);
    if ((await this.gpu()).residentModel !== role) {
      await api.json("/gpu/swap", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: role }),
      });
    }
    for (;;) {
      const [gpu] = (await this.gpu()).gpus;
      if (gpu?.residentModel === role && gpu.server.state === "ready") return;
      const refused = gpu?.models[role].error;
      if (refused != null) throw new MathllmError("engine-failed", `The ${role} could not be loaded: ${refused}`);
      if (performance.now() > until) throw new MathllmError("engine-failed", `The ${role} was not ready within ${timeoutMs} ms.`);
      await delay(POLL_MS);
    }
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, "exit");
    this.#child.kill("SIGTERM");
    const left = await Promise.race([exited.then(() => true), delay(STOP_GRACE_MS, false, { ref: false })]);
    if (!left) this.#child.kill("SIGKILL");
    await exited;
  }

  async #workerUp(logPath: string): Promise<void> {
    const until = performance.now() + WORKER_TIMEOUT_MS;
    for (;;) {
      if ((await this.gpu()).gpus.length > 0) return;
      if (this.#child.exitCode !== null || performance.now() > until) {
        const { reason } = (await new ApiClient(this.url).json("/readyz").catch((error: Error) => ({ reason: error.message }))) as {
          reason?: string;
        };
        throw new MathllmError(
          "engine-failed",
          `Expected a GPU worker of the measured system to serve within ${WORKER_TIMEOUT_MS / 1000} s; none did (${reason}). Another system on this GPU has to be stopped first.\n${await lastLines(logPath)}`,
        );
      }
      await delay(POLL_MS);
    }
  }
}

async function addressOf(child: ChildProcess, logPath: string): Promise<string> {
  const lines = createInterface({ input: child.stdout! });
  const timer = setTimeout(() => child.kill("SIGKILL"), START_TIMEOUT_MS);
  try {
    for await (const line of lines) {
      const url = /\s(http:\/\/[\d.]+:\d+)\s*$/.exec(line)?.[1];
      if (url !== undefined) {
        child.stdout!.resume();
        return url;
      }
    }
  } finally {
    clearTimeout(timer);
  }
  throw new MathllmError("engine-failed", `The system to be measured did not start.\n${await lastLines(logPath)}`);
}

async function lastLines(logPath: string): Promise<string> {
  return (await readFile(logPath, "utf8").catch(() => "")).trim().split("\n").slice(-15).join("\n");
}
