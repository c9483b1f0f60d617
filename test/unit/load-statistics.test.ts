import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { seededRandom } from "../../maths/seeded-random.ts";
import { ServerClock } from "../../producers/load/api-target.ts";
import { findKnee, kneeOfSteps } from "../../producers/load/knee.ts";
import { loadPlanSchema } from "../../producers/load/load-options.ts";
import { figuresOf } from "../../producers/load/measurement.ts";
import { FORMULAS, METRICS } from "../../producers/load/metrics.ts";
import { type LoadRecord, loadRecordSchema } from "../../producers/load/record.ts";
import { phaseAt, scheduleOf } from "../../producers/load/schedule.ts";
import { overlapMs } from "../../producers/load/server-sampler.ts";
import { isGood, judgeSlo, parseSlo } from "../../producers/load/slo.ts";
import { distributionOf, LatencyHistogram, nearestRank } from "../../producers/load/statistics.ts";
import { type LoadSummary, latenciesSchema } from "../../producers/load/summary.ts";
import { validityOf } from "../../producers/load/validity.ts";

const record = (over: Partial<LoadRecord> = {}): LoadRecord =>
  loadRecordSchema.parse({
    index: 0,
    session: 0,
    kind: "student",
    priorityClass: "normal",
    phase: "steady",
    step: null,
    problemId: "p",
    offsetMs: 0,
    scheduledAt: 0,
    sentAt: 1,
    dispatchDelayMs: 1,
    acceptedAt: 2,
    pickedAt: 3,
    firstTokenAt: 50,
    finishedAt: 100,
    e2eMs: 100,
    queueWaitMs: 1,
    swapWaitMs: 0,
    ttftMs: 50,
    itlMs: null,
    tpotMs: 5,
    tokensIn: 10,
    tokensOut: 11,
    status: "completed",
    errorClass: null,
    errorDetail: null,
    truncated: false,
    cached: false,
    coalesced: false,
    verdict: "equal",
    model: "student",
    clockOffsetMs: 0,
    ...over,
  } satisfies LoadRecord);
const withE2e = (values: number[]) => values.map((e2eMs) => record({ e2eMs }));

