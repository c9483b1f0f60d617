import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { isAlive, type ProcessIdentity, startTicksOf } from "../../queues/process-identity.ts";

/**
 * One part of the product as a child process, kept up: whenever it exits it is started again, as a service manager would.
 *
 *   running ──exits, however──► waiting ──► running (the next incarnation)
 *      └──stop()──► stopping ──exits, or is killed after the grace──► ended
 */

const RESTART_MS = 200;
const CLI = path.join(import.meta.dirname, "../../mathllm.ts");

export interface Incarnation extends ProcessIdentity {
  name: string;
  /** Counts from 1. */
  number: number;
  startedAt: number;
  exit: { at: number; code: number | null; signal: NodeJS.Signals | null } | null;
  /** The storm itself killed it. */
  killed: boolean;
}

export interface KeptProcessOptions {
  name: string;
  /** Arguments of the command line. */
  args: string[];
  folder: string;
  env: (incarnation: number) => NodeJS.ProcessEnv;
  onExit: (incarnation: Incarnation) => void;
}

export class KeptProcess {
  readonly name: string;
  readonly incarnations: Incarnation[] = [];
  readonly #options: KeptProcessOptions;
  #child: ChildProcess | undefined;
  #restart: NodeJS.Timeout | undefined;
  #stopping = false;

  constructor(options: KeptProcessOptions) {
    this.name = options.name;
    this.#options = options;
    this.#start();
  }

  /** The running incarnation; undefined while it is down. */
  get running(): Incarnation | undefined {
    const last = this.incarnations.at(-1);
    return last !== undefined && last.exit === null && isAlive(last) ? last : undefined;
  }

  kill(): Incarnation | undefined {
    const victim = this.running;
    if (victim === undefined) return undefined;
    victim.killed = true;
    process.kill(victim.pid, "SIGKILL");
    return victim;
  }

  /** Asks it to leave; after `graceMs` it is killed. Returns whether it left by itself. */
  async stop(graceMs: number): Promise<boolean> {
    this.#stopping = true;
    clearTimeout(this.#restart);
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return true;
    const exited = once(child, "exit");
    child.kill("SIGCONT");
    child.kill(graceMs > 0 ? "SIGTERM" : "SIGKILL");
    const left = await Promise.race([exited.then(() => true), delay(graceMs, false, { ref: false })]);
    if (!left) child.kill("SIGKILL");
    await exited;
    return left;
  }

  /** For the end of the harness itself, where nothing can be awaited. */
  killNow(): void {
    this.#stopping = true;
    clearTimeout(this.#restart);
    this.#child?.kill("SIGKILL");
  }

  #start(): void {
    const { name, args, folder, env, onExit } = this.#options;
    const number = this.incarnations.length + 1;
    const out = openSync(path.join(folder, `${name}-${number}.log`), "a");
    // The channel breaks when the harness dies, however it dies, and the child then drains and leaves.
    const child = spawn(process.execPath, [CLI, ...args], { cwd: folder, env: env(number), stdio: ["ignore", out, out, "ipc"] });
    closeSync(out);
    this.#child = child;
    const pid = child.pid ?? -1;
    const incarnation: Incarnation = { name, number, pid, startTicks: startTicksOf(pid), startedAt: Date.now(), exit: null, killed: false };
    this.incarnations.push(incarnation);
    child.once("error", () => {});
    child.once("exit", (code, signal) => {
      incarnation.exit = { at: Date.now(), code, signal };
      if (this.#stopping) return;
      onExit(incarnation);
      this.#restart = setTimeout(() => this.#start(), RESTART_MS);
    });
  }
}
