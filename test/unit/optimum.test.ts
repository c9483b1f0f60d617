import { describe, expect, test } from "vitest";
import { ROLES, type Role } from "../../queues/names.ts";
import { leastMeans } from "../../workers/gpu/least-means.ts";
import { type Optimum, type OptimumModel, type OptimumSystem, solveOptimum } from "../../workers/gpu/optimum.ts";
import { OPTIMUM_TABLE, playSetting, readSettings, type Setting } from "../../workers/gpu/optimum-table.ts";
import { POLICIES } from "../../workers/gpu/policies.ts";
import { leastMeansReport } from "../../workers/gpu/setting-reports.ts";

const other = (role: Role): Role => (role === "student" ? "talker" : "student");
const model = (over: Partial<OptimumModel> = {}): OptimumModel => ({
  arrivalsPerMs: 0.0001,
  serviceMs: 4000,
  batchExponent: 1,
  swapMs: 10_000,
  ...over,
});
const none = model({ arrivalsPerMs: 0 });

/**
 * The same small system once more, written down state by state: each choice that may follow an event is a list of the next states with
 * their probabilities in one short step, and plain relative value iteration finds the least mean cost. Returns jobs, in the mean.
 */
function byValueIteration({ slots, models, swapStages, objective }: OptimumSystem, capacity: Record<Role, number>): number {
  interface State {
    role: Role;
    waiting: Record<Role, number>;
    running: number;
    /** Stages that the swap still takes; 0: a visit. */
    left: number;
  }
  const keyOf = ({ role, waiting, running, left }: State) => `${role} ${waiting.student} ${waiting.talker} ${running} ${left}`;
  const fastest = Math.max(
    ...ROLES.map((role) => slots ** models[role].batchExponent / models[role].serviceMs + swapStages / models[role].swapMs),
  );
  const rate = models.student.arrivalsPerMs + models.talker.arrivalsPerMs + fastest;
  /** What may be chosen at once in a state: itself, one more picked, a swap begun. */
  const choices = (state: State): State[] => {
    const { role, waiting, running, left } = state;
    if (left > 0) return [state];
    const swap = { ...state, role: other(role), left: swapStages };
    const pick = { ...state, waiting: { ...waiting, [role]: waiting[role] - 1 }, running: running + 1 };
    return [state, ...(running === 0 ? [swap] : []), ...(waiting[role] > 0 && running < slots ? choices(pick) : [])];
  };
  const events = (state: State): { next: State; rate: number }[] => {
    const { role, waiting, running, left } = state;
    const arrivals = ROLES.filter((each) => waiting[each] < capacity[each]).map((each) => ({
      next: { ...state, waiting: { ...waiting, [each]: waiting[each] + 1 } },
      rate: models[each].arrivalsPerMs,
    }));
    if (left > 0) return [...arrivals, { next: { ...state, left: left - 1 }, rate: swapStages / models[role].swapMs }];
    if (running === 0) return arrivals;
    return [
      ...arrivals,
      { next: { ...state, running: running - 1 }, rate: running ** models[role].batchExponent / models[role].serviceMs },
    ];
  };
  const states = new Map<string, { state: State; index: number }>();
  const found = [{ role: "student", waiting: { student: 0, talker: 0 }, running: 0, left: 0 } as State];
  const indexOf = (state: State): number => {
    const key = keyOf(state);
    if (!states.has(key)) {
      states.set(key, { state, index: states.size });
      found.push(state);
    }
    return states.get(key)!.index;
  };
  indexOf(found[0]!);
  const steps: { cost: number; stays: number; choices: number[]; next: [number, number][] }[] = [];
  for (let i = 1; i < found.length; i++) {
    const state = found[i]!;
    const next = events(state).map(({ next: to, rate: each }): [number, number] => [indexOf(to), each / rate]);
    steps.push({
      cost: state.waiting.student + state.waiting.talker + (objective === "end-to-end" ? state.running : 0),
      stays: 1 - next.reduce((sum, [, share]) => sum + share, 0),
      choices: choices(state).map(indexOf),
      next,
    });
  }
  let value = new Float64Array(steps.length);
  for (;;) {
    const after = steps.map(({ cost, stays, next }, i) =>
      next.reduce((sum, [to, share]) => sum + share * value[to]!, cost + stays * value[i]!),
    );
    const best = Float64Array.from(steps, (step) =>
      step.choices.reduce((least, choice) => Math.min(least, after[choice]!), Number.POSITIVE_INFINITY),
    );
    const growth = best.map((each, i) => each - value[i]!);
    const [low, high] = [growth.reduce((a, b) => Math.min(a, b)), growth.reduce((a, b) => Math.max(a, b))];
    if (high - low < 1e-6 * high) return (low + high) / 2;
    value = best.map((each) => each - best[0]!);
  }
}

