import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { Redis } from "ioredis";
import { type EmbeddedRedis, startEmbeddedRedis } from "../queues/embedded-redis.ts";

/** A real Redis of its own for one test file, in a folder of its own. */
export interface RedisFixture {
  url: string;
  server: EmbeddedRedis;
  dataDir: string;
  /** Another connection; all are closed by `stop`. */
  connect(): Redis;
  stop(): Promise<void>;
}

export async function startRedisFixture(): Promise<RedisFixture> {
  const dataDir = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
  const server = await startEmbeddedRedis({ dataDir, appendfsync: "always", dieWithParent: true });
  const connections: Redis[] = [];
  return {
    url: server.url,
    server,
    dataDir,
    connect: () => {
      const redis = new Redis(server.url, { maxRetriesPerRequest: null });
      redis.on("error", () => {});
      connections.push(redis);
      return redis;
    },
    stop: async () => {
      for (const redis of connections) redis.disconnect();
      await server.stop();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}
