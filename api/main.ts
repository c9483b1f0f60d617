import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import type { Router } from "express";
import type { Logger } from "pino";
import { AnswerCache } from "../queues/answer-cache.ts";
import type { ApiDocument } from "../queues/api-document.ts";
import { ApiKeys } from "../queues/api-keys.ts";
import type { Config } from "../queues/config.ts";
import { openRedis, type Redis, redisErrorLog, waitForRedis } from "../queues/connection.ts";
import { MathllmError } from "../queues/errors.ts";
import { MetricCounts } from "../queues/metrics.ts";
import { openAnsweredQueues, type Queues } from "../queues/open-queues.ts";
import { AnswerLookup } from "./answer-lookup.ts";
import { type AppDeps, createApp } from "./app.ts";
import { Batches } from "./batches.ts";
import { GpuEventFeed } from "./gpu-event-feed.ts";
import { JobCompletions } from "./job-completions.ts";
import { JobLookup } from "./job-lookup.ts";
import { JobStories } from "./job-stories.ts";
import { KeyGate } from "./key-gate.ts";
import { pagePolicy } from "./middleware/security-headers.ts";
import { openapiDocument } from "./openapi.ts";
import { TokenFeed } from "./token-feed.ts";
import { Webhooks } from "./webhooks.ts";

const REDIS_START_TIMEOUT_MS = 5000;
/** A client that is half-way through a request when we close has this long to finish it. */
const CLOSE_GRACE_MS = 3000;

export interface ApiOptions {
  config: Config;
  redisUrl: string;
  log: Logger;
  createBoard?: (queues: Queues, view: keyof NonNullable<AppDeps["boards"]>) => Router;
  /** `policy`: the Content-Security-Policy of pages. */
  createPage?: (policy: string) => Router;
  createDocs?: (document: ApiDocument, policy: string) => Router;
  /** Of the program, for the OpenAPI document. */
  version?: string;
}

export interface RunningApi {
  url: string;
  port: number;
  /** Ends long polls with what is known now, answers what runs, then closes. */
  close(): Promise<void>;
}

/**
 * Connects, brings the keys of `API_KEYS` in, and listens. Throws `redis-unavailable`, `port-in-use`, or `invalid-configuration` for an
 * address that others can reach without a key, with nothing left open.
 */
export async function startApi({
  config,
  redisUrl,
  log,
  createBoard,
  createPage,
  createDocs,
  version = "0",
}: ApiOptions): Promise<RunningApi> {
  const onError = redisErrorLog(log);
  const connections: Redis[] = [];
  const connect = (profile: "producer" | "worker") => {
    const redis = openRedis(redisUrl, profile, onError);
    connections.push(redis);
    return redis;
  };
  const redis = connect("producer");
  const apiKeys = new ApiKeys(redis);
  const gate = new KeyGate(apiKeys, config.host, onError);
  const disconnect = () => {
    for (const connection of connections) connection.disconnect();
  };
  let queues: Queues;
  try {
    await waitForRedis(redis, REDIS_START_TIMEOUT_MS);
    for (const note of await apiKeys.seed(config.keySeeds)) log.warn(note);
    await gate.start();
    queues = await openAnsweredQueues(redis, onError, REDIS_START_TIMEOUT_MS);
  } catch (error) {
    disconnect();
    throw error;
  }
  const completions = new JobCompletions(() => connect("worker"), onError);
  const cache = new AnswerCache(redis, { ttlSeconds: config.cacheTtlSeconds, maxBytes: config.cacheMaxBytes }, onError);
  const tokens = new TokenFeed(redis, connect("worker"), onError);
  const lookup = new JobLookup(queues, config, cache);
  const stories = new JobStories({ queues, lookup, completions, tokens, onError });
  const counts = new MetricCounts(redis, onError);
  const webhooks = new Webhooks({ redis, connect: () => connect("worker"), config, lookup, completions, counts, log, onError });
  const batches = new Batches({ queues, config, cache, answers: new AnswerLookup(redis, cache), lookup, onError });
  const gpuEvents = new GpuEventFeed(connect("worker"), onError);
  const boards = createBoard && {
    local: createBoard(queues, "local"),
    read: createBoard(queues, "read"),
    admin: createBoard(queues, "admin"),
  };
  const page = createPage?.(pagePolicy());
  const document = openapiDocument(version);
  const docs = createDocs?.(document, pagePolicy());
  const server = http.createServer(
    createApp({
      batches,
      queues,
      config,
      cache,
      completions,
      stories,
      gpuEvents,
      apiKeys,
      gate,
      webhooks,
      counts,
      log,
      boards,
      page,
      docs,
      document,
    }),
  );
  // Without this a kept-alive connection whose long poll was just answered holds `close` up until its client drops it.
  server.on("request", (_request, response) =>
    response.on("close", () => {
      if (!server.listening) server.closeIdleConnections();
    }),
  );
  const close = async () => {
    const closed = server.listening ? once(server, "close") : undefined;
    server.close();
    completions.close();
    stories.close();
    gpuEvents.close();
    gate.stop();
    batches.close();
    const cut = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS);
    await closed;
    clearTimeout(cut);
    await webhooks.close();
    await cache.flush().catch(onError);
    await counts.flush();
    await queues.close();
    disconnect();
  };
  try {
    await completions.ready;
    webhooks.start();
    batches.start();
    server.listen(config.port, config.host);
    await once(server, "listening");
  } catch (error) {
    await close();
    throw listenError(error as NodeJS.ErrnoException, config);
  }
  const { port } = server.address() as AddressInfo;
  return { url: `http://${config.host.includes(":") ? `[${config.host}]` : config.host}:${port}`, port, close };
}

function listenError(error: NodeJS.ErrnoException, { host, port }: Config): Error {
  if (error.code === "EADDRINUSE")
    return new MathllmError(
      "port-in-use",
      `Port ${port} on ${host} is taken by another program. Stop it, or set PORT to a free one (0 finds one).`,
    );
  return new MathllmError(
    "invalid-configuration",
    `Expected HOST and PORT to be an address to listen at, got ${host}:${port}; ${error.message}.`,
  );
}