describe("small systems, against plain value iteration over every state", () => {
  const capacity = { student: 3, talker: 2 };
  const unlike = {
    student: model({ arrivalsPerMs: 0.0003, serviceMs: 3000, batchExponent: 0.4, swapMs: 5000 }),
    talker: model({ arrivalsPerMs: 0.0002, serviceMs: 900, batchExponent: 0.8, swapMs: 2000 }),
  };
  const alike = { student: model({ arrivalsPerMs: 0.0002 }), talker: model({ arrivalsPerMs: 0.0002 }) };
  test.each<[string, OptimumSystem, Record<Role, number>]>([
    ["two models that differ, the wait", { slots: 3, models: unlike, swapStages: 2, objective: "wait" }, capacity],
    ["two models that differ, to the end", { slots: 3, models: unlike, swapStages: 2, objective: "end-to-end" }, capacity],
    ["two alike", { slots: 2, models: alike, swapStages: 1, objective: "wait" }, { student: 4, talker: 4 }],
    ["two alike with unlike queues", { slots: 2, models: alike, swapStages: 3, objective: "wait" }, { student: 4, talker: 2 }],
    ["one slot", { slots: 1, models: { ...unlike, student: alike.student }, swapStages: 2, objective: "end-to-end" }, capacity],
  ])("%s", (_, system, queues) => {
    const arrivals = system.models.student.arrivalsPerMs + system.models.talker.arrivalsPerMs;
    const expected = byValueIteration(system, queues) / arrivals;
    const optimum = solveOptimum(system, { capacity: queues, enlarge: false, tolerance: 1e-5 });
    expect(Math.abs(optimum.meanMs / expected - 1)).toBeLessThan(1e-4);
    expect(optimum.lowMs).toBeLessThanOrEqual(expected * (1 + 1e-6));
    expect(optimum.highMs).toBeGreaterThanOrEqual(expected * (1 - 1e-6));
  });
});

describe("one model alone", () => {
  /** M/M/c by Erlang's formula. */
  const erlangWaitMs = (slots: number, load: number, serviceMs: number) => {
    let blocked = 1;
    for (let n = 1; n <= slots; n++) blocked = (load * slots * blocked) / (n + load * slots * blocked);
    return ((blocked / (1 - load * (1 - blocked))) * serviceMs) / (slots * (1 - load));
  };

  test.each([
    [1, 0.5],
    [1, 0.8],
    [4, 0.7],
    [8, 0.7],
  ])("%d slots at load %d wait as Erlang's formula says, whichever model it is", (slots, load) => {
    const busy = model({ arrivalsPerMs: (load * slots) / 4000 });
    for (const models of [
      { student: busy, talker: none },
      { student: none, talker: busy },
    ]) {
      const optimum = solveOptimum({ slots, models, swapStages: 6, objective: "wait" }, { tolerance: 1e-4, capacityTolerance: 1e-5 });
      expect(optimum.meanMs / erlangWaitMs(slots, load, 4000)).toBeCloseTo(1, 3);
      expect(optimum.cut).toBe(false);
    }
  });
});

