import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { startRedisFixture } from "../redis-fixture.ts";
import { assault, holdUp } from "./assault.ts";
import { startStandIns } from "./stand-ins.ts";

/** `npm run test:hostile [-- --requests 10000 --seed 1]`: the whole suite against an API process of its own, with keys and without. */
const { values } = parseArgs({ options: { requests: { type: "string", default: "10000" }, seed: { type: "string", default: "1" } } });
const KEY = "hostile-admin-key-12345";
const MAX_GROWTH_BYTES = 200 * 1_048_576;
const SLOW_CONNECTIONS = 300;

const memoryOf = (pid: number, field: "VmRSS" | "VmHWM") =>
  Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) * 1024;
const mebibytes = (bytes: number) => `${(bytes / 1_048_576).toFixed(0)} MiB`;

async function startApi(redisUrl: string, env: Record<string, string>): Promise<{ child: ChildProcess; port: number; errors: string[] }> {
  const child = spawn(process.execPath, [path.join(import.meta.dirname, "../../mathllm.ts"), "api"], {
    env: { ...process.env, REDIS_URL: redisUrl, PORT: "0", LOG_LEVEL: "error", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const errors: string[] = [];
  child.stderr!.on("data", (chunk: Buffer) => errors.push(chunk.toString()));
  const [line] = (await once(child.stdout!, "data")) as [Buffer];
  return { child, port: Number(/:(\d+)/.exec(line.toString().replace("http:", ""))![1]), errors };
}

async function oneRun(withKeys: boolean): Promise<boolean> {
  const redis = await startRedisFixture();
  const stopStandIns = await startStandIns(redis);
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-hostile-"));
  const secret = `whsec_${Buffer.alloc(32, 1).toString("base64")}`;
  const api = await startApi(redis.url, {
    DATA_DIR: folder,
    WEBHOOK_SECRET: secret,
    ...(withKeys ? { API_KEYS: `ops:admin:${KEY}` } : {}),
  });
  const { child, port } = api;
  const options = { port, concurrency: 16, authorization: withKeys ? `Bearer ${KEY}` : null };
  try {
    // Code is compiled and pools are filled before memory is looked at.
    await assault({ ...options, seed: Number(values.seed) + 1, requests: 500 });
    const before = memoryOf(child.pid!, "VmRSS");
    const startedAt = performance.now();
    const result = await assault({ ...options, seed: Number(values.seed), requests: Number(values.requests) });
    const seconds = (performance.now() - startedAt) / 1000;
    const release = await holdUp(
      port,
      SLOW_CONNECTIONS,
      `POST /solve HTTP/1.1\r\nHost: localhost\r\n${withKeys ? `Authorization: Bearer ${KEY}\r\n` : ""}Content-Type: application/json\r\nContent-Length: 200000\r\n\r\n{"problem":"`,
    );
    const beside = await assault({ ...options, seed: Number(values.seed) + 2, requests: 500 });
    release();
    const after = memoryOf(child.pid!, "VmRSS");
    const peak = memoryOf(child.pid!, "VmHWM");
    const violations = [...result.violations, ...beside.violations];
    if (child.exitCode !== null || child.signalCode !== null) violations.push(`the API ended: ${child.exitCode ?? child.signalCode}`);
    if (after - before > MAX_GROWTH_BYTES) violations.push(`its memory grew from ${mebibytes(before)} to ${mebibytes(after)}`);
    const healthy = await fetch(`http://127.0.0.1:${port}/healthz`).then(
      (response) => response.status,
      () => null,
    );
    if (healthy !== 200) violations.push(`/healthz answers ${healthy}`);
    const logged = api.errors.join("");
    if (/unexpected error|Unhandled|uncaught/i.test(logged)) violations.push(`the log says: ${logged.slice(0, 2000)}`);
    const { requests, statuses } = result;
    console.log(
      JSON.stringify({
        keys: withKeys,
        seed: Number(values.seed),
        requests,
        seconds: Math.round(seconds),
        statuses,
        besideSlowConnections: { slow: SLOW_CONNECTIONS, requests: beside.requests, statuses: beside.statuses },
        memory: { before: mebibytes(before), after: mebibytes(after), peak: mebibytes(peak) },
        violations,
      }),
    );
    return violations.length === 0;
  } finally {
    child.kill("SIGKILL");
    await stopStandIns();
    await redis.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

const passed = [await oneRun(true), await oneRun(false)].every(Boolean);
process.exit(passed ? 0 : 1);
