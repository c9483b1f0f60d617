import { mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Arrival, arrivals, recordedArrivals } from "../../producers/load/arrivals.ts";
import { parsePlan } from "../../producers/load/load-run.ts";
import { type PlannedRequest, requestSource } from "../../producers/load/request-plan.ts";
import { phaseAt, scheduleOf } from "../../producers/load/schedule.ts";

const first = (count: number, all: Iterable<Arrival>): number[] => {
  const offsets: number[] = [];
  for (const { offsetMs } of all) if (offsets.push(offsetMs) === count) break;
  return offsets;
};
const gapsOf = (offsets: number[]) => offsets.map((at, i) => at - (offsets[i - 1] ?? 0));
const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const cvOf = (values: number[]) => {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2))) / middle;
};

/** The largest distance between the sample's and the exponential's distribution functions. */
function kolmogorovSmirnov(gaps: number[], ratePerMs: number): number {
  const sorted = [...gaps].sort((a, b) => a - b);
  return Math.max(
    ...sorted.map((gap, i) => {
      const theory = 1 - Math.exp(-ratePerMs * gap);
      return Math.max(theory - i / sorted.length, (i + 1) / sorted.length - theory);
    }),
  );
}
/** Rejected at 1 %. */
const criticalAt = (count: number) => 1.63 / Math.sqrt(count);

describe("arrivals", () => {
  test.each([1, 2, 3, 4, 5])("Poisson gaps pass a Kolmogorov–Smirnov test against the exponential (seed %i)", (seed) => {
    const gaps = gapsOf(first(5000, arrivals({ pattern: "poisson", ratePerS: 40 }, seed)));
    expect(kolmogorovSmirnov(gaps, 0.04)).toBeLessThan(criticalAt(gaps.length));
  });

  test("the test can fail: evenly spaced, or another rate", () => {
    const constant = gapsOf(first(5000, arrivals({ pattern: "constant", ratePerS: 40 }, 1)));
    expect(kolmogorovSmirnov(constant, 0.04)).toBeGreaterThan(criticalAt(5000));
    const faster = gapsOf(first(5000, arrivals({ pattern: "poisson", ratePerS: 44 }, 1)));
    expect(kolmogorovSmirnov(faster, 0.04)).toBeGreaterThan(criticalAt(5000));
  });

  test.each([0.1, 0.5, 1, 4, 25])("gamma gaps of shape %d have the mean of the rate and a CV of 1/√shape", (burstiness) => {
    const gaps = gapsOf(first(40_000, arrivals({ pattern: "gamma", ratePerS: 10, burstiness }, 7)));
    expect(mean(gaps) / 100).toBeCloseTo(1, 1);
    expect(cvOf(gaps) * Math.sqrt(burstiness)).toBeCloseTo(1, 1);
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(0);
  });

  test("the same seed gives the same times, another seed others", () => {
    const of = (seed: number) => first(100, arrivals({ pattern: "gamma", ratePerS: 10, burstiness: 0.5 }, seed));
    expect(of(3)).toEqual(of(3));
    expect(of(3)).not.toEqual(of(4));
  });

  test.each([
    [0, 10],
    [10, 0],
    [5, 15],
    [7, 7],
  ])("a ramp from %d to %d a second sends the rate's integral, half by half", (fromPerS, toPerS) => {
    const offsets = first(10_000, arrivals({ pattern: "ramp", fromPerS, toPerS }, 1, 20));
    expect(offsets.length).toBe(10 * (fromPerS + toPerS));
    expect(offsets.toSorted((a, b) => a - b)).toEqual(offsets);
    const middle = (fromPerS + toPerS) / 2;
    expect(Math.abs(offsets.filter((at) => at < 10_000).length - 5 * (fromPerS + middle))).toBeLessThanOrEqual(1);
    expect(offsets.at(-1)).toBeLessThan(20_000);
  });

  test("steps send each rate for the same time, and say which", () => {
    const all = [...arrivals({ pattern: "steps", ratesPerS: [1, 2, 4] }, 1, 30)];
    expect([0, 1, 2].map((step) => all.filter((arrival) => arrival.step === step).length)).toEqual([10, 20, 40]);
    expect(all.filter(({ step }) => step === 2).every(({ offsetMs }) => offsetMs >= 20_000 && offsetMs < 30_000)).toBe(true);
  });
});