describe("distributions", () => {
  test("known samples: nearest rank, mean, ends", () => {
    const oneToHundred = Array.from({ length: 100 }, (_, i) => [i + 1]);
    expect(distributionOf(oneToHundred)).toMatchObject({
      count: 100,
      min: 1,
      max: 100,
      mean: { value: 50.5 },
      p50: { value: 50 },
      p90: { value: 90 },
      p95: { value: 95 },
      p99: { value: 99 },
      p99_9: { value: 100 },
    });
    expect(
      nearestRank(
        Array.from({ length: 20 }, (_, i) => i + 1),
        0.95,
      ),
    ).toBe(19);
    expect(distributionOf([[7]])).toMatchObject({ p50: { value: 7, low: null, high: null }, max: 7 });
    expect(distributionOf([[], []])).toBeNull();
  });

  test("percentiles rise, lie within the sample, and their intervals around them; the seed decides the interval", () => {
    const samples = fc.array(fc.double({ min: 0, max: 1e6, noNaN: true }), { minLength: 2, maxLength: 60 });
    fc.assert(
      fc.property(samples, fc.integer({ min: 1, max: 1000 }), (values, seed) => {
        const groups = values.map((value) => [value]);
        const { min, mean, p50, p90, p95, p99, p99_9, max } = distributionOf(groups, seed)!;
        const rising = [min, p50.value, p90.value, p95.value, p99.value, p99_9.value, max];
        expect(rising).toEqual([...rising].sort((a, b) => a - b));
        for (const { value, low, high } of [p50, p90, p95, p99, p99_9]) {
          expect(values).toContain(value);
          expect([min <= low!, low! <= high!, high! <= max]).toEqual([true, true, true]);
        }
        expect(mean.low).toBeLessThanOrEqual(mean.high!);
        expect(distributionOf(groups, seed)).toEqual(distributionOf(groups, seed));
      }),
      { numRuns: 50 },
    );
  });

  test("the 95 % interval covers the true median and mean about 95 times in 100", () => {
    const random = seededRandom(5);
    let median = 0;
    let mean = 0;
    for (let run = 0; run < 100; run++) {
      const sample = Array.from({ length: 100 }, () => [-Math.log(1 - random())]);
      const found = distributionOf(sample, run)!;
      if (found.p50.low! <= Math.LN2 && Math.LN2 <= found.p50.high!) median++;
      if (found.mean.low! <= 1 && 1 <= found.mean.high!) mean++;
    }
    expect(median / 100).toBeGreaterThan(0.9);
    expect(mean / 100).toBeGreaterThan(0.88);
    expect(median / 100).toBeLessThan(1);
  });

  test("values of one request are resampled together: a hundred equal gaps of one are not a hundred witnesses", () => {
    const random = seededRandom(9);
    const means = Array.from({ length: 20 }, () => 10 * random());
    const width = (groups: number[][]) => {
      const { low, high } = distributionOf(groups)!.mean;
      return high! - low!;
    };
    const clustered = means.map((value) => Array.from({ length: 100 }, () => value));
    expect(width(clustered)).toBeCloseTo(width(means.map((value) => [value])), 5);
    expect(width(clustered)).toBeGreaterThan(5 * width(clustered.flat().map((value) => [value])));
  });

  test("the histogram keeps three digits over six decades, and its spectrum ends at the largest", () => {
    const random = seededRandom(3);
    const values = Array.from({ length: 5000 }, () => 10 ** (6 * random() - 1)).sort((a, b) => a - b);
    const histogram = new LatencyHistogram();
    for (const value of values) histogram.record(value);
    for (const p of [1, 50, 90, 99, 99.9]) {
      expect(Math.abs(histogram.percentileMs(p) / nearestRank(values, p / 100) - 1)).toBeLessThan(0.002);
    }
    const spectrum = histogram.spectrum();
    expect(spectrum.map(({ ms }) => ms)).toEqual(spectrum.map(({ ms }) => ms).sort((a, b) => a - b));
    expect(spectrum.at(-1)!.ms / values.at(-1)!).toBeCloseTo(1, 2);
    histogram.record(-1);
    expect(histogram.percentileMs(0)).toBe(0);
  });

  test("every latency has its printed formula", () => {
    expect(METRICS.map(({ key }) => key).sort()).toEqual(Object.keys(latenciesSchema.shape).sort());
    for (const { name, formula } of METRICS) expect(FORMULAS).toContainEqual(expect.objectContaining({ name, formula }));
    expect(METRICS.find(({ key }) => key === "tpotMs")!.formula).toContain("the first token is excluded");
  });
});

