import { constants } from "node:fs";
import { access, mkdir } from "node:fs/promises";
import net from "node:net";
import type { Config } from "../queues/config.ts";
import { addressOf, openRedis, waitForRedis } from "../queues/connection.ts";
import { ROLES, type Role } from "../queues/names.ts";
import { findRedisBinary } from "../queues/redis-binary.ts";
import { isSecretSetting, SETTING_NAMES } from "../queues/settings.ts";
import { describeUnknown, unknownSettings } from "../queues/unknown-settings.ts";
import { createEmbeddedEngine } from "./engines/embedded.ts";

export interface Check {
  name: string;
  ok: boolean;
  /** What was found; when not ok also what to do. */
  detail: string;
}

const REDIS_TIMEOUT_MS = 3000;
const MEBIBYTE = 1024 * 1024;

/** Checks everything a start needs. Starts and changes nothing but the data directory's existence and the cached Redis binary. */
export async function diagnose(config: Config): Promise<Check[]> {
  const checks: [string, () => Promise<string>][] = [
    ["node", async () => `Node ${process.versions.node}`],
    ["settings", async () => describeSettings(process.env)],
    ["DATA_DIR", () => checkDataDir(config.dataDir)],
    ["redis", () => checkRedis(config)],
    ["PORT", () => checkPort(config.host, config.port)],
    ...ROLES.map((role): [string, () => Promise<string>] => [`${role} model`, () => checkModel(config, role)]),
    ...ROLES.map((role): [string, () => Promise<string>] => [`${role} port`, () => checkPort("127.0.0.1", config.profiles[role].port)]),
  ];
  return Promise.all(
    checks.map(async ([name, check]) => {
      try {
        return { name, ok: true, detail: await check() };
      } catch (error) {
        return { name, ok: false, detail: (error as Error).message };
      }
    }),
  );
}

/** Which settings are set, and to what where that is no secret; and which names may have been meant as one. */
export function describeSettings(env: NodeJS.ProcessEnv): string {
  const set = SETTING_NAMES.filter((name) => env[name]);
  const shown = set.map((name) => (isSecretSetting(name) ? `${name} (not shown)` : `${name}=${env[name]}`));
  return [shown.join(", ") || "all are at their defaults", ...unknownSettings(env).map(describeUnknown)].join("; ");
}

async function checkDataDir(dataDir: string): Promise<string> {
  await mkdir(dataDir, { recursive: true, mode: 0o700 });
  await access(dataDir, constants.W_OK);
  return dataDir;
}

async function checkRedis(config: Config): Promise<string> {
  if (config.redisUrl === undefined) {
    const binary = await findRedisBinary({ env: process.env, log: () => {} });
    return `embedded, version ${binary.version}, ${binary.path} (${binary.source})`;
  }
  const redis = openRedis(config.redisUrl, "producer", () => {});
  try {
    await waitForRedis(redis, REDIS_TIMEOUT_MS);
    return `${addressOf(redis)} answers`;
  } finally {
    redis.disconnect();
  }
}

async function checkModel(config: Config, role: Role): Promise<string> {
  const profile = config.profiles[role];
  const { weightsBytes, contextBytes } = await createEmbeddedEngine({ dataDir: config.dataDir, log: undefined }).footprint(profile);
  const size = (bytes: number) => `${(bytes / MEBIBYTE).toFixed(1)} MiB`;
  return `${profile.model}: ${size(weightsBytes)} of weights, ${size(contextBytes)} for ${profile.maxNumSeqs} sequences`;
}

async function checkPort(host: string, port: number): Promise<string> {
  await new Promise<void>((resolve, reject) => {
    const server = net.createServer();
    server.once("error", (error) =>
      reject(new Error(`Expected ${host}:${port} to be free; ${error.message}. Stop what holds it or set another port.`)),
    );
    server.listen(port, host, () => server.close(() => resolve()));
  });
  return port === 0 ? "a free one is taken" : `${host}:${port} is free`;
}
