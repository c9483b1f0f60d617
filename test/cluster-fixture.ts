import { type ChildProcess, spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { once } from "node:events";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Redis } from "ioredis";
import { KEY_PREFIX } from "../queues/names.ts";
import { findRedisBinary, libraryEnv } from "../queues/redis-binary.ts";

/** Below the range that outgoing connections take their ports from: a killed node has to get its port back. */
const PORTS = [15_000, 32_000] as const;
const SLOTS = 16_384;
const NODES = 3;
const NODE_TIMEOUT_MS = 1000;
const READY_TIMEOUT_MS = 30_000;
const POLL_MS = 20;
const PASSWORD = "cluster-secret";

/** A real Redis Cluster of its own for one test file: three nodes, no replicas, in a folder of its own. */
export interface ClusterFixture {
  /** The nodes' urls with commas between, as REDIS_URL takes them. */
  url: string;
  nodes: ClusterNode[];
  /** The node that holds all our keys. */
  holder: ClusterNode;
  dataDir: string;
  stop(): Promise<void>;
}

export async function startClusterFixture(): Promise<ClusterFixture> {
  const dataDir = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
  const ports = await freePorts(2 * NODES);
  const nodes = Array.from({ length: NODES }, (_, i) => new ClusterNode(dataDir, ports[2 * i]!, ports[2 * i + 1]!));
  const stop = async () => {
    await Promise.all(nodes.map((node) => node.kill()));
    await rm(dataDir, { recursive: true, force: true });
  };
  try {
    await Promise.all(nodes.map((node) => node.start()));
    const perNode = Math.ceil(SLOTS / NODES);
    for (const [i, node] of nodes.entries())
      await node.ask((redis) => redis.cluster("ADDSLOTSRANGE", i * perNode, Math.min((i + 1) * perNode, SLOTS) - 1));
    for (const node of nodes.slice(1)) await nodes[0]!.ask((redis) => redis.call("CLUSTER", "MEET", "127.0.0.1", node.port, node.busPort));
    await Promise.all(nodes.map((node) => node.ready()));
    const slot = await nodes[0]!.ask((redis) => redis.cluster("KEYSLOT", KEY_PREFIX));
    return { url: nodes.map((node) => node.url).join(","), nodes, holder: nodes[Math.floor(slot / perNode)]!, dataDir, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

export class ClusterNode {
  readonly port: number;
  readonly busPort: number;
  readonly url: string;
  readonly #dataDir: string;
  #server: ChildProcess | undefined;
  #watcher: ChildProcess | undefined;

  constructor(dataDir: string, port: number, busPort: number) {
    this.port = port;
    this.busPort = busPort;
    this.url = `redis://:${PASSWORD}@127.0.0.1:${port}`;
    this.#dataDir = dataDir;
  }

  /** Starts it, after a kill on the same port and data. Resolves when it answers, which is before the cluster takes it back. */
  async start(): Promise<void> {
    const folder = path.join(this.#dataDir, String(this.port));
    await mkdir(folder, { recursive: true });
    await writeFile(path.join(folder, "redis.conf"), this.#config(folder));
    const binary = await findRedisBinary({ env: process.env, log: () => {} });
    this.#server = spawn(binary.path, [path.join(folder, "redis.conf")], { stdio: "ignore", env: libraryEnv(binary.libraryPath) });
    await once(this.#server, "spawn");
    this.#watcher = watch(this.#server.pid!, this.#dataDir);
    await this.ask((redis) => redis.ping());
  }

  /** kill -9. Resolves when it is gone. */
  async kill(): Promise<void> {
    this.#watcher?.kill("SIGKILL");
    const server = this.#server;
    if (server === undefined || server.exitCode !== null || server.signalCode !== null) return;
    const exited = once(server, "exit");
    server.kill("SIGKILL");
    await exited;
  }

  /** Resolves when it knows every node and finds the cluster whole. */
  async ready(): Promise<void> {
    await this.ask(async (redis) => {
      for (const giveUpAt = Date.now() + READY_TIMEOUT_MS; ; await delay(POLL_MS)) {
        const info = await redis.cluster("INFO");
        if (info.includes("cluster_state:ok") && info.includes(`cluster_known_nodes:${NODES}`)) return;
        if (Date.now() > giveUpAt) throw new Error(`the test's cluster does not come up:\n${info}`);
      }
    });
  }

  /** Asks this node alone, over a connection of its own. */
  async ask<T>(question: (redis: Redis) => Promise<T>): Promise<T> {
    const redis = new Redis(this.url, { maxRetriesPerRequest: null, retryStrategy: () => POLL_MS });
    redis.on("error", () => {});
    try {
      return await question(redis);
    } finally {
      redis.disconnect();
    }
  }

  #config(folder: string): string {
    return `bind 127.0.0.1
port ${this.port}
cluster-port ${this.busPort}
cluster-enabled yes
cluster-node-timeout ${NODE_TIMEOUT_MS}
requirepass ${PASSWORD}
masterauth ${PASSWORD}
dir ${JSON.stringify(folder)}
logfile redis.log
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
`;
  }
}

/** A shell that waits for our end of the pipe to close, which the kernel does however we die, and clears up. */
function watch(pid: number, folder: string): ChildProcess {
  const script = 'read -r _; kill -KILL "$0"; rm -rf "$1"';
  const watcher = spawn("/bin/sh", ["-c", script, String(pid), folder], { stdio: ["pipe", "ignore", "ignore"], detached: true });
  watcher.unref();
  (watcher.stdin as unknown as net.Socket).unref();
  return watcher;
}

async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>();
  while (ports.size < count) {
    const port = randomInt(...PORTS);
    if (await isFree(port)) ports.add(port);
  }
  return [...ports];
}

async function isFree(port: number): Promise<boolean> {
  const server = net.createServer().listen(port, "127.0.0.1");
  try {
    await once(server, "listening");
  } catch {
    return false;
  }
  server.close();
  await once(server, "close");
  return true;
}
