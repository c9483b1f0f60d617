import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { PRIORITY_CLASSES, ROLES } from "../../queues/names.ts";
import { type EstimatedModel, estimateWaitMs, type WaitSituation } from "../../queues/wait-estimate.ts";
import { POLICIES } from "../../workers/gpu/policies.ts";
import { DEFAULT_DEADLINES_MS } from "../../workers/gpu/policy.ts";
import { type SimulatedJob, simulate } from "../../workers/gpu/simulator.ts";
import { syntheticTraffic, type TrafficOptions } from "../../workers/gpu/synthetic-traffic.ts";

const model = (over: Partial<EstimatedModel> = {}): EstimatedModel => ({
  arrivalsPerMs: 0,
  serviceMs: 4000,
  swapMs: 10_000,
  slots: 1,
  depth: 0,
  oldestAgeMs: 0,
  ...over,
});
type Over = Partial<Omit<WaitSituation, "models">> & { student?: Partial<EstimatedModel>; talker?: Partial<EstimatedModel> };
/** A normal job for the Student, which is resident, as the estimate sees it. */
const estimate = ({ student, talker, ...over }: Over = {}) =>
  estimateWaitMs({
    role: "student",
    class: "normal",
    ahead: student?.depth ?? 0,
    models: { student: model(student), talker: model(talker) },
    resident: "student",
    ready: true,
    running: 0,
    deadlineMs: 300_000,
    ...over,
  });
const unmeasured = { serviceMs: null, swapMs: null };
const atTalker: Over = { resident: "talker" };

describe("by hand: 4 s a job, 10 s a swap, nothing arrives", () => {
  test.each<[string, number | null, number | null]>([
    ["a free slot", estimate(), 0],
    ["a free slot, nothing measured yet", estimate({ student: unmeasured, talker: unmeasured }), 0],
    ["all slots busy", estimate({ running: 1 }), 4000],
    ["all slots busy, nothing measured yet", estimate({ student: unmeasured, talker: unmeasured, running: 1 }), null],
    ["all slots busy, only the other measured", estimate({ student: unmeasured, running: 1 }), 4000],
    ["jobs ahead", estimate({ student: { depth: 9 }, running: 1 }), 40_000],
    ["jobs ahead on eight slots, two of them free", estimate({ student: { depth: 9, slots: 8 }, running: 6 }), 4000],
    ["no more ahead than free slots", estimate({ student: { depth: 1, slots: 8 }, running: 6 }), 0],
    ["jobs accepted since the queue was looked at count too", estimate({ ahead: 9, running: 1 }), 40_000],
    ["the model is being loaded: half a swap is left in the mean", estimate({ ready: false }), 5000],
    ["no model is resident", estimate({ resident: null, ready: false }), 10_000],
    [
      "no model is resident, and the other's job is older",
      estimate({ resident: null, ready: false, talker: { depth: 2, oldestAgeMs: 5 } }),
      10_000 + 4000 + 10_000,
    ],
    ["the other is resident and does nothing", estimate(atTalker), 10_000],
    ["the other's last job runs: it ends in the drain, which Ŝ holds", estimate({ ...atTalker, running: 1 }), 10_000],
    ["the other's queue is served first", estimate({ ...atTalker, running: 1, talker: { depth: 9 } }), 36_000 + 10_000],
    [
      "and then the jobs ahead",
      estimate({ ...atTalker, running: 1, talker: { depth: 9 }, student: { depth: 5 } }),
      36_000 + 10_000 + 20_000,
    ],
    ["the other is being loaded", estimate({ ...atTalker, ready: false, talker: { depth: 3 } }), 5000 + 8000 + 10_000],
    // Late after 300 − 14 s, but this one has waited for 280 of them.
    [
      "the other's backlog ends at D",
      estimate({ ...atTalker, running: 1, residentMs: 300_000, talker: { depth: 500 }, student: { depth: 1, oldestAgeMs: 280_000 } }),
      6000 + 10_000 + 4000,
    ],
    [
      "but not before its quantum of 276 s",
      estimate({ ...atTalker, running: 1, residentMs: 176_000, talker: { depth: 500 }, student: { depth: 1, oldestAgeMs: 280_000 } }),
      100_000 + 10_000 + 4000,
    ],
    // A hundred jobs of 4 s keep it for 400 s, though the look at the queue shows none of them.
    [
      "or than the jobs ahead take",
      estimate({
        ...atTalker,
        ahead: 99,
        running: 1,
        residentMs: 300_000,
        talker: { depth: 500 },
        student: { oldestAgeMs: 290_000, depth: 1 },
      }),
      100_000 + 10_000 + 99 * 4000,
    ],
    // The Talker's are late, and have had as long as they take, after 400 s. Then it keeps the model for the quantum of a full GPU, 276 s.
    [
      "a backlog at both: a visit of the other comes between",
      estimate({ student: { depth: 150 }, running: 1, residentMs: 0, talker: { depth: 100 } }),
      400_000 + 10_000 + 276_000 + 10_000 + 50 * 4000,
    ],
    ["unless the turn comes before", estimate({ student: { depth: 90 }, running: 1, residentMs: 0, talker: { depth: 100 } }), 91 * 4000],
  ])("%s", (_name, actual, expected) => expect(actual).toBe(expected));

  test("arrivals at the other stretch its visit: by 1/(1 − ρ) on one slot", () => {
    const stretched = estimate({ ...atTalker, running: 1, talker: { depth: 9, arrivalsPerMs: 0.5 / 4000 } });
    // Ten jobs take 80 s, of which the last one's 4 s fall into the drain.
    expect(stretched).toBe(80_000 - 4000 + 10_000);
  });

  test("a burst is not taken to go on for ever", () => {
    const burst = estimate({ ...atTalker, running: 1, deadlineMs: 1e9, talker: { depth: 9, arrivalsPerMs: 2 / 4000 } })!;
    // λ̂'s memory is 300 s / ln 2 long, twice as much work as that.
    expect(burst).toBeGreaterThan(40_000 + 800_000);
    expect(burst).toBeLessThan(60_000 + 900_000);
  });
});

