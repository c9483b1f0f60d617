import { Redis, type RedisOptions } from "ioredis";
import type { Logger } from "pino";
import { MathllmError } from "./errors.ts";

/**
 * Two profiles: a producer fails fast, so that a client hears 503 at once instead of hanging; a worker waits for Redis to
 * come back, since it holds jobs. A blocking read (BZPOPMIN) needs a connection of its own.
 */
export type ConnectionProfile = "producer" | "worker";

const RECONNECT_CAP_MS = 1000;

export function connectionOptions(profile: ConnectionProfile): RedisOptions {
  const retryStrategy = (attempt: number) => Math.min(50 * attempt, RECONNECT_CAP_MS);
  return profile === "producer"
    ? { enableOfflineQueue: false, maxRetriesPerRequest: 1, connectTimeout: 2000, commandTimeout: 5000, retryStrategy }
    : { enableOfflineQueue: true, maxRetriesPerRequest: null, connectTimeout: 5000, retryStrategy };
}

/** A connection in the making. Errors are handed to `onError`: an unheard 'error' event would end the process. */
export function openRedis(url: string, profile: ConnectionProfile, onError: (error: Error) => void): Redis {
  const redis = new Redis(url, connectionOptions(profile));
  redis.on("error", onError);
  return redis;
}

/** Resolves when Redis answers; throws `redis-unavailable` with host and port, without the password, after `timeoutMs`. */
export async function waitForRedis(redis: Redis, timeoutMs: number): Promise<void> {
  if (redis.status === "ready") return;
  const { host, port } = redis.options;
  let lastError = "no answer";
  const remember = (error: Error) => {
    lastError = error.message || String(error);
  };
  redis.on("error", remember);
  try {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(lastError)), timeoutMs);
      const settle = (then: () => void) => () => {
        clearTimeout(timer);
        then();
      };
      redis.once("ready", settle(resolve));
      redis.once(
        "end",
        settle(() => reject(new Error("the connection was closed"))),
      );
    });
  } catch {
    throw new MathllmError(
      "redis-unavailable",
      `Expected a Redis server at ${host}:${port}; ${lastError}. Start it, correct REDIS_URL, or leave REDIS_URL unset to use the embedded one.`,
    );
  } finally {
    redis.off("error", remember);
  }
}

const ERROR_LOG_MS = 10_000;

/** Logs trouble with Redis at most every ten seconds: while it is away every connection of a process repeats the same. */
export function redisErrorLog(log: Logger): (error: Error) => void {
  let loggedAt = Number.NEGATIVE_INFINITY;
  return (error) => {
    if (performance.now() - loggedAt < ERROR_LOG_MS) return;
    loggedAt = performance.now();
    log.warn({ reason: error.message || String(error) }, "trouble with Redis; trying again");
  };
}
