import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { kneeResultSchema } from "../../producers/load/knee.ts";
import { loadSummarySchema } from "../../producers/load/summary.ts";
import { startTimedChat } from "../fakes/timed-chat-server.ts";

const main = path.join(import.meta.dirname, "../../mathllm.ts");
let folder: string;
let server: Awaited<ReturnType<typeof startTimedChat>>;

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-load-cli-"));
  server = await startTimedChat({ firstMs: 20 });
});
afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});

function start(args: string[]) {
  const child = spawn(process.execPath, [main, "load", "--target", "openai", "--url", server.url, ...args], { cwd: folder });
  const text = { stdout: "", stderr: "" };
  child.stdout.on("data", (bytes: Buffer) => {
    text.stdout += bytes;
  });
  child.stderr.on("data", (bytes: Buffer) => {
    text.stderr += bytes;
  });
  const done = once(child, "close").then(([code]) => ({ code: code as number, ...text }));
  return { child, done };
}
/** How late this process is on a busy machine is another test's matter. */
const TOLERANT = ["--tolerated-delay-ms", "60000"];
const load = (...args: string[]) => start(args).done;

test("0 when the SLO is met, with the summary alone on stdout and in its file", async () => {
  const { code, stdout, stderr } = await load(
    "--rate",
    "40",
    "--requests",
    "15",
    "--slo",
    "e2e-p95<60s",
    "-o",
    "met",
    "--json",
    ...TOLERANT,
  );
  expect([code, stderr]).toEqual([0, expect.stringContaining("sent/s")]);
  const summary = loadSummarySchema.parse(JSON.parse(stdout));
  expect(summary).toMatchObject({ slo: { met: true }, requests: { completed: 15 } });
  expect(summary.command).toContain("--slo 'e2e-p95<60s'");
  expect(JSON.parse(await readFile(path.join(folder, "met/summary.json"), "utf8"))).toEqual(summary);
});

test("3 when it is missed, and the table says which limit", async () => {
  const { code, stdout } = await load("--concurrency", "2", "--requests", "10", "--slo", "e2e-p95<5,errors<1%", "-o", "missed");
  expect(code).toBe(3);
  expect(stdout).toMatch(/SLO MISSED\n {2}missed {2}e2e-p95<5: .* ms\n {2}met {5}errors<1%: 0\.0 %/);
  expect(stdout).toMatch(/Records and summary: missed/);
});

test("3 with the reason when the run is INVALID", async () => {
  const { code, stdout } = await load("--rate", "40", "--requests", "10", "--warm-up-s", "30", "-o", "invalid");
  expect(code).toBe(3);
  expect(stdout).toMatch(/INVALID.*\n {2}no request was sent in the steady window/);
});

test("the knee is found between two rates, each run in its folder", async () => {
  const { code, stdout } = await load(
    "--find-knee",
    "20:40",
    "--requests",
    "10",
    "--slo",
    "e2e-p95<60s",
    "-o",
    "knee",
    "--json",
    ...TOLERANT,
  );
  expect(code).toBe(0);
  const { points, highestMetPerS, note } = kneeResultSchema.parse(JSON.parse(stdout));
  expect([points.map(({ ratePerS, seed }) => [ratePerS, seed]), highestMetPerS]).toEqual([
    [
      [20, 1],
      [40, 2],
    ],
    40,
  ]);
  expect(note).toMatch(/end higher/);
  await readFile(path.join(folder, "knee", points[1]!.folder!, "requests.jsonl"));
});

test("Ctrl-C: the summary is written and marked, the exit code is 1, and --resume goes on", async () => {
  const { child, done } = start(["--rate", "20", "--duration-s", "600", "--slo", "errors<1%", "-o", "stopped", ...TOLERANT]);
  const sentBefore = server.prompts.length;
  await expect.poll(() => server.prompts.length, { timeout: 20_000, interval: 10 }).toBeGreaterThan(sentBefore + 5);
  child.kill("SIGINT");
  const { code, stdout } = await done;
  expect(code).toBe(1);
  expect(stdout).toMatch(/Interrupted: 0 requests were cut off/);
  expect(stdout).toContain("mathllm load --resume -o stopped");
  const summary = loadSummarySchema.parse(JSON.parse(await readFile(path.join(folder, "stopped/summary.json"), "utf8")));
  expect(summary).toMatchObject({ interrupted: true, slo: { met: true } });
  const { code: usage, stderr } = await load("--resume", "-o", "stopped", "--rate", "5");
  expect([usage, stderr]).toEqual([2, expect.stringMatching(/no option of the plan, which run\.json in it has; came (target, )?rate/)]);
});

test("2 for wrong usage, 1 when nobody is there", async () => {
  const cases: [string[], number, RegExp][] = [
    [["--requests", "5"], 2, /Expected one of --rate, --steps, --replay and --concurrency; came none/],
    [["--rate", "5", "--requests", "5", "--slo", "speed>3"], 2, /SLO: expected limits like/],
    [["--find-knee", "1:9", "--requests", "5"], 2, /Expected --slo with --find-knee/],
    [["--rate", "5", "--requests", "5", "--url", "http://127.0.0.1:9"], 1, /ECONNREFUSED/],
  ];
  const outcomes = await Promise.all(cases.map(([args]) => load(...args)));
  for (const [i, [args, code, message]] of cases.entries()) {
    expect([args, outcomes[i]!.code, outcomes[i]!.stderr]).toEqual([args, code, expect.stringMatching(message)]);
    expect(outcomes[i]!.stderr).not.toMatch(/\n\s+at /);
  }
});