const arbitraryModel = fc.record({
  arrivalsPerMs: fc.oneof(fc.constant(0), fc.double({ min: 1e-9, max: 0.1, noNaN: true })),
  serviceMs: fc.option(fc.integer({ min: 1, max: 100_000 })),
  swapMs: fc.option(fc.integer({ min: 0, max: 100_000 })),
  slots: fc.integer({ min: 1, max: 64 }),
  depth: fc.oneof(fc.constant(0), fc.nat(20), fc.nat(200_000)),
  oldestAgeMs: fc.nat(10_000_000),
});
const arbitrarySituation = fc
  .record({
    role: fc.constantFrom(...ROLES),
    class: fc.constantFrom(...PRIORITY_CLASSES),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
    models: fc.record({ student: arbitraryModel, talker: arbitraryModel }),
    resident: fc.constantFrom("student" as const, "talker" as const, null),
    ready: fc.boolean(),
    residentMs: fc.option(fc.nat(10_000_000)),
    running: fc.nat(64),
    deadlineMs: fc.nat(10_000_000),
  })
  .map(({ share, ...situation }): WaitSituation => {
    const ready = situation.ready && situation.resident !== null;
    return {
      ...situation,
      ready,
      running: ready ? situation.running : 0,
      ahead: Math.floor(share * situation.models[situation.role].depth),
    };
  });

test("an estimate is null or a whole number of milliseconds from 0 on, and null only while something is unmeasured", () => {
  fc.assert(
    fc.property(arbitrarySituation, (situation) => {
      const waitMs = estimateWaitMs(situation);
      const { student, talker } = situation.models;
      if (waitMs === null) {
        expect([student.serviceMs ?? talker.serviceMs, student.swapMs ?? talker.swapMs]).toContain(null);
      } else {
        expect(Number.isSafeInteger(waitMs), `${waitMs}`).toBe(true);
        expect(waitMs).toBeGreaterThanOrEqual(0);
      }
    }),
    { numRuns: 2000 },
  );
});

