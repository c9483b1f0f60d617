import { mkdir, readFile, realpath, rename, writeFile } from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { MathllmError } from "./errors.ts";
import { type FileLock, tryLockFile } from "./file-lock.ts";

/**
 * The embedded Redis' folder. Three things in it settle who may do what:
 *   starting.lock   one process at a time finds out whether to start, to join or to take over
 *   server.lock     goes into the hands of every server that is started here: while one lives, no other can be started
 *   instance.json   the address, the server and its keeper; written before a server is spawned. The address stays when both are gone,
 *                   so that whoever had joined finds the next server where the last one was
 */

const identitySchema = z.object({ pid: z.number(), startTicks: z.number().nullable() });
const instanceSchema = z.object({
  /** null between the lock's taking and the spawn, and when its keeper has ended it. */
  server: identitySchema.nullable(),
  /** null when it has left. */
  keeper: identitySchema.nullable(),
  port: z.number(),
  password: z.string(),
});
export type Instance = z.infer<typeof instanceSchema>;
export type Address = Pick<Instance, "port" | "password">;

const LOG_LINES = 8;

export class RedisFolder {
  /** Absolute, without links: as the server itself tells it. */
  readonly path: string;

  private constructor(folder: string) {
    this.path = folder;
  }

  /** Makes it, for its owner only. Throws `redis-unavailable` where it can't be made or written. */
  static async open(dataDir: string): Promise<RedisFolder> {
    const folder = path.join(dataDir, "redis");
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      return new RedisFolder(await realpath(folder));
    } catch (error) {
      throw notWritable(folder, error as Error);
    }
  }

  get config(): string {
    return path.join(this.path, "redis.conf");
  }

  /** undefined while another process is starting, joining or taking over. */
  async tryTurn(): Promise<FileLock | undefined> {
    return this.#tryLock("starting.lock");
  }

  /** undefined while a server, or a fork of one that still writes, lives on this folder's data. */
  async tryServerLock(): Promise<FileLock | undefined> {
    return this.#tryLock("server.lock");
  }

  async instance(): Promise<Instance | undefined> {
    try {
      return instanceSchema.parse(JSON.parse(await readFile(path.join(this.path, "instance.json"), "utf8")));
    } catch {
      return undefined;
    }
  }

  async writeInstance(instance: Instance): Promise<void> {
    await this.#writePrivate("instance.json", JSON.stringify(instance));
  }

  /** The password stands in a file of mode 0600: a command line can be read by every user. */
  async writeConfig({ port, password }: Address, appendfsync: string): Promise<void> {
    await this.#writePrivate(
      "redis.conf",
      `bind 127.0.0.1
port ${port}
requirepass ${password}
dir ${JSON.stringify(this.path)}
logfile ${JSON.stringify(path.join(this.path, "redis.log"))}
appendonly yes
appendfsync ${appendfsync}
aof-load-truncated yes
save ""
maxmemory-policy noeviction
daemonize no
`,
    );
  }

  /** For an error's end. */
  async lastLogLines(): Promise<string> {
    const file = path.join(this.path, "redis.log");
    const text = await readFile(file, "utf8").catch(() => "");
    return `Its log, ${file}, ends with:\n${text.trim().split("\n").slice(-LOG_LINES).join("\n")}`;
  }

  async #tryLock(name: string): Promise<FileLock | undefined> {
    try {
      return await tryLockFile(path.join(this.path, name));
    } catch (error) {
      throw error instanceof MathllmError ? error : notWritable(this.path, error as Error);
    }
  }

  async #writePrivate(name: string, text: string): Promise<void> {
    const file = path.join(this.path, name);
    await writeFile(`${file}.new`, text, { mode: 0o600 });
    await rename(`${file}.new`, file);
  }
}

function notWritable(folder: string, { message }: Error): MathllmError {
  return new MathllmError("redis-unavailable", `Expected to be able to write ${folder}; ${message}. Set DATA_DIR to a folder of yours.`);
}
