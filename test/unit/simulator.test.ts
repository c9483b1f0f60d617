import { appendFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { PriorityClass, Role } from "../../queues/names.ts";
import { POLICIES } from "../../workers/gpu/policies.ts";
import { DEFAULT_DEADLINES_MS } from "../../workers/gpu/policy.ts";
import { recordedTraffic } from "../../workers/gpu/recorded-traffic.ts";
import { simulationReport } from "../../workers/gpu/simulation-report.ts";
import { type SimulatedJob, type SimulationOptions, type SimulationResult, simulate } from "../../workers/gpu/simulator.ts";
import { parseClassMix, syntheticTraffic, type TrafficOptions } from "../../workers/gpu/synthetic-traffic.ts";
import { Telemetry } from "../../workers/gpu/telemetry.ts";

const D_MS = DEFAULT_DEADLINES_MS.normal;
const traffic: TrafficOptions = {
  jobs: 20_000,
  serviceMs: 4000,
  serviceCv: 1,
  slots: 1,
  mix: 0.5,
  load: 0.7,
  burst: 1,
  classes: { normal: 1 },
  seed: 1,
};
type Given = Partial<TrafficOptions> & { swapMs?: number; admission?: boolean };
const run = (policy: keyof typeof POLICIES, { swapMs = 10_000, admission, ...over }: Given = {}): SimulationResult => {
  const given = { ...traffic, ...over };
  return simulate({
    jobs: syntheticTraffic(given),
    policy: POLICIES[policy],
    slots: given.slots,
    swapMs: { student: swapMs, talker: swapMs },
    deadlinesMs: DEFAULT_DEADLINES_MS,
    admission,
  });
};
const job = (role: Role, arrivalMs: number, serviceMs: number, name: PriorityClass = "normal"): SimulatedJob => ({
  role,
  class: name,
  arrivalMs,
  serviceMs,
});
const play = (policy: keyof typeof POLICIES, jobs: SimulatedJob[], over: Partial<SimulationOptions> = {}) =>
  simulate({
    jobs,
    policy: POLICIES[policy],
    slots: 1,
    swapMs: { student: 1000, talker: 500 },
    deadlinesMs: DEFAULT_DEADLINES_MS,
    ...over,
  });

describe("by hand", () => {
  const jobs = [job("student", 0, 100), job("talker", 10, 50), job("student", 20, 100)];

  test("exhaustive: load 1000, student 1000–1100, the other student 1100–1200, swap to 1700, talker 1700–1750", () => {
    expect(play("exhaustive", jobs)).toMatchObject({
      jobs: 3,
      shed: 0,
      swaps: 1,
      makespanMs: 1750,
      lowerBoundMs: 1750,
      meanWaitMs: (1000 + 1080 + 1690) / 3,
      p50WaitMs: 1080,
      maxWaitMs: 1690,
      models: { student: { jobs: 2, maxWaitMs: 1080 }, talker: { jobs: 1, maxWaitMs: 1690 } },
      classes: { normal: { jobs: 3 } },
    });
  });

  test("fifo takes them as they came", () => expect(play("fifo", jobs)).toMatchObject({ swaps: 2, makespanMs: 2750 }));

  test("two slots: the swap waits until both are free, and a job that comes meanwhile withdraws it", () => {
    const two = [job("student", 0, 100), job("student", 0, 300), job("talker", 0, 50)];
    // Load 1000, students 1000–1100 and 1000–1300, swap to 1800, talker 1800–1850.
    expect(play("exhaustive", two, { slots: 2 })).toMatchObject({ swaps: 1, makespanMs: 1850, models: { talker: { maxWaitMs: 1800 } } });
    // One more student at 1200 is taken at once and runs until 1400.
    expect(play("exhaustive", [...two, job("student", 1200, 200)], { slots: 2 })).toMatchObject({
      swaps: 1,
      makespanMs: 1950,
      models: { student: { maxWaitMs: 1000 }, talker: { maxWaitMs: 1900 } },
    });
  });

  test("within a queue the more urgent class goes first", () => {
    const mixed = [job("student", 0, 100, "batch"), job("student", 0, 100, "normal"), job("student", 50, 100, "interactive")];
    expect(play("ge", mixed).classes).toMatchObject({
      interactive: { maxWaitMs: 950 },
      normal: { maxWaitMs: 1100 },
      batch: { maxWaitMs: 1200 },
    });
  });

  test("one job", () =>
    expect(play("ge", [job("talker", 700, 50)])).toMatchObject({
      swaps: 0,
      makespanMs: 1250,
      estimateError: null,
      models: { student: { jobs: 0 } },
    }));

  test("estimates are compared with what came", () => {
    // The first two have nothing to go by; at 2000 the swap (1000) and the service (100) are known.
    const later = [job("student", 0, 100), job("student", 0, 100), job("student", 2000, 100), job("student", 2000, 100)];
    const { estimateError } = play("ge", later);
    // The third is taken at once, as estimated. The fourth is told 100 ms, and waits for them.
    expect(estimateError).toEqual({ jobs: 2, meanAbsMs: 0, p50AbsMs: 0, p95AbsMs: 0, meanMs: 0 });
    const slower = [...later, job("student", 3000, 300), job("student", 3000, 100)];
    expect(play("ge", slower).estimateError).toEqual({ jobs: 4, meanAbsMs: 50, p50AbsMs: 0, p95AbsMs: 200, meanMs: -50 });
  });
});

test("the same seed gives the same run, another seed another", () => {
  expect(run("ge", { jobs: 500 })).toEqual(run("ge", { jobs: 500 }));
  expect(run("ge", { jobs: 500, seed: 2 })).not.toEqual(run("ge", { jobs: 500 }));
});

describe("what ge has to hold", () => {
  test.each([1, 2, 3])("at ρ = 0.7 few swaps and nearly exhaustive's waits, where fifo diverges (seed %i)", (seed) => {
    const [ge, exhaustive, fifo] = [run("ge", { seed }), run("exhaustive", { seed }), run("fifo", { seed })];
    expect(ge.swapsPer100Jobs).toBeLessThanOrEqual(17);
    expect(ge.meanWaitMs).toBeLessThanOrEqual(1.25 * exhaustive.meanWaitMs);
    expect(ge.gpuBusyShare).toBeGreaterThan(0.68);
    expect(fifo.meanWaitMs).toBeGreaterThan(100 * ge.meanWaitMs);
  });

  // One visit of the overloaded model is K_hi = 69 jobs of 4 s.
  test.each([
    { mix: 0.97, load: 1.2, seed: 1 },
    { mix: 0.97, load: 1.2, seed: 2 },
    { mix: 0.9, load: 1.05, seed: 1 },
    { mix: 0.9, load: 1.05, seed: 2 },
  ])("one model overloaded, the other sparse: the sparse one waits for D and a visit at most (%o)", (over) => {
    expect(run("ge", over).models.talker.maxWaitMs).toBeLessThan(D_MS + 69 * 4000);
    expect(run("exhaustive", over).models.talker.maxWaitMs).toBeGreaterThan(3_600_000);
  });

  test.each([1, 2])("at ρ = 0.9 on eight slots nobody waits for longer than D and a minute (seed %i)", (seed) => {
    expect(run("ge", { slots: 8, load: 0.9, seed }).maxWaitMs).toBeLessThan(D_MS + 60_000);
  });

  test("a backlog on eight slots ends within 3 % of the bound with one swap, whatever the jobs", () => {
    for (const serviceMs of [250, 1000, 4000, 20_000]) {
      for (const serviceCv of [0, 0.5, 1]) {
        for (const seed of [1, 2, 3]) {
          const result = run("ge", { jobs: 2000, slots: 8, load: null, serviceMs, serviceCv, seed, swapMs: 2000 });
          expect(result.makespanMs / result.lowerBoundMs, `${serviceMs} ms, cv ${serviceCv}, seed ${seed}`).toBeLessThan(1.03);
          expect(result.swaps).toBe(1);
        }
      }
    }
  });

  test.each([1, 2])("batch jobs get through a permanent overload of interactive ones in their own queue (seed %i)", (seed) => {
    const { classes } = run("ge", { mix: 1, load: 1.2, classes: { interactive: 0.9, batch: 0.1 }, seed });
    expect(classes.batch!.jobs).toBeGreaterThan(1900);
    expect(classes.batch!.maxWaitMs).toBeLessThan(1.1 * DEFAULT_DEADLINES_MS.batch);
    expect(classes.interactive!.maxWaitMs).toBeGreaterThan(2 * DEFAULT_DEADLINES_MS.batch);
  });

  test("an interactive job of the other model comes in at its own D although 10,000 batch jobs wait at the resident one", () => {
    const batch = Array.from({ length: 10_000 }, () => job("student", 0, 4000, "batch"));
    const urgent = Array.from({ length: 60 }, (_, i) => job("talker", 500_000 * (i + 1), 4000, "interactive"));
    const result = play("ge", [...batch, ...urgent], { swapMs: { student: 10_000, talker: 10_000 } });
    // D is held at 7 swaps of 12 s: 10 s there, and 14 s back, since the only job there ends in the drain.
    expect(result.classes.interactive!.maxWaitMs).toBeLessThanOrEqual(84_000);
    expect(result.swaps).toBe(120);
    expect(play("exhaustive", [...batch, ...urgent]).classes.interactive!.maxWaitMs).toBeGreaterThan(36_000_000);
  });
});

describe("admission", () => {
  test("is off unless asked for, and sheds nearly nothing at ρ = 0.7", () => {
    expect(run("ge", { load: 1.5, jobs: 2000 }).shed).toBe(0);
    expect(run("ge", { admission: true }).shed).toBeLessThan(20);
  });

  // Without it these waits grow as long as the overload lasts: see the last expectation.
  test.each([
    { load: 1.2, slots: 1, mix: 0.5 },
    { load: 1.5, slots: 1, mix: 0.5 },
    { load: 1.5, slots: 1, mix: 0.9 },
    { load: 3, slots: 1, mix: 0.5 },
    { load: 1.2, slots: 8, mix: 0.5 },
    { load: 1.5, slots: 8, mix: 0.5 },
    { load: 1.5, slots: 8, mix: 0.9 },
    { load: 3, slots: 8, mix: 0.5 },
  ])("in overload the accepted jobs' waits stay near D, the GPU stays busy and no model is shut out (%o)", (over) => {
    const result = run("ge", { ...over, admission: true });
    expect(result.jobs + result.shed).toBe(20_000);
    expect(result.shed / 20_000).toBeGreaterThan(0.8 * (1 - 1 / over.load));
    expect(result.meanWaitMs).toBeLessThan(D_MS * 1.1);
    expect(result.p95WaitMs).toBeLessThan(D_MS * 1.8);
    expect(result.p99WaitMs).toBeLessThan(D_MS * 2.2);
    expect(result.maxWaitMs).toBeLessThan(D_MS * 3.5);
    expect(result.gpuBusyShare).toBeGreaterThan(0.88);
    const jobs = syntheticTraffic({ ...traffic, ...over });
    const talkers = jobs.filter(({ role }) => role === "talker").length;
    // A sparse model's jobs are accepted like any others, or rather than them.
    expect(result.models.talker.jobs / talkers).toBeGreaterThan(0.8 / over.load);
    expect(run("ge", over).p95WaitMs).toBeGreaterThan(3 * result.p95WaitMs);
  });

  test("batch jobs are never shed", () => {
    const given: Given = { load: 1.5, classes: { interactive: 0.2, normal: 0.5, batch: 0.3 }, jobs: 5000 };
    const { shed, classes } = run("ge", { ...given, admission: true });
    expect(shed).toBeGreaterThan(500);
    expect(classes.batch!.jobs).toBe(run("ge", given).classes.batch!.jobs);
    expect(classes.interactive!.jobs + classes.normal!.jobs + classes.batch!.jobs + shed).toBe(5000);
  });

  test("shed jobs are left out of all figures", () => {
    // Nothing is known of the first two; then each needs 100 s, and D for one that would be the sixth is too short.
    const jobs = [job("student", 0, 100_000), ...Array.from({ length: 6 }, () => job("student", 150_000, 100_000))];
    const result = play("ge", jobs, { admission: true });
    expect(result).toMatchObject({ jobs: 5, shed: 2, maxWaitMs: 300_000, makespanMs: 550_000, lowerBoundMs: 501_000 });
    expect(result.estimateError).toMatchObject({ jobs: 4, meanAbsMs: 0 });
  });
});

describe("synthetic traffic", () => {
  test("a mix of classes leaves arrivals, models and service times as they were", () => {
    const mixed = syntheticTraffic({ ...traffic, classes: { interactive: 0.2, normal: 0.5, batch: 0.3 } });
    const plain = syntheticTraffic(traffic);
    expect(mixed.map((each) => ({ ...each, class: "normal" }))).toEqual(plain);
    const share = (name: PriorityClass) => mixed.filter((each) => each.class === name).length / mixed.length;
    expect(share("interactive")).toBeCloseTo(0.2, 1);
    expect(share("normal")).toBeCloseTo(0.5, 1);
    expect(share("batch")).toBeCloseTo(0.3, 1);
  });

  test("load, mix, service times and bursts are as asked for", () => {
    const jobs = syntheticTraffic({ ...traffic, slots: 4, mix: 0.8, load: 0.5, burst: 10, serviceCv: 0.5 });
    const work = jobs.reduce((sum, each) => sum + each.serviceMs, 0);
    expect(work / jobs.length / 4000).toBeCloseTo(1, 1);
    expect(work / 4 / jobs.at(-1)!.arrivalMs).toBeCloseTo(0.5, 1);
    expect(jobs.filter(({ role }) => role === "student").length / jobs.length).toBeCloseTo(0.8, 1);
    expect(new Set(jobs.map((each) => each.arrivalMs)).size).toBe(jobs.length / 10);
    expect(syntheticTraffic({ ...traffic, load: null }).every((each) => each.arrivalMs === 0)).toBe(true);
    expect(new Set(syntheticTraffic({ ...traffic, serviceCv: 0 }).map((each) => each.serviceMs))).toEqual(new Set([4000]));
  });

  test.each([
    ["interactive:0.2,normal:0.5,batch:0.3", { interactive: 0.2, normal: 0.5, batch: 0.3 }],
    [" batch:1 ", { batch: 1 }],
    ["interactive:0.333,normal:0.333,batch:0.334", { interactive: 0.333, normal: 0.333, batch: 0.334 }],
    ["interactive:1,normal:0", { interactive: 1, normal: 0 }],
    ["normal:0.5", null],
    ["normal:0.5,normal:0.5", null],
    ["normal:1.5,batch:-0.5", null],
    ["urgent:1", null],
    ["normal", null],
    ["normal:", null],
    ["normal:1:2", null],
    ["normal:x", null],
    ["", null],
  ])("the mix %j", (text, mix) => expect(parseClassMix(text)).toEqual(mix));
});

describe("recorded traffic", () => {
  let folder: string;
  let file: string;
  beforeAll(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-replay-"));
    file = path.join(folder, "telemetry.jsonl");
    const telemetry = new Telemetry(file, pino({ enabled: false }));
    const ran = { jobId: "1", class: "normal", outcome: "completed", acceptedAt: 1_000_000, cached: false, retries: 0 };
    telemetry.write("sample", { residentModel: "student" });
    telemetry.write("job", {
      ...ran,
      role: "student",
      queuedAt: 1_000_500,
      pickedAt: 1_002_000,
      firstTokenAt: 1_002_100,
      doneAt: 1_002_700,
    });
    telemetry.write("swap", { from: "student", to: "talker", drainMs: 0 });
    // Recorded by when they ended, not by when they came.
    telemetry.write("job", { ...ran, role: "talker", class: "interactive", queuedAt: 1_000_000, pickedAt: 1_003_000, doneAt: 1_003_040 });
    telemetry.write("job", { ...ran, role: "student", outcome: "failed", queuedAt: 900_000, pickedAt: 900_001, doneAt: 900_002 });
    telemetry.write("job", { ...ran, role: "student", outcome: "retrying", queuedAt: 900_000, pickedAt: 900_001, doneAt: null });
    telemetry.write("job", { ...ran, role: "student", queuedAt: 900_000, pickedAt: null, doneAt: null });
    telemetry.write("job", { ...ran, role: "someone", queuedAt: 900_000, pickedAt: 900_001, doneAt: 900_002 });
    telemetry.write("job", { ...ran, role: "student", class: "someday", queuedAt: 900_000, pickedAt: 900_001, doneAt: 900_002 });
    await telemetry.close();
  });
  afterAll(() => rm(folder, { recursive: true }));

  test("has the completed jobs of a telemetry file, from 0 on, by arrival", async () => {
    const jobs = recordedTraffic(file);
    expect(jobs).toEqual([job("talker", 0, 40, "interactive"), job("student", 500, 700)]);
    expect(play("ge", jobs)).toMatchObject({ jobs: 2, swaps: 1 });
  });

  test("lines that were cut short are no records", async () => {
    const whole = await readFile(file, "utf8");
    const cut = path.join(folder, "cut.jsonl");
    const last = whole.split("\n").find((line) => line.includes('"role":"student"'))!;
    await writeFile(cut, whole.slice(whole.indexOf("\n") + 1));
    await appendFile(cut, `${last.slice(0, -20)}\n${last.slice(30)}\n\u0000\u0000\n{"kind":"job"\n\n${last.slice(0, 60)}`);
    expect(recordedTraffic(cut)).toEqual(recordedTraffic(file));
    // What goes on after a crash in the middle of a line is read again from the next line on.
    await appendFile(cut, `\n${last}\n`);
    expect(recordedTraffic(cut)).toHaveLength(3);
  });

  test("a file without jobs, and no file, say what is expected", async () => {
    const empty = path.join(folder, "empty.jsonl");
    await writeFile(empty, '{"ts":1,"kind":"sample"}\n{"ts":1,"kind":"job"');
    expect(() => recordedTraffic(empty)).toThrow(/no line of kind job with outcome completed/);
    expect(() => recordedTraffic(path.join(folder, "none.jsonl"))).toThrow(/expected a telemetry file/);
  });
});

test("the report for people has the totals, the estimates and the waits", () => {
  const text = simulationReport("ge", run("ge", { jobs: 2000, load: 1.5, admission: true }));
  expect(text).toMatch(/^ge: \d+ swaps .* GPU busy \d\d\.\d %/);
  expect(text).toMatch(/\n\d{3} shed; waits estimated on arrival: off by \d+\.\d s in the mean .* s too (short|long) over all\n/);
  expect(text).toMatch(/student .*\n.*\n.*talker .*\n.*\n.*normal /);
  expect(simulationReport("ge", play("ge", [job("student", 0, 1)]))).toContain("0 shed; no job had an estimate of its wait");
});
