import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { MathllmError } from "./errors.ts";
import type { FileLock } from "./file-lock.ts";
import { findFreePort } from "./free-port.ts";
import { isAlive, type ProcessIdentity } from "./process-identity.ts";
import { type Address, RedisFolder } from "./redis-folder.ts";
import { PortTakenError, RedisKeeper, type RedisKeeperOptions } from "./redis-keeper.ts";
import { probeServer, untilAnswers, urlOf } from "./redis-probe.ts";

/**
 * A private Redis of one data directory.
 *
 *   nothing ──server lock taken──► starting ──answers──► running ──stop() by its keeper──► nothing (the AOF stays)
 *      running, another process of ours comes ──► joined: the same server, which its joiner does not stop
 *      running, killed ──► its keeper starts it again on the same port and data (redis-keeper.ts)
 *      running, its keeper is killed ──► running on; the next start takes it over and is its keeper from then on
 *   nothing, the next start ──► on the same port if that is free: who had joined finds it again
 *
 * An accepted job outlives us: the server leads its own process group, and only `dieWithParent` ties its life to its keeper's.
 */

export interface EmbeddedRedisOptions {
  dataDir: string;
  /** `always`: an accepted job is on disk. `everysec`: faster, and a kill -9 can lose up to two seconds. */
  appendfsync: "always" | "everysec";
  /** Nothing of it may outlive this process, not even a kill -9 (the demo). */
  dieWithParent?: boolean;
  log?: Pick<Logger, "info" | "warn" | "error">;
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

const PORT_TRIES = 5;
/** How long a server without a living keeper, or a keeper's restart, is waited for. */
const GIVE_UP_MS = 30_000;
/** Whoever has the turn may be fetching or compiling a Redis. */
const TURN_TIMEOUT_MS = 15 * 60_000;
const POLL_MS = 100;

const QUIET: RedisKeeperOptions["log"] = { info: () => {}, warn: () => {}, error: () => {} };

/** Starts, joins or takes over the server of this data directory. Throws `redis-binary-missing`, or `redis-unavailable` with the reason. */
export async function startEmbeddedRedis(options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  const folder = await RedisFolder.open(options.dataDir);
  const beganAt = performance.now();
  let giveUpAt: number | undefined;
  for (;;) {
    const turn = await folder.tryTurn();
    if (turn !== undefined) {
      try {
        const redis = await startJoinOrTakeOver(folder, options);
        if (redis !== undefined) return redis;
      } finally {
        await turn.close();
      }
      giveUpAt ??= performance.now() + GIVE_UP_MS;
    }
    if (performance.now() > (giveUpAt ?? beganAt + TURN_TIMEOUT_MS)) throw await waitedInVain(folder);
    await delay(POLL_MS);
  }
}

/** undefined: somebody else's start is under way, and only waiting helps. */
async function startJoinOrTakeOver(folder: RedisFolder, options: EmbeddedRedisOptions): Promise<EmbeddedRedis | undefined> {
  const last = await folder.instance();
  const known = last?.server && isAlive(last.server) ? last.server : undefined;
  if (last?.keeper && isAlive(last.keeper)) return known && join(folder, last, known);
  if (last !== undefined && known !== undefined) return takeOver(folder, last, known, options);
  const lock = await folder.tryServerLock();
  if (lock !== undefined) return startNew(folder, lock, last, options).finally(() => lock.close());
  // Its keeper was killed before it could record it; or it is just ending.
  const found = last && (await probeServer(last, folder));
  return last && found && takeOver(folder, last, found, options);
}

async function join(folder: RedisFolder, address: Address, { pid }: ProcessIdentity): Promise<EmbeddedRedis> {
  await untilAnswers(address, folder);
  return { url: urlOf(address), pid, joined: true, stop: async () => {} };
}

/** Its keeper was killed: this process is its keeper from now on. */
async function takeOver(
  folder: RedisFolder,
  address: Address,
  server: ProcessIdentity,
  options: EmbeddedRedisOptions,
): Promise<EmbeddedRedis> {
  const keeper = new RedisKeeper(folder, address, keeperOptions(options));
  try {
    await keeper.adopt(server);
    return keeper;
  } catch (error) {
    await keeper.stop();
    throw error;
  }
}

/** `last`: the address of the folder's former server. */
async function startNew(
  folder: RedisFolder,
  lock: FileLock,
  last: Address | undefined,
  options: EmbeddedRedisOptions,
): Promise<EmbeddedRedis> {
  for (let tries = 1; ; tries++) {
    const address = tries === 1 && last !== undefined ? last : { port: await findFreePort(), password: randomBytes(24).toString("hex") };
    await folder.writeConfig(address, options.appendfsync);
    const keeper = new RedisKeeper(folder, address, keeperOptions(options));
    try {
      await keeper.start(lock);
      return keeper;
    } catch (error) {
      await keeper.stop();
      if (tries === PORT_TRIES || !(error instanceof PortTakenError)) throw error;
    }
  }
}

function keeperOptions({ dieWithParent, log = QUIET, env = process.env }: EmbeddedRedisOptions): RedisKeeperOptions {
  return { dieWithParent, log, env };
}

async function waitedInVain(folder: RedisFolder): Promise<MathllmError> {
  const last = await folder.instance();
  const why =
    last?.keeper && isAlive(last.keeper)
      ? `Process ${last.keeper.pid} keeps the embedded Redis of ${folder.path} and has not started it again (it may be stopped, or starting one). End it, and start again.`
      : `A Redis server that can't be reached has ${folder.path}/server.lock open (fuser tells its process id). End it, or set DATA_DIR to another folder.`;
  return new MathllmError("redis-unavailable", `${why} ${await folder.lastLogLines()}`);
}