describe("replay", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-trace-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));
  const trace = async (lines: (object | string)[]) => {
    const file = path.join(folder, "trace.jsonl");
    await writeFile(file, lines.map((line) => (typeof line === "string" ? line : JSON.stringify(line))).join("\n"));
    return recordedArrivals(file);
  };

  test("telemetry: each job once, when it was accepted, whatever the order of the lines", async () => {
    const job = { kind: "job", class: "normal", ts: 1 };
    expect(
      await trace([
        { kind: "sample", ts: 1 },
        { ...job, jobId: "solve-b", acceptedAt: 5500, class: "batch" },
        { ...job, jobId: "explain-a", role: "student", acceptedAt: 5000 },
        { ...job, jobId: "explain-a", role: "talker", acceptedAt: 5000 },
        { ...job, jobId: "talk-c", acceptedAt: 6000 },
        '{"kind":"job","jobId":"solve-d","accep',
      ]),
    ).toEqual([
      { offsetMs: 0, step: null, kind: "explain", priorityClass: "normal" },
      { offsetMs: 500, step: null, kind: "student", priorityClass: "batch" },
      { offsetMs: 1000, step: null, kind: "talker", priorityClass: "normal" },
    ]);
  });

  test("our own records, and a clear message for neither", async () => {
    const record = { index: 0, offsetMs: 20, kind: "talker", priorityClass: "interactive" };
    expect((await trace([{ ...record, index: 1, offsetMs: 120 }, record])).map(({ offsetMs }) => offsetMs)).toEqual([0, 100]);
    await expect(trace(["{}"])).rejects.toThrow(/Expected telemetry with lines of kind job, or a requests\.jsonl/);
    await expect(recordedArrivals("/nowhere.jsonl")).rejects.toThrow(/Expected a trace at \/nowhere\.jsonl/);
  });
});

