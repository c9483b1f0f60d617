import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import type net from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { MathllmError } from "./errors.ts";
import type { FileLock } from "./file-lock.ts";
import { isPortFree } from "./free-port.ts";
import { isAlive, ownIdentity, type ProcessIdentity, startTicksOf } from "./process-identity.ts";
import { findRedisBinary, libraryEnv } from "./redis-binary.ts";
import type { Address, RedisFolder } from "./redis-folder.ts";
import { probeServer, untilAnswers, urlOf } from "./redis-probe.ts";

/**
 * The keeper of a folder's Redis server: the one process that starts it again when it dies, and that ends it.
 *
 *   starting ──the spawned server answers, or one is found running──► running
 *      └──it ended at once──► the error is the caller's, who stops the keeper
 *   running ──the current server is gone: its exit is told, or a look finds it so──► restarting
 *   restarting, one attempt at a time, each in the log:
 *      the folder's server lock is taken here ──► spawned on the same port, with the lock in its hands ──answers──► running
 *                                                     └──it ended at once──► the next attempt, after a growing pause
 *      the lock or the port is another's ──► who answers there with our password and this folder's data is adopted ──► running
 *                                                     └──nobody does──► the next attempt, after a growing pause
 *   every state ──stop()──► stopping: the attempt in flight is broken off, the server is ended ──► ended
 *
 * Exits and looks count while running only, and only those of the current server. So a restart can't begin beside another,
 * whatever is told at once after this process itself had been stopped; and no server can be started beside a live one, whoever
 * tries, since the lock is the living server's own.
 */

export interface RedisKeeperOptions {
  /** The server must not outlive this process, not even its kill -9. */
  dieWithParent?: boolean;
  log: Pick<Logger, "info" | "warn" | "error">;
  env: NodeJS.ProcessEnv;
}

type State = "starting" | "running" | "restarting" | "stopping";

const LOOK_MS = 1000;
const RESTART_MS = 500;
const RESTART_CAP_MS = 10_000;
const STOP_TIMEOUT_MS = 10_000;
const STOP_POLL_MS = 5;

/** The port is another program's. */
export class PortTakenError extends MathllmError {
  constructor(port: number) {
    super("redis-unavailable", `The embedded Redis can't listen on port ${port} of 127.0.0.1: another program does.`);
  }
}

export class RedisKeeper {
  readonly joined = false;
  readonly url: string;
  readonly #folder: RedisFolder;
  readonly #address: Address;
  readonly #options: RedisKeeperOptions;
  readonly #stop = new AbortController();
  #state: State = "starting";
  #server: ProcessIdentity | undefined;
  #watcher: ChildProcess | undefined;
  #lookAgain: NodeJS.Timeout | undefined;
  #restarting: Promise<void> | undefined;

