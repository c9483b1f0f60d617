import { expect, test } from "vitest";
import { runStorm } from "../faults/storm.ts";

const JOBS = 120;

test("a short fault storm: whatever is killed or stopped, every accepted job completes once and no two models are up at once", {
  timeout: 150_000,
}, async () => {
  const report = await runStorm({
    seed: 7,
    jobs: JOBS,
    kills: { worker: 1, modelServer: 1, api: 1, redis: 1 },
    pauses: { worker: 1, modelServer: 0 },
    boundMs: 90_000,
    faultEveryMs: 3000,
    log: () => {},
  });
  expect(report.violations, `logs and telemetry: ${report.folder}`).toEqual([]);
  expect(report.completed).toBe(JOBS);
  expect(report.faults.map(({ name }) => name.replace(/-[ab]$/, "")).sort()).toEqual([
    "kill api",
    "kill model server",
    "kill redis",
    "kill worker",
    "pause worker",
  ]);
});