describe("SLO", () => {
  test.each([
    ["e2e-p95<1500", { of: "latency", name: "e2e", statistic: 95, comparison: "<", limit: 1500 }],
    ["ttft-p99.9<=1.5s", { of: "latency", name: "ttft", statistic: 99.9, comparison: "<=", limit: 1500 }],
    ["queue-wait-max < 20 ms", { of: "latency", name: "queue-wait", statistic: "max", limit: 20 }],
    ["errors<1%", { of: "share", name: "errors", limit: 0.01 }],
    ["accuracy>=0.9", { of: "share", name: "accuracy", comparison: ">=", limit: 0.9 }],
    ["tokens-out>100", { of: "rate", name: "tokens-out", limit: 100 }],
  ])("%s", (text, expected) => {
    expect(parseSlo(text)).toMatchObject([expected]);
  });

  test.each([
    "",
    "e2e",
    "e2e<5",
    "e2e-p95",
    "e2e-p95<5%",
    "errors<1ms",
    "errors<200%",
    "errors-p95<1",
    "speed>3",
    "e2e-p95<-1",
    "e2e-p95=5",
    "a,b",
  ])("%j is none", (text) => {
    expect(() => parseSlo(text)).toThrow(/SLO: expected .*; came "/);
  });

  const judge = (slo: string, records: LoadRecord[], allowTruncated = false) => {
    const rates = { throughput: 5, "tokens-out": 50, goodput: null };
    return judgeSlo(parseSlo(slo), { records, rates, allowTruncated });
  };

  test("a percentile is over all requests: failed ones never came, and are late however fast they failed", () => {
    const good = withE2e(Array(94).fill(100));
    const failed = Array.from({ length: 6 }, () => record({ status: "failed", errorClass: "x", e2eMs: 1 }));
    expect(judge("e2e-p95<200", good).met).toBe(true);
    const { met, terms } = judge("e2e-p95<200,e2e-p90<200,errors<5%", [...good, ...failed]);
    expect(met).toBe(false);
    expect(terms.map((term) => [term.met, term.observed])).toEqual([
      [false, null],
      [true, 100],
      [false, 0.06],
    ]);
    expect(terms[0]!.note).toMatch(/6 of 100 requests failed or were cut/);
  });

  test("a truncated answer counts as failed unless it is allowed", () => {
    const records = withE2e(Array(10).fill(100)).map((each, i) => ({ ...each, truncated: i === 0 }));
    expect(judge("e2e-max<200", records).met).toBe(false);
    expect(judge("e2e-max<200", records, true).met).toBe(true);
    expect(judge("truncated<=10%", records).met).toBe(true);
    expect(isGood(records[0]!, parseSlo("e2e-max<200"), false)).toBe(false);
    expect(isGood(records[0]!, parseSlo("e2e-max<200"), true)).toBe(true);
  });

  test("the first token of an answer from the cache is its end; what nobody has can't be met", () => {
    const cached = record({ cached: true, ttftMs: null, e2eMs: 30 });
    expect(judge("ttft-p95<40", [cached]).terms[0]).toMatchObject({ observed: 30, met: true });
    expect(judge("itl-p95<40", [cached]).terms[0]).toMatchObject({ observed: null, met: false, note: "no request has it" });
    expect(judge("accuracy>1%", [record({ verdict: null })]).met).toBe(false);
    expect(judge("goodput>1", [record()]).terms[0]).toMatchObject({ met: false, note: "needs a limit on a latency" });
    expect(judge("e2e-p95<40,throughput>4", []).met).toBe(false);
  });
});

describe("validity", () => {
  const sound = {
    records: withE2e(Array(100).fill(200)),
    rates: { requestedPerS: 10, achievedPerS: 10 },
    eventLoopDelayMs: { p50: 0, p99: 3, max: 9 },
    peakInFlight: 3,
    maxInFlight: 4096,
    toleratedDelayMs: 25,
  };

  test("a generator that kept up is valid, and so is a closed loop without a rate", () => {
    expect(validityOf(sound)).toMatchObject({ valid: true, reasons: [], dispatchDelayMs: { p99: 1 } });
    expect(validityOf({ ...sound, rates: null }).valid).toBe(true);
  });

  test.each([
    [
      "sent late",
      { records: withE2e(Array(100).fill(200)).map((each) => ({ ...each, dispatchDelayMs: 40 })) },
      /sent late: dispatch delay p99 40 ms, at most 25 ms/,
    ],
    ["event loop", { eventLoopDelayMs: { p50: 1, p99: 60, max: 80 } }, /event loop was blocked: delay p99 60 ms/],
    ["rate", { rates: { requestedPerS: 10, achievedPerS: 9.4 } }, /9\.40 requests\/s were sent of 10\.00 requested/],
    ["in flight", { peakInFlight: 4096 }, /4096 requests were in flight/],
    ["nothing", { records: [] }, /no request was sent in the steady window/],
  ])("%s: INVALID with the reason", (_name, over, reason) => {
    expect(validityOf({ ...sound, ...over })).toMatchObject({ valid: false, reasons: [expect.stringMatching(reason)] });
  });

  test("lateness that is small beside what was measured is tolerated", () => {
    const records = withE2e(Array(100).fill(2000)).map((each) => ({ ...each, dispatchDelayMs: 90 }));
    expect(validityOf({ ...sound, records }).valid).toBe(true);
  });
});

describe("knee", () => {
  /** A server that meets its SLO up to `kneePerS`; the generator reaches `limitPerS`. */
  const search = (kneePerS: number, limitPerS = Number.POSITIVE_INFINITY) => {
    const seen: number[] = [];
    const measure = async (ratePerS: number) => {
      seen.push(ratePerS);
      const summary = {
        interrupted: false,
        requests: { sent: 1, completed: 1 },
        latencies: {},
        throughput: {},
        validity: { valid: ratePerS <= limitPerS },
        slo: { met: ratePerS <= kneePerS },
        plan: {},
      } as unknown as LoadSummary;
      return { summary, folder: null };
    };
    return { seen, result: findKnee({ lowPerS: 1, highPerS: 100, measure }) };
  };

  test("bisection closes in on the knee from both sides", async () => {
    const { highestMetPerS, firstMissedPerS, note } = await search(37).result;
    expect([highestMetPerS! <= 37, firstMissedPerS! > 37, firstMissedPerS! / highestMetPerS! <= 1.1, note]).toEqual([
      true,
      true,
      true,
      null,
    ]);
  });

  test("a knee outside the two rates is said, and costs no further runs", async () => {
    const below = search(0.5);
    expect(await below.result).toMatchObject({ highestMetPerS: null, firstMissedPerS: 1, note: expect.stringContaining("begin lower") });
    expect(below.seen).toEqual([1]);
    expect(await search(500).result).toMatchObject({
      highestMetPerS: 100,
      firstMissedPerS: null,
      note: expect.stringContaining("end higher"),
    });
  });

  test("where the generator is the limit, it says so instead of blaming the server", async () => {
    const { firstMissedPerS, note } = await search(500, 20).result;
    expect(firstMissedPerS).toBeGreaterThan(20);
    expect(note).toContain("INVALID");
  });

  test("of steps: the last rate before the first miss, even if a later one is met by luck", () => {
    const group = (ratePerS: number, met: boolean) => ({
      by: "step",
      ratePerS,
      requests: { sent: 1, completed: 1 },
      latencies: {},
      slo: { met },
    });
    const summary = (groups: object[]) => ({ groups, validity: { valid: true }, interrupted: false }) as unknown as LoadSummary;
    expect(kneeOfSteps(summary([group(1, true), group(2, true), group(4, false), group(8, true)]))).toMatchObject({
      highestMetPerS: 2,
      firstMissedPerS: 4,
    });
    expect(kneeOfSteps(summary([]))).toBeNull();
  });
});

test("swap wait is the union of the swaps within a wait", () => {
  const swaps = [
    { from: 100, to: 200 },
    { from: 150, to: 250 },
    { from: 400, to: 500 },
  ];
  expect(overlapMs({ from: 120, to: 450 }, swaps)).toBe(130 + 50);
  expect(overlapMs({ from: 250, to: 400 }, swaps)).toBe(0);
  expect(overlapMs({ from: 0, to: 1000 }, [])).toBe(0);
});

test("another host's clock is read from the exchange with the shortest round trip; the same host's is our own", () => {
  const clock = new ServerClock(false);
  clock.see(1000, 1100, 6080);
  clock.see(2000, 2010, 7005);
  clock.see(3000, 3200, 9000);
  expect(clock.offsetMs).toBe(5000);
  const same = new ServerClock(true);
  same.see(1000, 1100, 6080);
  expect(same.offsetMs).toBe(0);
});

test("a step's throughput is over its steady part: warm-up takes nothing of it", async () => {
  const plan = loadPlanSchema.parse({
    arrivals: { pattern: "steps", ratesPerS: [10, 10] },
    durationS: 4,
    warmUpS: 1,
    coolDownS: 1,
    slo: "throughput>=9.5",
  });
  const schedule = await scheduleOf(plan);
  const records = [...schedule.arrivals!()].map(({ offsetMs, step }, index) =>
    record({
      index,
      step,
      offsetMs,
      phase: phaseAt(offsetMs, schedule),
      scheduledAt: offsetMs,
      sentAt: offsetMs,
      finishedAt: offsetMs + 1,
      e2eMs: 1,
    }),
  );
  const { groups } = figuresOf({
    plan,
    schedule,
    records,
    sessions: [{ startedAt: 0, baseAt: 0, fromMs: 0, toMs: 4000 }],
    cutOff: 0,
    eventLoopDelayMs: { p50: 0, p99: 0, max: 0 },
    peakInFlight: 1,
  });
  expect(groups.map(({ requests, slo }) => [requests.sent, slo?.terms[0]?.observed])).toEqual([
    [10, 10],
    [10, 10],
  ]);
});
