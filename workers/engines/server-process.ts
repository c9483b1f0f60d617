import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { once } from "node:events";
import readline from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { endWithUs } from "../../queues/end-with-us.ts";
import { MathllmError } from "../../queues/errors.ts";
import { startTicksOf } from "../../queues/process-identity.ts";
import { type EngineExit, PARENT_VARIABLE } from "./engine.ts";
import { tellsOfOutOfMemory } from "./out-of-memory.ts";

const KEPT_LINES = 40;
const SHOWN_LINES = 5;
const LAST_LINES_MS = 500;
const GROUP_POLL_MS = 5;
const GROUP_TIMEOUT_MS = 10_000;

/**
 * A model server's process, whichever engine it is: started in a group of its own (Ctrl-C on the terminal is for the worker, which
 * drains first), its last lines kept, and ended with its whole group, since vLLM's engine core is a child of what we start.
 */
export class ServerProcess {
  /** Resolves when the process and all that it started have ended, asked to or not. Never rejects. */
  readonly exited: Promise<EngineExit>;
  readonly #log: Logger | undefined;
  readonly #lastLines: string[] = [];
  #resolveExited!: (exit: EngineExit) => void;
  #child: ChildProcess | undefined;

  constructor(log?: Logger) {
    this.#log = log;
    this.exited = new Promise((resolve) => {
      this.#resolveExited = resolve;
    });
  }

  get child(): ChildProcess | undefined {
    return this.#child;
  }

  /** Resolves when the process exists. Throws `engine-missing` when the program is not there. */
  async start(
    command: string,
    args: string[],
    env: NodeJS.ProcessEnv,
    { ipc = false } = {},
  ): Promise<{ pid: number; startTicks: number | null }> {
    const stdio: StdioOptions = ipc ? ["ignore", "pipe", "pipe", "ipc"] : ["ignore", "pipe", "pipe"];
    const child = spawn(command, args, {
      stdio,
      detached: true,
      env: { ...env, [PARENT_VARIABLE]: `${process.pid}:${startTicksOf(process.pid)}` },
    });
    this.#child = child;
    for (const stream of [child.stdout!, child.stderr!]) {
      readline.createInterface({ input: stream }).on("line", (line) => {
        this.#lastLines.push(line);
        if (this.#lastLines.length > KEPT_LINES) this.#lastLines.shift();
        this.#log?.debug({ pid: child.pid, line }, "model server");
      });
    }
    child.once("exit", async (code, signal) => {
      await this.#endGroup();
      // The last lines may still be on their way; what holds the pipes beyond that is none of ours.
      await Promise.race([closed, delay(LAST_LINES_MS)]);
      this.#resolveExited({ code, signal, lastLines: this.#lastLines });
    });
    const closed = once(child, "close").catch(() => {});
    try {
      await once(child, "spawn");
    } catch (error) {
      this.#resolveExited({ code: null, signal: null, lastLines: this.#lastLines });
      throw new MathllmError("engine-missing", `Expected to be able to run ${command}; ${(error as Error).message}.`, { cause: error });
    }
    // With a channel the child sees for itself that we are gone.
    const watcher = ipc ? undefined : endWithUs(child.pid!);
    void this.exited.then(() => watcher?.kill("SIGKILL"));
    return { pid: child.pid!, startTicks: startTicksOf(child.pid!) };
  }

  /** Resolves when the process is gone; kills its whole group after `graceMs`, at once when 0. Safe to call twice, and before `start`. */
  async stop(graceMs: number): Promise<void> {
    const child = this.#child;
    if (child?.pid === undefined) return;
    if (child.exitCode === null && child.signalCode === null) {
      if (graceMs > 0) child.kill("SIGTERM");
      const timer = setTimeout(() => this.#killGroup(), graceMs);
      await this.exited;
      clearTimeout(timer);
    }
    await this.exited;
  }

  /** Rejects when the process exits, with its last lines; `out-of-memory` when they tell of that. */
  async died(doing: string): Promise<never> {
    const { code, signal } = await this.exited;
    throw new MathllmError(
      tellsOfOutOfMemory(this.#lastLines.join("\n")) ? "out-of-memory" : "engine-failed",
      `The model server ended while ${doing} (code ${code}, signal ${signal}). ${this.tail()}`,
    );
  }

  late(state: string, timeoutMs: number): MathllmError {
    return new MathllmError(
      "engine-failed",
      `The model server was not ${state} within ${timeoutMs} ms. Raise ENGINE_START_TIMEOUT_MS. ${this.tail()}`,
    );
  }

  /** The last lines, for a message. */
  tail(): string {
    return this.#lastLines.length === 0 ? "It printed nothing." : `Its last lines: ${this.#lastLines.slice(-SHOWN_LINES).join(" | ")}`;
  }

  /** What the server itself started (vLLM's engine core) may outlive it and hold the memory: resolves when nothing of it is left. */
  async #endGroup(): Promise<void> {
    const giveUpAt = Date.now() + GROUP_TIMEOUT_MS;
    while (this.#killGroup() && Date.now() < giveUpAt) await delay(GROUP_POLL_MS);
  }

  /** False when nothing of the group is left. */
  #killGroup(): boolean {
    try {
      process.kill(-this.#child!.pid!, "SIGKILL");
      return true;
    } catch {
      return false;
    }
  }
}