test("with nothing at the other model, more jobs ahead never wait for less", () => {
  fc.assert(
    fc.property(arbitrarySituation, fc.nat(1000), (situation, more) => {
      const { role, models } = situation;
      const other = role === "student" ? "talker" : "student";
      const alone = { ...situation, models: { ...models, [other]: { ...models[other], depth: 0, arrivalsPerMs: 0 } } };
      const [fewer, most] = [estimateWaitMs(alone), estimateWaitMs({ ...alone, ahead: alone.ahead + more })];
      if (fewer !== null && most !== null) expect(most).toBeGreaterThanOrEqual(fewer);
    }),
    { numRuns: 500 },
  );
});

describe("in the simulator", () => {
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
  const play = (jobs: SimulatedJob[], slots: number) =>
    simulate({ jobs, slots, policy: POLICIES.ge, swapMs: { student: 10_000, talker: 10_000 }, deadlinesMs: DEFAULT_DEADLINES_MS });

  // The rest is chance: how long a busy period lasts is as uncertain as it is long.
  test.each([
    { slots: 1, load: 0.5 },
    { slots: 1, load: 0.7 },
    { slots: 1, load: 0.9 },
    { slots: 8, load: 0.7 },
    { slots: 8, load: 0.9 },
    { slots: 1, load: 0.7, mix: 0.9 },
  ])("waits are told about right in the mean, and to within 40 %% of it (%o)", (over) => {
    const { meanWaitMs, estimateError } = play(syntheticTraffic({ ...traffic, ...over }), over.slots);
    expect(Math.abs(estimateError!.meanMs) / meanWaitMs).toBeLessThan(0.1);
    expect(estimateError!.meanAbsMs / meanWaitMs).toBeLessThan(0.41);
  });

  /** Ordinary traffic, then so many jobs at one moment and nothing more. */
  const thenBacklog = (slots: number, mix: number, count: number) => {
    const before = syntheticTraffic({ ...traffic, jobs: 300, slots, mix });
    const arrivalMs = before.at(-1)!.arrivalMs + 60_000;
    const backlog = syntheticTraffic({ ...traffic, jobs: count, slots, mix, load: null, seed: 2 }).map((job) => ({ ...job, arrivalMs }));
    return play([...before, ...backlog], slots);
  };
  test.each([
    { slots: 1, mix: 0.5, count: 2000, within: 0.3 },
    { slots: 1, mix: 0.9, count: 2000, within: 0.1 },
    { slots: 8, mix: 0.5, count: 2000, within: 0.45 },
    { slots: 8, mix: 0.9, count: 2000, within: 0.25 },
  ])("a backlog that comes at once: within $within of the mean wait ($slots slots, mix $mix)", ({ slots, mix, count, within }) => {
    const { meanWaitMs, estimateError } = thenBacklog(slots, mix, count);
    expect(estimateError!.meanAbsMs / meanWaitMs).toBeLessThan(within);
  });

  test("an overloaded queue: to within an eighth of the mean wait", () => {
    const { meanWaitMs, estimateError } = play(syntheticTraffic({ ...traffic, jobs: 5000, load: 1.2, mix: 0.97 }), 1);
    expect(estimateError!.meanAbsMs / meanWaitMs).toBeLessThan(0.13);
    expect(Math.abs(estimateError!.meanMs) / meanWaitMs).toBeLessThan(0.02);
  });
});

test("under least-wait a visit is not taken to last until the last trickle has ended", () => {
  const jobs = syntheticTraffic({
    jobs: 10_000,
    serviceMs: 4000,
    serviceCv: 1,
    slots: 8,
    mix: 0.5,
    load: 0.7,
    burst: 1,
    classes: { normal: 1 },
    seed: 1,
  });
  const errorOf = (leavesEarly: boolean) =>
    simulate({
      jobs,
      policy: POLICIES["least-wait"],
      slots: 8,
      swapMs: { student: 10_000, talker: 10_000 },
      deadlinesMs: DEFAULT_DEADLINES_MS,
      leavesEarly,
    }).estimateError!;
  expect(errorOf(true).meanAbsMs).toBeLessThan(0.8 * errorOf(false).meanAbsMs);
  expect(Math.abs(errorOf(true).meanMs)).toBeLessThan(0.7 * Math.abs(errorOf(false).meanMs));
});
