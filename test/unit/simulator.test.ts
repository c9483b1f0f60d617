import { expect, test } from "vitest";
import { DEFAULT_DEADLINES_MS, POLICIES } from "../../workers/gpu/policy.ts";
import { type SimulatedJob, simulate } from "../../workers/gpu/simulator.ts";
import { syntheticTraffic, type TrafficOptions } from "../../workers/gpu/synthetic-traffic.ts";

const traffic: TrafficOptions = {
  jobs: 20_000,
  serviceMs: 4000,
  serviceCv: 1,
  slots: 1,
  mix: 0.5,
  load: 0.7,
  burst: 1,
  class: "normal",
  seed: 1,
};
const run = (policy: keyof typeof POLICIES, over: Partial<TrafficOptions> = {}, swapMs = 10_000) => {
  const given = { ...traffic, ...over };
  return simulate({
    jobs: syntheticTraffic(given),
    policy: POLICIES[policy],
    slots: given.slots,
    swapMs: { student: swapMs, talker: swapMs },
    deadlinesMs: DEFAULT_DEADLINES_MS,
  });
};

test("by hand: two models, one slot", () => {
  const job = (role: SimulatedJob["role"], arrivalMs: number, serviceMs: number): SimulatedJob => ({
    role,
    class: "normal",
    arrivalMs,
    serviceMs,
  });
  const jobs = [job("student", 0, 100), job("talker", 10, 50), job("student", 20, 100)];
  const result = simulate({
    jobs,
    policy: POLICIES.exhaustive,
    slots: 1,
    swapMs: { student: 1000, talker: 500 },
    deadlinesMs: DEFAULT_DEADLINES_MS,
  });
  // Load 1000, student 1000–1100, the other student 1100–1200, swap to 1700, talker 1700–1750.
  expect(result).toMatchObject({
    swaps: 1,
    makespanMs: 1750,
    lowerBoundMs: 1750,
    maxWaitMs: 1690,
    models: { student: { maxWaitMs: 1080 } },
  });
  const fifo = simulate({
    jobs,
    policy: POLICIES.fifo,
    slots: 1,
    swapMs: { student: 1000, talker: 500 },
    deadlinesMs: DEFAULT_DEADLINES_MS,
  });
  expect(fifo).toMatchObject({ swaps: 2, makespanMs: 2750 });
});

test("the same seed gives the same run, another seed another", () => {
  expect(run("ge", { jobs: 500 })).toEqual(run("ge", { jobs: 500 }));
  expect(run("ge", { jobs: 500, seed: 2 })).not.toEqual(run("ge", { jobs: 500 }));
});

test.each([1, 2, 3])("at ρ = 0.7 ge is stable with few swaps and nearly exhaustive's waits, fifo diverges (seed %i)", (seed) => {
  const [ge, exhaustive, fifo] = [run("ge", { seed }), run("exhaustive", { seed }), run("fifo", { seed })];
  expect(ge.swapsPer100Jobs).toBeLessThan(17);
  expect(ge.meanWaitMs).toBeLessThan(1.25 * exhaustive.meanWaitMs);
  expect(ge.gpuBusyShare).toBeGreaterThan(0.68);
  expect(fifo.meanWaitMs).toBeGreaterThan(100 * ge.meanWaitMs);
});

test("with one model overloaded and the other sparse, ge bounds the sparse one's wait where exhaustive lets it wait for hours", () => {
  const over = { jobs: 5000, mix: 0.97, load: 1.2 };
  expect(run("ge", over).models.talker.maxWaitMs).toBeLessThan(DEFAULT_DEADLINES_MS.normal + 60_000);
  expect(run("exhaustive", over).models.talker.maxWaitMs).toBeGreaterThan(3_600_000);
});

test("a backlog on eight slots ends near the lower bound", () => {
  const result = run("ge", { jobs: 2000, slots: 8, load: null, serviceMs: 1000 }, 2000);
  expect(result.makespanMs / result.lowerBoundMs).toBeLessThan(1.03);
});
