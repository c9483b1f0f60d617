import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { PerformanceRun, type PerformanceRunOptions } from "../../producers/perf/performance-run.ts";

/** A performance run of real systems in child processes, on the shipped models, with a handful of requests. */

const SIZES = {
  singleRequests: 4,
  batchRequests: 8,
  longPromptRequests: 2,
  warmUpRequests: 1,
  kneeStepS: 1,
  sustainedS: 2,
  guardrailS: 2,
  cachedS: 2,
  policyS: 2,
};

let outDir: string;
beforeAll(async () => {
  outDir = await mkdtemp(path.join(os.tmpdir(), "mathllm-perf-"));
});
afterAll(() => rm(outDir, { recursive: true, force: true }));

const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(STUDENT|TALKER|GPU)_/.test(name)));

function performanceRun(options: Partial<PerformanceRunOptions>) {
  const said: string[] = [];
  const run = new PerformanceRun({
    main: path.join(import.meta.dirname, "../../mathllm.ts"),
    outDir,
    phases: ["A"],
    quick: true,
    sizes: SIZES,
    seed: 1,
    choices: { maxNumSeqs: [8], talkerB: {} },
    env,
    command: "mathllm perf A",
    version: "0",
    say: (line) => said.push(line),
    signal: new AbortController().signal,
    ...options,
  });
  return { run, said };
}

/** Systems of ours that still run. */
function leftBehind(): string[] {
  const children = readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, "utf8");
  return children
    .trim()
    .split(" ")
    .filter((pid) => pid !== "" && readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("mathllm.ts"));
}

test("a phase is measured on a system of its own, and gone on with instead of measured again", async () => {
  const first = performanceRun({});
  const report = await first.run.run();
  const [a, b] = report.phases;
  expect(a).toMatchObject({ id: "A", status: "measured" });
  expect(b).toMatchObject({ id: "B", status: "skipped", reason: "It was not asked for." });
  expect(a!.runs.map(({ id }) => id)).toEqual(["stated-1", "stated-2", "stated-3", "stated-4", "natural-1", "natural-4", "long"]);
  for (const { requests, successRate, oomCount, lostJobs, latencies } of a!.runs) {
    expect({ successRate, oomCount, lostJobs }).toEqual({ successRate: 1, oomCount: 0, lostJobs: 0 });
    expect(requests.completed).toBeGreaterThan(0);
    expect(latencies.e2eMs!.p95.value).toBeGreaterThan(0);
  }
  expect(report.versions.engines).toMatchObject([{ role: "student", engine: "embedded" }, { role: "talker" }]);
  expect(report.limits[0]!.finding).toMatch(/context is 512 tokens, so prompts of 256 tokens/);
  expect(report.graphs.waterfall.length).toBe(2);
  expect(report.finalConfiguration?.changes).toEqual([]);
  expect(leftBehind()).toEqual([]);

  const second = performanceRun({});
  const again = await second.run.run();
  expect(second.said[0]).toBe("phase A: measured before");
  expect(again.phases[0]).toEqual(a);
  expect(again.run).toMatchObject({ id: report.run.id, resumed: 1 });
}, 120_000);

test("a model that can't be loaded fails the phase with the reason, and nothing stays up", async () => {
  const folder = path.join(outDir, "broken");
  const { run } = performanceRun({ outDir: folder, env: { ...env, STUDENT_MODEL: "/nowhere.gguf" } });
  const report = await run.run();
  expect(report.phases[0]).toMatchObject({
    status: "failed",
    reason: expect.stringMatching(/student could not be loaded.*nowhere\.gguf/s),
  });
  expect(report.grade.points).toBe(0);
  expect(leftBehind()).toEqual([]);
}, 120_000);
