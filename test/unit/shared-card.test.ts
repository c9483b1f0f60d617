import { mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { seededRandom } from "../../maths/seeded-random.ts";
import type { Role } from "../../queues/names.ts";
import { OPTIMUM_TABLE, playSetting, readSettings } from "../../workers/gpu/optimum-table.ts";
import { POLICIES } from "../../workers/gpu/policies.ts";
import { DEFAULT_DEADLINES_MS } from "../../workers/gpu/policy.ts";
import { gammaDraw } from "../../workers/gpu/random-times.ts";
import { recordedLengths, recordedTraffic } from "../../workers/gpu/recorded-traffic.ts";
import { settingsReport } from "../../workers/gpu/setting-reports.ts";
import { type SimulatedJob, type SimulationOptions, simulate } from "../../workers/gpu/simulator.ts";
import { swapDraw, syntheticTraffic } from "../../workers/gpu/synthetic-traffic.ts";
import { TrafficMeter } from "../../workers/gpu/traffic-meter.ts";

/** Jobs that slow each other on one card: in the simulation, in what its meter measures, and in what is read back from telemetry. */

const job = (role: Role, arrivalMs: number, serviceMs: number): SimulatedJob => ({ role, class: "normal", arrivalMs, serviceMs });
const both = (value: number): Record<Role, number> => ({ student: value, talker: value });
const play = (jobs: SimulatedJob[], over: Partial<SimulationOptions> = {}) =>
  simulate({
    jobs,
    policy: POLICIES.exhaustive,
    slots: 4,
    batchExponent: both(0.5),
    swapMs: { student: 1000, talker: 500 },
    deadlinesMs: DEFAULT_DEADLINES_MS,
    ...over,
  });

describe("by hand: four jobs at once are together twice as fast as one", () => {
  test("four alike take twice as long as one alone", () => {
    const result = play(Array.from({ length: 4 }, () => job("student", 0, 100)));
    expect(result).toMatchObject({ makespanMs: 1200, lowerBoundMs: 1200, meanWaitMs: 1000, meanEndToEndMs: 1200 });
    expect(result.gpuBusyShare).toBeCloseTo(200 / 1200, 12);
  });

  test("a job that comes later slows those that already run, and one that ends lets them go faster", () => {
    // exponent 0: they share what one had. 1000–1100 the first alone, then halves until it has its 300 at 1500; the other then needs 100 more.
    const result = play([job("student", 0, 300), job("student", 1100, 300)], { batchExponent: both(0) });
    expect(result).toMatchObject({ makespanMs: 1600, meanWaitMs: 500 });
    expect(result.models.student.meanEndToEndMs).toBeCloseTo((1500 + 500) / 2, 9);
  });

  test("each model has its own exponent", () => {
    const pair = (role: Role) => [job(role, 0, 100), job(role, 0, 100)];
    const result = play([...pair("student"), ...pair("talker")], { batchExponent: { student: 1, talker: 0 } });
    // Load 1000, students until 1100, swap until 1600, talkers share until 1800.
    expect(result.makespanMs).toBeCloseTo(1800, 9);
  });

  test("with exponent 1 it is as without", () => {
    const jobs = syntheticTraffic({
      jobs: 2000,
      serviceMs: 4000,
      serviceCv: 1,
      slots: 4,
      mix: 0.5,
      load: 0.7,
      burst: 1,
      classes: { normal: 1 },
      seed: 1,
    });
    expect(play(jobs, { batchExponent: both(1) })).toEqual(play(jobs, { batchExponent: undefined }));
  });
});

/** The mean wait and time in the system of a queue that is served at r^a / service with r running, from its stationary distribution. */
function birthAndDeath({ slots, load, serviceMs, batchExponent: a }: Record<"slots" | "load" | "serviceMs" | "batchExponent", number>) {
  const arrivals = (load * slots ** a) / serviceMs;
  let [weight, total, waiting, present] = [1, 1, 0, 0];
  for (let n = 1; n < 2000; n++) {
    weight *= (arrivals * serviceMs) / Math.min(n, slots) ** a;
    total += weight;
    waiting += weight * Math.max(n - slots, 0);
    present += weight * n;
  }
  return { waitMs: waiting / total / arrivals, endToEndMs: present / total / arrivals };
}

test.each([
  { slots: 1, load: 0.5, serviceMs: 4000, batchExponent: 1 },
  { slots: 4, load: 0.6, serviceMs: 4000, batchExponent: 1 },
  { slots: 8, load: 0.6, serviceMs: 4000, batchExponent: 0.6 },
  { slots: 4, load: 0.5, serviceMs: 800, batchExponent: 0 },
])("one model alone waits as the queue's formula says (%o)", (queue) => {
  const traffic = { ...queue, serviceCv: 1, mix: 1, burst: 1, classes: { normal: 1 } } as const;
  const jobs = syntheticTraffic({ ...traffic, jobs: 20_000, seed: 4 });
  const result = play(jobs, { slots: queue.slots, batchExponent: both(queue.batchExponent) });
  const { waitMs, endToEndMs } = birthAndDeath(queue);
  expect(Math.abs(result.meanWaitMs - waitMs) / endToEndMs).toBeLessThan(0.03);
  expect(Math.abs(result.meanEndToEndMs / endToEndMs - 1)).toBeLessThan(0.04);
});

test("a policy that wants to be asked again is, though nothing happens", () => {
  const asked: number[] = [];
  const patient = (snapshot: Parameters<typeof POLICIES.ge>[0]): ReturnType<typeof POLICIES.ge> => {
    asked.push(snapshot.now);
    const holding = snapshot.resident === "student" && snapshot.running === 0 && snapshot.queues.student.depth === 0 && snapshot.now < 5000;
    return holding ? { action: "stay", reason: "more may come", askAgainMs: 2500 } : POLICIES.exhaustive(snapshot);
  };
  const result = play([job("student", 0, 100), job("talker", 10, 50)], { policy: patient });
  expect([...new Set(asked)]).toEqual([0, 1000, 1100, 3600, 6100, 6600]);
  expect(result).toMatchObject({ makespanMs: 6650, swaps: 1 });
});

describe("the meter measures how jobs slow each other, from what a worker sees", () => {
  test.each([0, 0.43, 0.6, 1])("exponent %d", (batchExponent) => {
    const rates: Parameters<typeof POLICIES.ge>[0]["rates"][] = [];
    const jobs = syntheticTraffic({
      jobs: 4000,
      serviceMs: { student: 4000, talker: 2000 },
      serviceCv: 1,
      slots: 8,
      batchExponent,
      mix: 0.5,
      load: 0.6,
      burst: 1,
      classes: { normal: 1 },
      seed: 3,
    });
    const policy = (snapshot: Parameters<typeof POLICIES.ge>[0]) => {
      rates.push(snapshot.rates);
      return POLICIES.ge(snapshot);
    };
    simulate({
      jobs,
      policy,
      slots: 8,
      batchExponent: both(batchExponent),
      swapMs: both(10_000),
      deadlinesMs: DEFAULT_DEADLINES_MS,
    });
    const late = rates.slice(rates.length / 4);
    const mean = (value: (each: (typeof late)[number]) => number) => late.reduce((sum, each) => sum + value(each) / late.length, 0);
    expect(mean((each) => Math.abs(each.student.batchExponent! - batchExponent))).toBeLessThan(0.05);
    expect(mean((each) => Math.abs(each.talker.batchExponent! - batchExponent))).toBeLessThan(0.05);
    expect(Math.abs(mean((each) => each.student.aloneMs!) / 4000 - 1)).toBeLessThan(0.15);
    expect(Math.abs(mean((each) => each.talker.aloneMs!) / 2000 - 1)).toBeLessThan(0.15);
    expect(mean((each) => each.student.loadMs!)).toBeCloseTo(10_000, 3);
    expect(mean((each) => each.student.swapMs)).toBeGreaterThan(10_500);
    if (batchExponent < 0.7) expect(mean((each) => each.student.serviceMs / each.student.aloneMs!)).toBeGreaterThan(1.5);
  });

  test("without knowing what jobs did, they are taken not to slow each other", () => {
    const meter = new TrafficMeter(both(2));
    for (let i = 0; i < 10; i++) {
      const first = meter.picked("student", 1000 * i);
      const second = meter.picked("student", 1000 * i + 100);
      meter.served(first, 1000 * i + 500, null);
      meter.served(second, 1000 * i + 600, null);
    }
    expect(meter.rates(10_000).student).toMatchObject({ serviceMs: 500, aloneMs: 500, batchExponent: 1 });
  });
});

describe("swap times", () => {
  test.each([0.2, 1 / Math.sqrt(6), 1, 2])("have the mean and the coefficient of variation asked for: %d", (cv) => {
    const draw = gammaDraw(cv, seededRandom(1));
    const times = Array.from({ length: 20_000 }, () => draw(5000));
    const mean = times.reduce((sum, time) => sum + time, 0) / times.length;
    const variance = times.reduce((sum, time) => sum + (time - mean) ** 2, 0) / times.length;
    expect(mean / 5000).toBeCloseTo(1, 1);
    expect(Math.sqrt(variance) / mean / cv).toBeCloseTo(1, 1);
    expect(Math.min(...times)).toBeGreaterThanOrEqual(0);
  });

  test("are constant with 0, and the same seed gives the same run", () => {
    expect(swapDraw(0, 1)(700)).toBe(700);
    const [a, b, c] = [swapDraw(0.4, 1), swapDraw(0.4, 1), swapDraw(0.4, 2)];
    expect([a(700), a(700)]).toEqual([b(700), b(700)]);
    expect(c(700)).not.toBe(swapDraw(0.4, 1)(700));
    const jobs = [job("student", 0, 100), job("talker", 0, 100)];
    expect(play(jobs, { drawSwapMs: (ms) => 2 * ms }).makespanMs).toBe(2000 + 100 + 1000 + 100);
  });
});

describe("service times by model", () => {
  const traffic = { jobs: 20_000, serviceCv: 1, slots: 4, mix: 0.25, load: 0.6, burst: 1, classes: { normal: 1 }, seed: 1 } as const;

  test("have each model's mean, and together the load asked for", () => {
    const jobs = syntheticTraffic({ ...traffic, serviceMs: { student: 8000, talker: 1000 }, batchExponent: { student: 0.5, talker: 1 } });
    const of = (role: Role) => jobs.filter((each) => each.role === role).map((each) => each.serviceMs);
    const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
    expect(sum(of("student")) / of("student").length / 8000).toBeCloseTo(1, 1);
    expect(sum(of("talker")) / of("talker").length / 1000).toBeCloseTo(1, 1);
    expect((sum(of("student")) / 2 + sum(of("talker")) / 4) / jobs.at(-1)!.arrivalMs).toBeCloseTo(0.6, 1);
  });

  test("may be drawn from a list", () => {
    const jobs = syntheticTraffic({ ...traffic, serviceMs: 1, lengthsMs: { student: [100, 300], talker: [50] } });
    expect(new Set(jobs.map((each) => `${each.role} ${each.serviceMs}`))).toEqual(new Set(["student 100", "student 300", "talker 50"]));
    expect(((0.25 * 200 + 0.75 * 50) * jobs.length) / 4 / jobs.at(-1)!.arrivalMs).toBeCloseTo(0.6, 1);
  });
});

describe("files", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-simulate-"));
  });
  afterAll(() => rm(folder, { recursive: true }));
  const written = async (lines: object[]) => {
    const file = path.join(folder, `${lines.length}.jsonl`);
    await writeFile(file, lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
    return file;
  };

  test("what recorded jobs would have taken alone is told from the jobs that ran beside them", async () => {
    const ran = { kind: "job", class: "normal", outcome: "completed", queuedAt: 0 };
    const file = await written([
      { ...ran, role: "student", pickedAt: 1000, doneAt: 1400 },
      { ...ran, role: "student", pickedAt: 1000, doneAt: 1600, outcome: "failed" },
      { ...ran, role: "student", pickedAt: 1500, doneAt: 1700 },
      { ...ran, role: "talker", pickedAt: 2000, doneAt: 2100 },
    ]);
    const alone = (batchExponent: number) => recordedTraffic(file, both(batchExponent)).map((each) => each.serviceMs);
    expect(alone(1)).toEqual([400, 200, 100]);
    expect(alone(0)).toEqual([200, 150, 100]);
    expect(recordedLengths(file, both(0), 0.5)).toEqual({ student: [200, 150], talker: [100] });
  });

  test("a model without recorded jobs must not have any", async () => {
    const file = await written([
      { kind: "job", class: "normal", outcome: "completed", role: "talker", queuedAt: 0, pickedAt: 5, doneAt: 9 },
    ]);
    expect(() => recordedLengths(file, both(1), 0.5)).toThrow(/no completed job of the student/);
    expect(recordedLengths(file, both(1), 0)).toEqual({ student: [], talker: [4] });
  });

  test("a line of settings that is wrong is named", async () => {
    const right = { slots: 1, load: 0.5, mix: 0.5, serviceMs: 100, swapMs: { student: 50, talker: 70 } };
    expect(readSettings(await written([right]))).toEqual([{ ...right, serviceCv: 1, swapCv: 1 / Math.sqrt(6), batchExponent: 1 }]);
    const wrong = await written([right, { ...right, load: "much" }]);
    expect(() => readSettings(wrong)).toThrow(/line 2: .*\n.*load/);
    expect(() => readSettings(path.join(folder, "none"))).toThrow(/--against: expected a file/);
  });
});

