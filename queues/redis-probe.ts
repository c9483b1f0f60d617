import { Redis } from "ioredis";
import { openRedis, waitForRedis } from "./connection.ts";
import { MathllmError } from "./errors.ts";
import { type ProcessIdentity, startTicksOf } from "./process-identity.ts";
import type { Address, RedisFolder } from "./redis-folder.ts";

const READY_TIMEOUT_MS = 30_000;
const PROBE_TIMEOUT_MS = 2000;

export const urlOf = ({ port, password }: Address) => `redis://:${password}@127.0.0.1:${port}`;

/** The process at this address, if it takes our password and its data lie in this folder; it may still be loading them. */
export async function probeServer(address: Address, folder: RedisFolder): Promise<ProcessIdentity | undefined> {
  const redis = new Redis(urlOf(address), {
    lazyConnect: true,
    enableReadyCheck: false,
    retryStrategy: null,
    maxRetriesPerRequest: 0,
    connectTimeout: PROBE_TIMEOUT_MS,
    commandTimeout: PROBE_TIMEOUT_MS,
  });
  redis.on("error", () => {});
  try {
    await redis.connect();
    const [, dir] = (await redis.config("GET", "dir")) as string[];
    const pid = Number(/^process_id:(\d+)/m.exec(await redis.info("server"))?.[1]);
    return dir === folder.path && pid > 0 ? { pid, startTicks: startTicksOf(pid) } : undefined;
  } catch {
    return undefined;
  } finally {
    redis.disconnect();
  }
}

/**
 * Resolves when the server at this address has loaded its data and answers, however long loading takes. Throws `redis-unavailable`
 * with the end of its log when it has given no sign for 30 s, or when `signal` is aborted.
 */
export async function untilAnswers(address: Address, folder: RedisFolder, signal?: AbortSignal): Promise<void> {
  while (!(await answersInTime(address, signal))) {
    if (!signal?.aborted && (await probeServer(address, folder)) !== undefined) continue;
    throw new MathllmError(
      "redis-unavailable",
      `The embedded Redis did not answer within ${READY_TIMEOUT_MS} ms. ${await folder.lastLogLines()}`,
    );
  }
}

async function answersInTime(address: Address, signal?: AbortSignal): Promise<boolean> {
  const redis = openRedis(urlOf(address), "worker", () => {});
  const giveUp = () => redis.disconnect();
  signal?.addEventListener("abort", giveUp);
  try {
    signal?.throwIfAborted();
    await waitForRedis(redis, READY_TIMEOUT_MS);
    return true;
  } catch {
    return false;
  } finally {
    signal?.removeEventListener("abort", giveUp);
    redis.disconnect();
  }
}