describe("schedule", () => {
  const constant = { pattern: "constant", ratePerS: 10 } as const;

  test("phases are by the scheduled time, and a number of requests has an end too", async () => {
    const byTime = await scheduleOf(parsePlan({ arrivals: constant, durationS: 10, warmUpS: 2, coolDownS: 1 }));
    expect([byTime.count, byTime.endMs]).toEqual([100, 10_000]);
    expect([0, 1999, 2000, 8999, 9000].map((at) => phaseAt(at, byTime))).toEqual(["warm-up", "warm-up", "steady", "steady", "cool-down"]);
    const byCount = await scheduleOf(parsePlan({ arrivals: constant, requests: 50, coolDownS: 1 }));
    expect([byCount.count, byCount.endMs, byCount.steadyToMs]).toEqual([50, 5000, 4000]);
    const closed = await scheduleOf(parsePlan({ arrivals: { pattern: "closed", concurrency: 2 }, requests: 5 }));
    expect([closed.arrivals, closed.count, closed.endMs]).toEqual([null, 5, null]);
  });

  test.each([
    [{ arrivals: constant }, /duration or a number of requests/],
    [{ arrivals: constant, durationS: 5, requests: 5 }, /not both/],
    [{ arrivals: constant, durationS: 5, warmUpS: 3, coolDownS: 2 }, /longer than warm-up and cool-down/],
    [{ arrivals: { pattern: "steps", ratesPerS: [1] }, requests: 5 } as const, /a duration with arrivals steps/],
    [{ arrivals: { pattern: "closed", concurrency: 1 }, requests: 5, coolDownS: 1 } as const, /doesn't know its end/],
    [{ arrivals: constant, requests: 5, mix: { student: 0.5 } }, /add up to 1/],
    [{ arrivals: constant, requests: 5, target: "openai", mix: { explain: 1 } } as const, /only our API chains/],
    [{ arrivals: constant, requests: 5, samples: 4 }, /temperature above 0/],
    [{ arrivals: constant, requests: 5, slo: "e2e<3" }, /a statistic such as e2e-p95/],
  ] as [Parameters<typeof parsePlan>[0], RegExp][])("a plan that can't be is refused: %j", (plan, message) => {
    expect(() => parsePlan(plan)).toThrow(message);
  });
});

describe("requests", () => {
  const plan = (over: object) => parsePlan({ arrivals: { pattern: "constant", ratePerS: 1 }, requests: 1, ...over });
  const take = async (count: number, over: object): Promise<PlannedRequest[]> => {
    const next = await requestSource(plan(over), null);
    return Array.from({ length: count }, () => next());
  };

  test("shares of kinds and classes come out, problems are distinct, and the seed decides all", async () => {
    const over = { mix: { student: 0.5, explain: 0.3, talker: 0.2 }, classes: { interactive: 0.25, batch: 0.75 }, temperature: 0.5 };
    const requests = await take(2000, over);
    const share = (of: (request: PlannedRequest) => boolean) => requests.filter(of).length / requests.length;
    expect(share(({ kind }) => kind === "student")).toBeCloseTo(0.5, 1);
    expect(share(({ kind }) => kind === "talker")).toBeCloseTo(0.2, 1);
    expect(share(({ priorityClass }) => priorityClass === "batch")).toBeCloseTo(0.75, 1);
    expect(new Set(requests.map(({ problem }) => problem)).size).toBe(2000);
    expect(new Set(requests.map(({ seed }) => seed)).size).toBe(2000);
    expect(await take(2000, over)).toEqual(requests);
    expect(await take(2000, { ...over, seed: 2 })).not.toEqual(requests);
    const problemsOf = (all: PlannedRequest[]) => all.map(({ problemId }) => problemId);
    expect(problemsOf(await take(2000, { ...over, mix: { student: 1 } }))).toEqual(problemsOf(requests));
  });

  test("distinct repeats over so many problems, each equally often and always as the same kind", async () => {
    const requests = await take(100, { distinct: 40, mix: { student: 0.5, talker: 0.5 } });
    const uses = Map.groupBy(requests, ({ problem }) => problem);
    expect(uses.size).toBe(40);
    expect([...uses.values()].every((group) => group.length === 2 || group.length === 3)).toBe(true);
    expect([...uses.values()].every((group) => new Set(group.map(({ kind }) => kind)).size === 1)).toBe(true);
  });

  test("prompts are filled up to a length, each with other text", async () => {
    const next = await requestSource(plan({ promptTokens: 500 }), { baseTokens: 20, charsPerToken: 2 });
    const requests = [next(), next()];
    for (const { problem } of requests) expect(problem.length).toBeCloseTo(960, -1);
    expect(requests[0]!.problem.slice(0, 50)).not.toBe(requests[1]!.problem.slice(0, 50));
  });

  test("a bank is repeated when it is used up, and one that can't be read is said before anything is sent", async () => {
    const file = path.join(os.tmpdir(), `mathllm-bank-${process.pid}.jsonl`);
    await writeFile(file, '{"problem":"1 + 1?","expected":"2"}\n{"problem":"1 + 2?"}\n');
    const requests = await take(4, { problems: { source: "bank", file } });
    expect(requests.map(({ problem, expected }) => `${problem}${expected}`).sort()).toEqual([
      "1 + 1?2",
      "1 + 1?2",
      "1 + 2?null",
      "1 + 2?null",
    ]);
    await rm(file);
    await expect(take(1, { problems: { source: "bank", file } })).rejects.toThrow(/Expected a file of problems/);
  });
});