test("more speed from batching, shorter swaps or less load can't make the least wait longer", () => {
  const setting: Setting = { slots: 3, load: 0.5, mix: 0.5, serviceMs: 1000, serviceCv: 1, swapMs: 2000, swapCv: 0.5, batchExponent: 0.7 };
  const usual = leastMeans(setting);
  expect(leastMeans({ ...setting, swapMs: 1500 }).meanWaitMs).toBeLessThan(usual.meanWaitMs);
  expect(leastMeans({ ...setting, load: 0.4 }).meanWaitMs).toBeLessThan(usual.meanWaitMs);
  // Who waits least isn't done first where jobs slow each other: but each optimum is the least in its own measure.
  expect(usual.endToEnd).not.toBeNull();
  expect(usual.meanEndToEndMs).toBeGreaterThan(usual.meanWaitMs + 1000);
  expect(leastMeans({ ...setting, batchExponent: 1 })).toMatchObject({ endToEnd: null });
  const plain = leastMeans({ ...setting, batchExponent: 1, serviceMs: { student: 800, talker: 1200 } });
  expect(plain.meanEndToEndMs).toBeCloseTo(plain.meanWaitMs + 1000, 9);
});

describe("the table that ships", () => {
  const settings = readSettings(OPTIMUM_TABLE);

  // The others take up to half a minute each: npm run bench:optimum.
  test.each([0, 7, 8, 9])("line %i is what is computed, to within 1 %", (line) => {
    const result = leastMeans(settings[line]!);
    expect(Math.abs(result.waitRatio! - 1)).toBeLessThan(0.01);
    expect(Math.abs((result.endToEndRatio ?? 1) - 1)).toBeLessThan(0.01);
    expect(result.wait.highMs / result.wait.lowMs).toBeLessThan(1.01);
    expect(result.wait.enlarged).toBeLessThan(0.002);
  });

  test("no policy is better than the least possible", () => {
    const setting = settings[9]!;
    const { meanEndToEndMs } = leastMeans(setting);
    for (const policy of [POLICIES.ge, POLICIES.exhaustive]) {
      expect(playSetting(setting, policy, 5000, 1).meanEndToEndMs).toBeGreaterThan(0.95 * meanEndToEndMs);
    }
  });
});

test("time that is over ends it, with the bounds reached", () => {
  const setting: Setting = { slots: 8, load: 0.7, mix: 0.5, serviceMs: 4000, serviceCv: 1, swapMs: 10_000, swapCv: 0.5, batchExponent: 1 };
  const looks: number[] = [];
  const result = leastMeans(setting, { limitMs: 0, onProgress: ({ meanMs }) => looks.push(meanMs) });
  expect(looks).toHaveLength(1);
  expect(result.wait.cut).toBe(true);
  expect(result.wait.highMs).toBeGreaterThan(1.01 * result.wait.lowMs);
  expect(leastMeansReport([result])).toContain("1 not settled within the time limit");
});

test("what it can't solve it says", () => {
  const setting: Setting = { slots: 2, load: 0.5, mix: 0.5, serviceMs: 1000, serviceCv: 1, swapMs: 2000, swapCv: 0.5, batchExponent: 1 };
  expect(() => leastMeans({ ...setting, load: 1 })).toThrow(/expected a load above 0 and below 1, got 1/);
  expect(() => leastMeans({ ...setting, serviceCv: 0 })).toThrow(/expected exponential service/);
  expect(() => leastMeans({ ...setting, swapMs: 10_000_000 })).toThrow(/expected a small system/);
});

test("the report for people shows each mean with its bounds", () => {
  const optimum: Optimum = {
    ...{
      meanMs: 2000,
      lowMs: 1900,
      highMs: 2100,
      capacity: { student: 5, talker: 6 },
      enlarged: 0.001,
      sweeps: 10,
      cut: false,
      tookMs: 100,
    },
  };
  const setting = readSettings(OPTIMUM_TABLE)[9]!;
  const means = { setting, swapStages: 6, meanWaitMs: 2000, meanEndToEndMs: 3000, waitRatio: null, endToEndRatio: 1.002 };
  const text = leastMeansReport([{ ...means, wait: optimum, endToEnd: { ...optimum, meanMs: 3000, enlarged: null } }]);
  expect(text).toMatch(/2\.0 \(1\.9–2\.1\) │ 3\.0 \(1\.9–2\.1\) +│ 5 \/ 6 +│ 20 +│ 0\.2 +│ unknown, 1\.002 to the end/);
  expect(text).toContain("changed the means by 0.10 % at most\n");
});
