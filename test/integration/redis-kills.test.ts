import { expect, test } from "vitest";
import { runRedisKills } from "../faults/redis-kills.ts";

test("the embedded Redis killed in every way, its keeper stopped or killed beside it: one server at a time, nothing accepted is lost", {
  timeout: 240_000,
}, async () => {
  const report = await runRedisKills({ seed: 3, kills: 8, jobs: 40, log: () => {} });
  expect(report.violations, `logs and data: ${report.folder}`).toEqual([]);
  expect(report.completed).toBe(40);
  expect(report.sampler.maxLive).toBe(1);
});
