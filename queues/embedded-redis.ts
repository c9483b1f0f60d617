import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdir, open, readFile, rename, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { openRedis, waitForRedis } from "./connection.ts";
import { MathllmError } from "./errors.ts";
import { isAlive, ownIdentity, type ProcessIdentity, startTicksOf } from "./process-identity.ts";
import { findRedisBinary, libraryEnv, type RedisBinary } from "./redis-binary.ts";

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
const RESTART_MS = 200;
const LOCK_POLL_MS = 50;
const LOG_LINES = 8;

const urlOf = ({ port, password }: Pick<Instance, "port" | "password">) => `redis://:${password}@127.0.0.1:${port}`;

/** Starts or joins the server of this data directory. Throws `redis-binary-missing`, or `redis-unavailable` with its last log lines. */
export async function startEmbeddedRedis(options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  const folder = path.join(options.dataDir, "redis");
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new MathllmError(
      "redis-unavailable",
      `Expected to be able to write ${folder}; ${(error as Error).message}. Set DATA_DIR to a folder of yours.`,
    );
  }
  const unlock = await lock(path.join(folder, "starting.lock"));
  try {
    const running = await readInstance(folder);
    if (running !== undefined && isAlive(running.server)) return await join(folder, running);
    const binary = await findRedisBinary({ env: options.env ?? process.env, log: options.log ?? (() => {}) });
    return await startNew(folder, binary, options);
  } finally {
    await unlock();
  }
}

async function join(folder: string, running: Instance): Promise<EmbeddedRedis> {
  await answering(urlOf(running), folder);
  const kept = isAlive(running.keeper);
  const instance = kept ? running : { ...running, keeper: ownIdentity() };
  if (!kept) await writeInstance(folder, instance);
  return handleOf(instance, kept, async () => {
    process.kill(instance.server.pid, "SIGTERM");
    const giveUpAt = Date.now() + STOP_TIMEOUT_MS;
    while (isAlive(instance.server)) {
      if (Date.now() > giveUpAt) process.kill(instance.server.pid, "SIGKILL");
      await delay(LOCK_POLL_MS);
    }
  });
}

function handleOf(instance: Instance, joined: boolean, end: () => Promise<void>): EmbeddedRedis {
  return {
    url: urlOf(instance),
    pid: instance.server.pid,
    joined,
    stop: async () => (joined || !isAlive(instance.server) ? undefined : end()),
  };
}

async function startNew(folder: string, binary: RedisBinary, options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  const password = randomBytes(24).toString("hex");
  for (let tries = 1; ; tries++) {
    const port = await freePort();
    await writePrivate(path.join(folder, "redis.conf"), configOf(folder, port, password, options.appendfsync));
    const server = new RedisServer(folder, binary, { port, password }, options);
    try {
      await server.start();
      return server;
    } catch (error) {
      if (tries < PORT_TRIES && /address already in use/i.test((error as Error).message)) continue;
      throw error;
    }
  }
}

/** The server as its keeper's child. One that dies by itself is started again on the same port and data, so that clients find it again. */
class RedisServer implements EmbeddedRedis {
  readonly joined = false;
  readonly url: string;
  readonly #folder: string;
  readonly #binary: RedisBinary;
  readonly #address: Pick<Instance, "port" | "password">;
  readonly #options: EmbeddedRedisOptions;
  #child: ChildProcess | undefined;
  #watcher: ChildProcess | undefined;
  #restart: NodeJS.Timeout | undefined;
  #stopping = false;

  constructor(folder: string, binary: RedisBinary, address: Pick<Instance, "port" | "password">, options: EmbeddedRedisOptions) {
    this.#folder = folder;
    this.#binary = binary;
    this.#address = address;
    this.#options = options;
    this.url = urlOf(address);
  }

  get pid(): number {
    return this.#child!.pid!;
  }

  async start(): Promise<void> {
    const { path: command, libraryPath } = this.#binary;
    const child = spawn(command, [path.join(this.#folder, "redis.conf")], {
      env: libraryEnv(libraryPath),
      stdio: "ignore",
      detached: true,
      cwd: this.#folder,
    });
    this.#child = child;
    try {
      await once(child, "spawn");
      await Promise.race([answering(this.url, this.#folder), diedEarly(child, this.#folder)]);
    } catch (error) {
      child.kill("SIGKILL");
      throw error;
    }
    child.unref();
    child.once("exit", (code, signal) => {
      if (this.#stopping) return;
      this.#options.log?.(`the embedded Redis ended by itself (code ${code}, signal ${signal}) and is started again`);
      this.#startAgain();
    });
    const server: ProcessIdentity = { pid: child.pid!, startTicks: startTicksOf(child.pid!) };
    await writeInstance(this.#folder, { server, keeper: ownIdentity(), ...this.#address });
    this.#watcher?.kill("SIGKILL");
    if (this.#options.dieWithParent === true) this.#watcher = watch(server.pid);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#restart);
    this.#watcher?.kill("SIGKILL");
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.ref();
    const gone = once(child, "exit");
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
    await gone;
    clearTimeout(timer);
  }

  #startAgain(): void {
    this.#restart = setTimeout(() => {
      this.start().catch((error: Error) => {
        this.#options.log?.(error.message);
        if (!this.#stopping) this.#startAgain();
      });
    }, RESTART_MS);
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

async function diedEarly(child: ChildProcess, folder: string): Promise<never> {
  const [code, signal] = await once(child, "exit");
  throw new MathllmError(
    "redis-unavailable",
    `The embedded Redis ended at once (code ${code}, signal ${signal}). ${await lastLines(folder)}`,
  );
}

async function answering(url: string, folder: string): Promise<void> {
  const redis = openRedis(url, "worker", () => {});
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

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, "close");
  return port;
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

/** An exclusive file that names its owner: one whose owner is dead is taken over. Returns the release. */
async function lock(file: string): Promise<() => Promise<void>> {
  for (;;) {
    try {
      const handle = await open(file, "wx", 0o600);
      await handle.writeFile(JSON.stringify(ownIdentity()));
      await handle.close();
      return () => rm(file, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const owner = await lockOwner(file);
    if (owner !== undefined && !isAlive(owner)) await rm(file, { force: true });
    else await delay(LOCK_POLL_MS);
  }
}

/** undefined while its owner is still writing its name. */
async function lockOwner(file: string): Promise<ProcessIdentity | undefined> {
  try {
    return identitySchema.parse(JSON.parse(await readFile(file, "utf8")));
  } catch {
    return undefined;
  }
}
