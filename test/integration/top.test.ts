import { spawn } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import readline from "node:readline";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { ApiClient } from "../../producers/submit.ts";
import { runTop } from "../../producers/top.ts";
import { gpuViewSchema } from "../../queues/gpu-view.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

let system: GpuSystem;
let running: RunningApi;

beforeAll(async () => {
  system = await startGpuSystem();
  running = await startApi({ config: system.configured({ PORT: "0" }), redisUrl: system.redis.url, log: pino({ level: "silent" }) });
  await system.startWorker();
});
afterAll(async () => {
  await running?.close();
  await system?.stop();
});

test("on a terminal it draws states and what happens, keeps to its size, and leaves the screen as it was", async () => {
  const stopped = new AbortController();
  let written = "";
  const write = (text: string) => {
    written += text;
  };
  const terminal = { size: () => ({ rows: 40, columns: 60 }), write };
  const print = () => expect.unreachable();
  const done = runTop(new ApiClient(running.url), { terminal, print, json: false, signal: stopped.signal });
  await expect.poll(() => written).toContain("q quits");
  await system.end(await system.send({ explain: true }));
  await expect.poll(() => written, { timeout: 5000 }).toMatch(/swap {7}student → talker in/);
  stopped.abort();
  await done;
  expect(written.startsWith("\x1b[?1049h")).toBe(true);
  expect(written.endsWith("\x1b[?1049l")).toBe(true);
  const lines = written
    .split("\x1b[H")
    .slice(1)
    .flatMap((frame) => frame.split("\r\n"));
  const longest = Math.max(...lines.map((line) => [...line.split("\x1b")[0]!].length));
  expect(longest).toBeLessThanOrEqual(60);
});

test.each([
  { args: [], expected: /^\d\d:\d\d:\d\d {2}.*(student|talker|no model|no GPU).*student 0 waiting, talker 0 waiting$/ },
  { args: ["--json"], expected: /^\{/ },
])("elsewhere it prints lines ($args), and ends well when it is interrupted", async ({ args, expected }) => {
  const main = path.join(import.meta.dirname, "../../mathllm.ts");
  const child = spawn(process.execPath, [main, "top", "--url", running.url, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = (await once(readline.createInterface(child.stdout), "line")) as [string];
  expect(line).toMatch(expected);
  if (args.length > 0) gpuViewSchema.parse(JSON.parse(line));
  child.kill("SIGINT");
  const [code] = await once(child, "exit");
  expect(code).toBe(0);
});
