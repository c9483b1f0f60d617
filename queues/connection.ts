import { setTimeout as delay } from "node:timers/promises";
import { Cluster, Redis as SingleRedis } from "ioredis";
import type { Logger } from "pino";
import { MathllmError } from "./errors.ts";
import { KEY_PREFIX } from "./names.ts";
import { splitRedisUrls } from "./redis-urls.ts";

/** A connection to Redis, be it one server or a cluster. */
export type Redis = SingleRedis | ServerCluster;

/**
 * Two profiles: a producer fails fast, so that a client hears 503 at once instead of hanging; a worker waits for Redis to
 * come back, since it holds jobs. A blocking read (BZPOPMIN) needs a connection of its own.
 */
export type ConnectionProfile = "producer" | "worker";

const RECONNECT_CAP_MS = 1000;
const SLOTS_REFRESH_MS = 5000;
const RESUBSCRIBE_MS = 100;
/** How often a producer's command is sent on to another node of a cluster, or again after 100 ms when a node is gone. */
const PRODUCER_REDIRECTIONS = 6;

const PROFILES = {
  producer: { enableOfflineQueue: false, maxRetriesPerRequest: 1, connectTimeout: 2000, commandTimeout: 5000 },
  worker: { enableOfflineQueue: true, maxRetriesPerRequest: null, connectTimeout: 5000 },
} as const;

const retryStrategy = (attempt: number) => Math.min(50 * attempt, RECONNECT_CAP_MS);

/**
 * A connection in the making: to one server, or to the cluster whose nodes' urls stand with commas between. Errors are handed to
 * `onError`: an unheard 'error' event would end the process.
 */
export function openRedis(url: string, profile: ConnectionProfile, onError: (error: Error) => void): Redis {
  const urls = splitRedisUrls(url);
  const redis = urls.length === 1 ? new Server(url, { ...PROFILES[profile], retryStrategy }) : new ServerCluster(urls, profile);
  redis.on("error", onError);
  redis.on("node error", onError);
  return redis;
}

/**
 * `disconnect` makes what waits on a connection fail. ioredis alone, told to disconnect between two attempts to connect, leaves
 * it waiting for ever.
 */
class Server extends SingleRedis {
  override disconnect(reconnect = false): void {
    if (!reconnect && this.status === "reconnecting") this.connect().catch(() => {});
    super.disconnect(reconnect);
  }
}

/** What has to be set right inside ioredis; its version is pinned. */
interface ClusterInside {
  subscriber: { onSubscriberEnd: () => void };
  handleCloseEvent(): void;
}

/** The same for a cluster. Every node is entered with the first url's credentials: of most nodes the cluster tells only the address. */
class ServerCluster extends Cluster {
  /** Host and port of every url. */
  readonly address: string;

  constructor(urls: string[], profile: ConnectionProfile) {
    const nodes = urls.map((url) => new SingleRedis(url, { lazyConnect: true }).options);
    const { username, password, tls } = nodes[0]!;
    const { enableOfflineQueue, ...nodeOptions } = PROFILES[profile];
    super(
      nodes.map(({ host, port }) => ({ host, port })),
      {
        enableOfflineQueue,
        clusterRetryStrategy: retryStrategy,
        maxRedirections: profile === "producer" ? PRODUCER_REDIRECTIONS : Number.POSITIVE_INFINITY,
        // Otherwise a node that hangs is never left, though another may have its slots by then.
        slotsRefreshInterval: SLOTS_REFRESH_MS,
        slotsRefreshTimeout: nodeOptions.connectTimeout,
        // Names are kept: certificates are made out to them, and a name that no longer resolves must spoil only its own node.
        dnsLookup: (address, callback) => callback(null, address),
        redisOptions: { ...nodeOptions, username, password, tls },
      },
    );
    this.address = nodes.map(({ host, port }) => `${host}:${port}`).join(", ");
    // A subscriber that is lost looks for another node without a pause: while all are away, for the price of a whole CPU.
    const { subscriber } = this as unknown as ClusterInside;
    const subscribeAgain = subscriber.onSubscriberEnd;
    subscriber.onSubscriberEnd = () => setTimeout(subscribeAgain, RESUBSCRIBE_MS);
    // The last nodes to go would take it from "end" back to "close", where commands are kept and never sent.
    this.once("end", () => {
      this.on("close", () => {
        this.status = "end";
      });
    });
  }

  override disconnect(reconnect = false): void {
    // Its end comes with the last node of the pool: with none there it would not come.
    const isEmpty = this.nodes().length === 0;
    super.disconnect(reconnect);
    if (isEmpty && !reconnect) (this as unknown as ClusterInside).handleCloseEvent();
  }
}

/** Host and port as they stand in REDIS_URL, without the password; of a cluster all that do. */
export function addressOf(redis: Redis): string {
  return redis instanceof ServerCluster ? redis.address : `${redis.options.host}:${redis.options.port}`;
}

/** Resolves when Redis answers; throws `redis-unavailable` with host and port, without the password, after `timeoutMs`. */
export async function waitForRedis(redis: Redis, timeoutMs: number): Promise<void> {
  let lastError = "no answer";
  const remember = (error: Error & { lastNodeError?: Error | null }) => {
    const { message } = error.lastNodeError ?? error;
    // Of the nodes that were tried in vain a cluster knows no more than this.
    if (message !== "Connection is closed.") lastError = message || String(error);
  };
  const onConnect = () => {
    if (redis instanceof ServerCluster) lastError = "its nodes answer, but not all slots are served (see CLUSTER INFO on one of them)";
  };
  redis.on("error", remember);
  redis.on("connect", onConnect);
  const giveUp = new AbortController();
  try {
    await Promise.race([
      ready(redis).then(() => redis.exists(KEY_PREFIX)),
      delay(timeoutMs, undefined, { signal: giveUp.signal }).then(() => Promise.reject(new Error(lastError))),
    ]);
  } catch (error) {
    const { message } = error as Error;
    const reason = message.startsWith("MOVED")
      ? "it is one node of a cluster, and the queues lie on another; name several nodes in REDIS_URL with commas between, or this one twice"
      : `${message.replace(/\.$/, "")}. Start it, correct REDIS_URL, or leave REDIS_URL unset to use the embedded one`;
    throw new MathllmError("redis-unavailable", `Expected a Redis server at ${addressOf(redis)}; ${reason}.`);
  } finally {
    giveUp.abort();
    redis.off("error", remember);
    redis.off("connect", onConnect);
  }
}

async function ready(redis: Redis): Promise<void> {
  if (redis.status === "ready") return;
  await new Promise<void>((resolve, reject) => {
    redis.once("ready", () => resolve());
    redis.once("end", () => reject(new Error("the connection was closed")));
  });
}

/** Whether Redis answers now. In a cluster the one node that holds our keys may be gone while the connection counts as ready. */
export async function answers(redis: Redis, withinMs: number): Promise<boolean> {
  if (redis.status !== "ready") return false;
  const asked = redis.exists(KEY_PREFIX).then(
    () => true,
    () => false,
  );
  return Promise.race([asked, delay(withinMs, false, { ref: false })]);
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
