import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import type { Logger } from "pino";

/**
 * The GPU worker as a child process, kept up.
 *
 *   running ──exits by itself──► waiting (back-off) ──► running
 *      └──stop()──► draining ──exits, or stopNow() kills it──► ended
 *
 * The child leads its own process group, so that Ctrl-C on the terminal reaches only us and we decide what it means. It stops
 * by itself when the channel to us breaks: nothing outlives a kill -9 of this process.
 */
const RESTART_MS = 500;
const RESTART_CAP_MS = 30_000;
/** A worker that ran this long was well: the next back-off starts anew. */
const HEALTHY_MS = 60_000;

export class WorkerProcess {
  readonly #command: string[];
  readonly #env: NodeJS.ProcessEnv;
  readonly #log: Logger;
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #failures = 0;
  #stopping = false;

  /** `command`: the arguments of this Node that run a worker. */
  constructor(command: string[], env: NodeJS.ProcessEnv, log: Logger) {
    this.#command = command;
    this.#env = env;
    this.#log = log;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  start(): void {
    const startedAt = performance.now();
    const child = spawn(process.execPath, this.#command, {
      env: this.#env,
      stdio: ["ignore", "inherit", "inherit", "ipc"],
      detached: true,
    });
    this.#child = child;
    child.once("error", (error) => this.#log.error({ err: error }, "the worker could not be started"));
    child.once("close", (code, signal) => {
      if (this.#stopping) return;
      this.#failures = performance.now() - startedAt > HEALTHY_MS ? 1 : this.#failures + 1;
      const waitMs = Math.min(RESTART_MS * 2 ** (this.#failures - 1), RESTART_CAP_MS);
      this.#log.error({ code, signal, restartInMs: waitMs }, "the worker ended by itself; its jobs are kept and it is started again");
      this.#timer = setTimeout(() => this.start(), waitMs);
    });
  }

  /** Lets the worker drain; resolves when it is gone. */
  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#timer);
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGTERM");
    await once(child, "exit");
  }

  /** The second signal makes the worker leave at once: running jobs go back to their queue. */
  stopNow(): void {
    this.#stopping = true;
    this.#child?.kill("SIGTERM");
  }
}
