import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { link, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import type net from "node:net";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { openRedis, waitForRedis } from "./connection.ts";
import { MathllmError } from "./errors.ts";
import { findFreePort } from "./free-port.ts";
import { isAlive, ownIdentity, type ProcessIdentity, startTicksOf } from "./process-identity.ts";
import { findRedisBinary, libraryEnv } from "./redis-binary.ts";

/**
 * A private Redis of one data directory.
 *
 *   nothing ──lock taken──► starting ──answers──► running ──stop() by its starter──► nothing (the AOF stays)
 *      running, another process of ours comes ──► joined: the same server, which its joiner does not stop
 *      running, killed ──► its keeper starts it again on the same port and data
 *      running, its starter is killed ──► running on; the next start joins it and is its keeper from then on
 *
 * The server leads its own process group, so that Ctrl-C on the terminal leaves it to us, and an accepted job outlives us.
 */

export interface EmbeddedRedisOptions {
  dataDir: string;
  /** `always`: an accepted job is on disk. `everysec`: faster, and a kill -9 can lose up to two seconds. */
  appendfsync: "always" | "everysec";
  /** Nothing of it may outlive this process, not even a kill -9 (the demo). */
  dieWithParent?: boolean;
  log?: (line: string) => void;
  env?: NodeJS.ProcessEnv;
}

export interface EmbeddedRedis {
  url: string;
  pid: number;
  /** Another process of ours had started it and is its keeper. */
  joined: boolean;
  /** Its keeper stops it and resolves when it is gone; for a joiner nothing happens. */
  stop(): Promise<void>;
}

const identitySchema = z.object({ pid: z.number(), startTicks: z.number().nullable() });
const instanceSchema = z.object({ server: identitySchema, keeper: identitySchema, port: z.number(), password: z.string() });
type Instance = z.infer<typeof instanceSchema>;

const PORT_TRIES = 5;
const READY_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 10_000;
const STOP_POLL_MS = 5;
const LOOK_MS = 1000;
const RESTART_MS = 500;
const LOCK_POLL_MS = 50;
const LOG_LINES = 8;

const urlOf = ({ port, password }: Pick<Instance, "port" | "password">) => `redis://:${password}@127.0.0.1:${port}`;

/** Starts or joins the server of this data directory. Throws `redis-binary-missing`, or `redis-unavailable` with its last log lines. */
export async function startEmbeddedRedis(options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  const folder = path.join(options.dataDir, "redis");
  const giveUpAt = Date.now() + READY_TIMEOUT_MS;
  for (;;) {
    const unlock = await lockFolder(folder).catch((error: Error) => {
      throw new MathllmError(
        "redis-unavailable",
        `Expected to be able to write ${folder}; ${error.message}. Set DATA_DIR to a folder of yours.`,
      );
    });
    try {
      const running = await readInstance(folder);
      if (running === undefined) return await startNew(folder, options);
      if (!isAlive(running.keeper))
        return isAlive(running.server) ? await takeOver(folder, running, options) : await startNew(folder, options);
      if (isAlive(running.server)) return await join(folder, running);
    } finally {
      await unlock();
    }
    // Its keeper lives and is just starting it again.
    if (Date.now() > giveUpAt) {
      throw new MathllmError(
        "redis-unavailable",
        `The process that keeps the embedded Redis can't start it again. ${await lastLines(folder)}`,
      );
    }
    await delay(LOCK_POLL_MS);
  }
}

async function join(folder: string, running: Instance): Promise<EmbeddedRedis> {
  const url = urlOf(running);
  await answering(url, folder);
  return { url, pid: running.server.pid, joined: true, stop: async () => {} };
}

/** Its keeper was killed: this process is its keeper from now on. */
async function takeOver(folder: string, running: Instance, options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  const server = new RedisServer(folder, running, options);
  await server.takeOver(running.server);
  return server;
}

async function startNew(folder: string, options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  const password = randomBytes(24).toString("hex");
  for (let tries = 1; ; tries++) {
    const port = await findFreePort();
    await writePrivate(path.join(folder, "redis.conf"), configOf(folder, port, password, options.appendfsync));
    const server = new RedisServer(folder, { port, password }, options);
    try {
      await server.start();
      return server;
    } catch (error) {
      await server.stop();
      if (tries < PORT_TRIES && /address already in use/i.test((error as Error).message)) continue;
      throw error;
    }
  }
}

/** The server seen by its keeper. One that dies by itself is started again on the same port and data, so that clients find it again. */
class RedisServer implements EmbeddedRedis {
  readonly joined = false;
  readonly url: string;
  readonly #folder: string;
  readonly #address: Pick<Instance, "port" | "password">;
  readonly #options: EmbeddedRedisOptions;
  #server: ProcessIdentity | undefined;
  #watcher: ChildProcess | undefined;
  #lookAgain: NodeJS.Timeout | undefined;
  #stopping = false;

  constructor(folder: string, address: Pick<Instance, "port" | "password">, options: EmbeddedRedisOptions) {
    this.#folder = folder;
    this.#address = { port: address.port, password: address.password };
    this.#options = options;
    this.url = urlOf(address);
  }

  get pid(): number {
    return this.#server!.pid;
  }

  async start(): Promise<void> {
    const { env = process.env, log = () => {} } = this.#options;
    const { path: command, libraryPath } = await findRedisBinary({ env, log });
    const child = spawn(command, [path.join(this.#folder, "redis.conf")], {
      env: libraryEnv(libraryPath),
      stdio: "ignore",
      detached: true,
      cwd: this.#folder,
    });
    // Heard from the beginning: on bad data it ends before anything else has been done here.
    const exited = new Promise<[number | null, NodeJS.Signals | null]>((resolve) => child.once("exit", (...outcome) => resolve(outcome)));
    await once(child, "spawn");
    child.unref();
    const giveUp = new AbortController();
    // Recorded before it answers: should we be killed now, the next start finds it instead of starting a second one on the same data.
    await this.#keep({ pid: child.pid!, startTicks: startTicksOf(child.pid!) });
    try {
      await Promise.race([answering(this.url, this.#folder, giveUp.signal), diedEarly(exited, this.#folder)]);
    } finally {
      giveUp.abort();
    }
    void exited.then(() => this.#look());
    this.#look();
  }

  async takeOver(server: ProcessIdentity): Promise<void> {
    await this.#keep(server);
    await answering(this.url, this.#folder);
    this.#look();
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#lookAgain);
    this.#watcher?.kill("SIGKILL");
    const server = this.#server;
    const giveUpAt = Date.now() + STOP_TIMEOUT_MS;
    if (server !== undefined && isAlive(server)) process.kill(server.pid, "SIGTERM");
    while (server !== undefined && isAlive(server)) {
      if (Date.now() > giveUpAt) process.kill(server.pid, "SIGKILL");
      await delay(STOP_POLL_MS);
    }
    await rm(path.join(this.#folder, "instance.json"), { force: true });
  }

  async #keep(server: ProcessIdentity): Promise<void> {
    this.#server = server;
    await writeInstance(this.#folder, { server, keeper: ownIdentity(), ...this.#address });
    this.#watcher?.kill("SIGKILL");
    if (this.#options.dieWithParent === true) this.#watcher = watch(server.pid);
  }

  /** Looks now and then whether the server lives, and starts it again if not. */
  #look(): void {
    clearTimeout(this.#lookAgain);
    if (this.#stopping) return;
    if (this.#server !== undefined && isAlive(this.#server)) {
      this.#lookAgain = setTimeout(() => this.#look(), LOOK_MS).unref();
      return;
    }
    this.#options.log?.("the embedded Redis ended by itself and is started again");
    this.start().catch((error: Error) => {
      this.#options.log?.(error.message);
      if (!this.#stopping) this.#lookAgain = setTimeout(() => this.#look(), RESTART_MS);
    });
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

async function diedEarly(exited: Promise<[number | null, NodeJS.Signals | null]>, folder: string): Promise<never> {
  const [code, signal] = await exited;
  throw new MathllmError(
    "redis-unavailable",
    `The embedded Redis ended at once (code ${code}, signal ${signal}). ${await lastLines(folder)}`,
  );
}

async function answering(url: string, folder: string, signal?: AbortSignal): Promise<void> {
  const redis = openRedis(url, "worker", () => {});
  signal?.addEventListener("abort", () => redis.disconnect());
  try {
    await waitForRedis(redis, READY_TIMEOUT_MS);
  } catch {
    throw new MathllmError(
      "redis-unavailable",
      `The embedded Redis did not answer within ${READY_TIMEOUT_MS} ms. ${await lastLines(folder)}`,
    );
  } finally {
    redis.disconnect();
  }
}

async function lastLines(folder: string): Promise<string> {
  const text = await readFile(path.join(folder, "redis.log"), "utf8").catch(() => "");
  return `Its log, ${path.join(folder, "redis.log")}, ends with:\n${text.trim().split("\n").slice(-LOG_LINES).join("\n")}`;
}

/** The password stands in a file of mode 0600: a command line can be read by every user. */
function configOf(folder: string, port: number, password: string, appendfsync: string): string {
  return `bind 127.0.0.1
port ${port}
requirepass ${password}
dir ${JSON.stringify(folder)}
logfile ${JSON.stringify(path.join(folder, "redis.log"))}
appendonly yes
appendfsync ${appendfsync}
aof-load-truncated yes
save ""
maxmemory-policy noeviction
daemonize no
`;
}

async function readInstance(folder: string): Promise<Instance | undefined> {
  try {
    return instanceSchema.parse(JSON.parse(await readFile(path.join(folder, "instance.json"), "utf8")));
  } catch {
    return undefined;
  }
}

async function writeInstance(folder: string, instance: Instance): Promise<void> {
  await writePrivate(path.join(folder, "instance.json"), JSON.stringify(instance));
}

async function writePrivate(file: string, text: string): Promise<void> {
  await writeFile(`${file}.new`, text, { mode: 0o600 });
  await rename(`${file}.new`, file);
}

async function lockFolder(folder: string): Promise<() => Promise<void>> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  return lock(path.join(folder, "starting.lock"));
}

/** An exclusive file that names its owner from the moment it exists: one whose owner is dead is taken over. Returns the release. */
async function lock(file: string): Promise<() => Promise<void>> {
  const own = `${file}.${process.pid}.${randomUUID()}`;
  await writeFile(own, JSON.stringify(ownIdentity()), { mode: 0o600 });
  try {
    while (!(await linked(own, file))) {
      const owner = await lockOwner(file);
      if (owner === "none" || (owner !== "gone" && !isAlive(owner))) await rm(file, { force: true });
      else if (owner !== "gone") await delay(LOCK_POLL_MS);
    }
  } finally {
    await rm(own, { force: true });
  }
  return () => rm(file, { force: true });
}

/** Whether `file` is now another name of `own`; false when it stood already. */
async function linked(own: string, file: string): Promise<boolean> {
  try {
    await link(own, file);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** `gone`: released meanwhile. `none`: it names nobody. */
async function lockOwner(file: string): Promise<ProcessIdentity | "gone" | "none"> {
  try {
    return identitySchema.parse(JSON.parse(await readFile(file, "utf8")));
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT" ? "gone" : "none";
  }
}