test("each setting of a table is played and compared with the least possible", () => {
  const settings = readSettings(OPTIMUM_TABLE);
  expect(settings).toHaveLength(10);
  // One slot, where exhaustive service is the best there is; and eight, where it is far from it.
  const [first, fourth] = [settings[0]!, settings[3]!].map((setting) => playSetting(setting, POLICIES.exhaustive, 20_000, 1));
  expect(first!.ratio).toBe(first!.waitRatio);
  expect(first!.ratio).toBeGreaterThan(0.9);
  expect(first!.ratio).toBeLessThan(1.1);
  expect(fourth!.ratio).toBeGreaterThan(1.25);
  const last = playSetting(settings[9]!, POLICIES.ge, 5000, 1);
  expect(last.ratio).toBe(last.endToEndRatio);
  expect(last.endToEndRatio).toBeCloseTo(last.meanEndToEndMs / 5775, 12);
  const unknown = playSetting({ ...settings[0]!, optimalMeanWaitMs: undefined }, POLICIES.ge, 100, 1);
  expect(unknown.ratio).toBeNull();
  const text = settingsReport({ policy: "ge", jobs: 100, seeds: 1, meanRatio: 1.5, maxRatio: null }, [last, unknown]);
  expect(text).toMatch(/^ge, 1 x 100 jobs a setting: mean 1\.500 times the least possible, at most unknown times\n/);
  expect(text).toMatch(/0\.43 .* to the end │\n.*\n.* unknown +│\n/);
});