  constructor(folder: RedisFolder, { port, password }: Address, options: RedisKeeperOptions) {
    this.#folder = folder;
    this.#address = { port, password };
    this.#options = options;
    this.url = urlOf(this.#address);
  }

  /** Of the current server. */
  get pid(): number {
    return this.#server!.pid;
  }

  /** The first start; `lock` is the folder's server lock, which stays the caller's to close. Throws `redis-unavailable`. */
  async start(lock: FileLock): Promise<void> {
    await this.#spawnOrAdopt(lock);
    this.#run();
  }

  /** Keeps a server that was found running. It may have been killed together with its former keeper: then it is started again. */
  async adopt(server: ProcessIdentity): Promise<void> {
    await this.#keep(server);
    this.#run();
    await untilAnswers(this.#address, this.#folder, this.#stop.signal);
  }

  /** Resolves when the server is gone and no other will be started. */
  async stop(): Promise<void> {
    this.#state = "stopping";
    this.#stop.abort();
    clearTimeout(this.#lookAgain);
    await this.#restarting;
    this.#watcher?.kill("SIGKILL");
    const server = this.#server;
    const giveUpAt = Date.now() + STOP_TIMEOUT_MS;
    if (server !== undefined && isAlive(server)) process.kill(server.pid, "SIGTERM");
    while (server !== undefined && isAlive(server)) {
      if (Date.now() > giveUpAt) process.kill(server.pid, "SIGKILL");
      await delay(STOP_POLL_MS);
    }
    await this.#folder.writeInstance({ server: null, keeper: null, ...this.#address });
  }

  async #spawn(lock: FileLock): Promise<void> {
    const { env, log } = this.#options;
    const { path: command, libraryPath } = await findRedisBinary({ env, log: (line) => log.info(line) });
    this.#stop.signal.throwIfAborted();
    // Recorded before the spawn: whoever finds the lock taken, should we be killed in between, knows where to look for its holder.
    await this.#folder.writeInstance({ server: null, keeper: ownIdentity(), ...this.#address });
    const child = spawn(command, [this.#folder.config], {
      env: libraryEnv(libraryPath),
      stdio: ["ignore", "ignore", "ignore", lock.fd],
      // A process group of its own, so that Ctrl-C on the terminal leaves it to us.
      detached: true,
      cwd: this.#folder.path,
    });
    const ended = new Promise<string>((resolve) => child.once("exit", (code, signal) => resolve(`code ${code}, signal ${signal}`)));
    await once(child, "spawn");
    child.unref();
    const server = { pid: child.pid!, startTicks: startTicksOf(child.pid!) };
    await this.#keep(server);
    const answered = new AbortController();
    const signal = AbortSignal.any([answered.signal, this.#stop.signal]);
    try {
      await Promise.race([untilAnswers(this.#address, this.#folder, signal), ended.then((how) => this.#endedAtOnce(how))]);
    } finally {
      answered.abort();
    }
    // What answered may be another server of this folder, at whose port the spawned one is just ending.
    const answering = await probeServer(this.#address, this.#folder);
    if (answering !== undefined && answering.pid !== server.pid) throw new PortTakenError(this.#address.port);
    void ended.then((how) => {
      if (this.#server === server) this.#look(how);
    });
  }

  async #endedAtOnce(how: string): Promise<never> {
    if (!(await isPortFree(this.#address.port))) throw new PortTakenError(this.#address.port);
    throw new MathllmError("redis-unavailable", `The embedded Redis ended at once (${how}). ${await this.#folder.lastLogLines()}`);
  }

  async #keep(server: ProcessIdentity): Promise<void> {
    this.#server = server;
    await this.#folder.writeInstance({ server, keeper: ownIdentity(), ...this.#address });
    this.#watcher?.kill("SIGKILL");
    if (this.#options.dieWithParent === true) this.#watcher = watch(server.pid);
  }

  #run(): void {
    if (this.#state === "stopping") return;
    this.#state = "running";
    this.#look("found by a look");
  }

  /** Whether the current server lives; if not, the restart begins. `how` it is thought to have ended is for the log. */
  #look(how: string): void {
    if (this.#state !== "running") return;
    clearTimeout(this.#lookAgain);
    if (isAlive(this.#server!)) {
      this.#lookAgain = setTimeout(() => this.#look("found by a look"), LOOK_MS).unref();
      return;
    }
    this.#state = "restarting";
    this.#options.log.warn({ pid: this.pid, how }, "the embedded Redis ended by itself and is started again");
    this.#restarting = this.#restart();
  }

  async #restart(): Promise<void> {
    const { log } = this.#options;
    const beganAt = performance.now();
    for (let attempt = 1; !this.#stop.signal.aborted; attempt++) {
      try {
        await this.#takeLockAndStart();
        log.info({ pid: this.pid, attempt, tookMs: Math.round(performance.now() - beganAt) }, "the embedded Redis serves again");
        this.#run();
        return;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        const againInMs = Math.min(RESTART_MS * 2 ** (attempt - 1), RESTART_CAP_MS);
        log.error({ attempt, againInMs, reason: (error as Error).message }, "the embedded Redis could not be started again");
        await delay(againInMs, undefined, { signal: this.#stop.signal }).catch(() => {});
      }
    }
  }

  async #takeLockAndStart(): Promise<void> {
    const lock = await this.#folder.tryServerLock();
    if (lock !== undefined) return this.#spawnOrAdopt(lock).finally(() => lock.close());
    await this.#adoptHolder(new MathllmError("redis-unavailable", `Another process holds ${this.#folder.path}.`));
  }

  async #spawnOrAdopt(lock: FileLock): Promise<void> {
    try {
      await this.#spawn(lock);
    } catch (error) {
      if (!(error instanceof PortTakenError)) throw error;
      await this.#adoptHolder(error);
    }
  }

  async #adoptHolder(reason: Error): Promise<void> {
    const server = await probeServer(this.#address, this.#folder);
    if (server === undefined) throw reason;
    this.#options.log.warn({ pid: server.pid }, "a Redis of this folder runs already; it is taken over");
    await this.#keep(server);
  }
}

/** A shell that waits for our end of the pipe to close, which the kernel does however we die. */
function watch(pid: number): ChildProcess {
  const watcher = spawn("/bin/sh", ["-c", 'read -r _; kill -TERM "$0"', String(pid)], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true,
  });
  watcher.unref();
  (watcher.stdin as unknown as net.Socket).unref();
  return watcher;
}
