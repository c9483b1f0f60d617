import { describe, expect, test } from "vitest";
import { seededRandom } from "../../maths/seeded-random.ts";
import { ArrivalRate } from "../../workers/gpu/arrival-rate.ts";
import { BatchingCurve } from "../../workers/gpu/batching-curve.ts";
import { exponentialDraw } from "../../workers/gpu/random-times.ts";
import { RunningAverage } from "../../workers/gpu/running-average.ts";
import { TrafficMeter } from "../../workers/gpu/traffic-meter.ts";

/** The worker's estimators on a clock of the tests. */

const MINUTE_MS = 60_000;
const slots = { student: 8, talker: 8 };

/** Poisson arrivals, in groups, at a rate that may change; `look` is told the estimate and its error once a second. */
function arrive(
  minutes: number,
  perMinute: (minute: number) => number,
  look: (minute: number, perMinute: number, error: number) => void,
  { seed = 1, group = 1 } = {},
): void {
  const random = seededRandom(seed);
  const exponential = exponentialDraw(random);
  const rate = new ArrivalRate(0);
  let next = exponential((group * MINUTE_MS) / perMinute(0));
  for (let now = 1000; now <= minutes * MINUTE_MS; now += 1000) {
    for (; next <= now; next += exponential((group * MINUTE_MS) / perMinute(next / MINUTE_MS))) rate.add(group, next);
    const { perMs, error } = rate.estimate(now);
    look(now / MINUTE_MS, perMs * MINUTE_MS, error * MINUTE_MS);
  }
}

describe("arrival rates", () => {
  test.each([1, 2, 3, 4, 5])(
    "a rate that jumps to five times is known to within a factor of 1.6 after three minutes, one that falls back after six (seed %i)",
    (seed) => {
      const rate = (minute: number) => (minute >= 20 && minute < 35 ? 150 : 30);
      const off: string[] = [];
      arrive(
        60,
        rate,
        (minute, perMinute) => {
          const settled = (minute > 23 && minute < 35) || minute > 41;
          if (settled && Math.abs(Math.log(perMinute / rate(minute))) > Math.log(1.6)) off.push(`${minute}: ${perMinute}`);
        },
        { seed },
      );
      expect(off).toEqual([]);
    },
  );

  test("a day's slow change is followed", () => {
    const rate = (minute: number) => 40 * (1 + 0.8 * Math.sin((2 * Math.PI * minute) / 1440));
    let [looks, error] = [0, 0];
    arrive(1440, rate, (minute, perMinute) => {
      if (minute < 10) return;
      looks++;
      error += Math.abs(perMinute / rate(minute) - 1);
    });
    expect(error / looks).toBeLessThan(0.12);
  });

  // Groups look like changes now and then, so their error is stated somewhat too small.
  test.each([
    [1, 1.3],
    [8, 1.6],
  ])("steady traffic in groups of %i is told to within the error stated", (group, most) => {
    const ratios: number[] = [];
    let relative = 0;
    arrive(
      2000,
      () => 30,
      (minute, perMinute, error) => {
        if (minute < 20 || minute % 20 !== 0) return;
        ratios.push((perMinute - 30) / error);
        relative += error / 30;
      },
      { group, seed: 7 },
    );
    const spread = Math.sqrt(ratios.reduce((sum, ratio) => sum + ratio ** 2, 0) / ratios.length);
    expect(spread).toBeGreaterThan(0.7);
    expect(spread).toBeLessThan(most);
    // Twice the time constant brings 433 acceptances: 4.8 % for single ones, √8 times that for groups of eight.
    expect(relative / ratios.length / Math.sqrt(group)).toBeGreaterThan(0.045);
    expect(relative / ratios.length / Math.sqrt(group)).toBeLessThan(0.06);
  });

  test("a batch that comes at one moment is no new rate, however it is counted", () => {
    const estimates = [1, 1000].map((parts) => {
      const rate = new ArrivalRate(0);
      for (let i = 0; i < 600; i++) rate.add(1, 1000 * i);
      for (let i = 0; i < parts; i++) {
        rate.add(1000 / parts, 600_000);
        rate.estimate(600_000);
      }
      return rate.estimate(660_000);
    });
    expect(estimates[1]!.perMs).toBeCloseTo(estimates[0]!.perMs, 12);
    expect(estimates[1]!.perMs * 1000).toBeLessThan(3.5);
    expect(estimates[1]!.error * 1000).toBeGreaterThan(2);
  });

  test("silence is believed after minutes, a single job is no storm", () => {
    const rate = new ArrivalRate(0);
    expect(rate.estimate(0)).toEqual({ perMs: 0, error: 0 });
    for (let i = 0; i < 600; i++) rate.add(1, 1000 * i);
    expect(rate.estimate(600_000).perMs * 1000).toBeCloseTo(1, 1);
    expect(rate.estimate(600_000 + 3 * MINUTE_MS).perMs * 1000).toBeLessThan(0.15);
    const sparse = new ArrivalRate(0);
    for (let i = 0; i < 20; i++) sparse.add(1, 10 * MINUTE_MS * i);
    const now = 190 * MINUTE_MS + 1;
    expect(sparse.estimate(now).perMs * 10 * MINUTE_MS).toBeLessThan(2.5);
  });
});

test("a running average states its standard error", () => {
  const exponential = exponentialDraw(seededRandom(5));
  const average = new RunningAverage(20);
  expect([average.value, average.error]).toEqual([null, null]);
  average.add(4000);
  expect([average.value, average.error]).toEqual([4000, null]);
  const ratios: number[] = [];
  for (let i = 1; i <= 40_000; i++) {
    average.add(exponential(4000));
    if (i % 200 === 0) ratios.push((average.value! - 4000) / average.error!);
  }
  const spread = Math.sqrt(ratios.reduce((sum, ratio) => sum + ratio ** 2, 0) / ratios.length);
  expect(spread).toBeGreaterThan(0.8);
  expect(spread).toBeLessThan(1.3);
});

test("service times that change are followed within some 60 jobs", () => {
  const meter = new TrafficMeter(slots);
  let now = 0;
  const serve = (ms: number, jobs: number) => {
    for (let i = 0; i < jobs; i++, now += ms) meter.served(meter.picked("student", now), now + ms, ms);
  };
  serve(1000, 100);
  expect(meter.serviceMs("student")).toBeCloseTo(1000, 6);
  serve(5000, 60);
  expect(meter.serviceMs("student")! / 5000).toBeGreaterThan(0.89);
  serve(1000, 60);
  expect(meter.serviceMs("student")! / 1000).toBeLessThan(1.5);
});

describe("the batching curve", () => {
  /** Jobs of `work` tokens that all had the same company, at 100 tokens a second alone, give or take `noise`. */
  const measure = (curve: BatchingCurve, exponent: number, jobs: number, noise: number, random: () => number) => {
    for (let i = 0; i < jobs; i++) {
      const running = 1 + Math.floor(8 * random());
      const work = 20 + Math.floor(500 * random());
      const heldMs = (work * 10) / running ** (exponent - 1) / Math.exp(noise * (2 * random() - 1));
      curve.add({ heldMs, meanLogRunning: Math.log(running), work });
    }
  };

  test("is 1 until known, and then within the error stated", () => {
    const curve = new BatchingCurve();
    expect([curve.exponent, curve.exponentError]).toEqual([1, null]);
    curve.add({ heldMs: 1000, meanLogRunning: Math.log(8), work: 100 });
    expect([curve.exponent, curve.exponentError]).toEqual([1, null]);
    const random = seededRandom(3);
    measure(curve, 0.6, 300, 0.3, random);
    expect(curve.exponentError).toBeGreaterThan(0.005);
    expect(curve.exponentError).toBeLessThan(0.05);
    expect(Math.abs(curve.exponent - 0.6)).toBeLessThan(3 * curve.exponentError!);
    expect(curve.aloneMs({ heldMs: 1000, meanLogRunning: Math.log(8) })).toBeCloseTo(1000 * 8 ** (curve.exponent - 1), 9);
  });

  test("another batching, as after other settings, is found within some hundred jobs", () => {
    const curve = new BatchingCurve();
    const random = seededRandom(4);
    measure(curve, 0.9, 300, 0.1, random);
    expect(curve.exponent).toBeCloseTo(0.9, 1);
    measure(curve, 0.4, 400, 0.1, random);
    expect(curve.exponent).toBeCloseTo(0.4, 1);
  });

  test("jobs that did nothing, or always had the same company, tell nothing", () => {
    const curve = new BatchingCurve();
    for (let i = 0; i < 50; i++) curve.add({ heldMs: 1000 + i, meanLogRunning: Math.log(8), work: 100 });
    curve.add({ heldMs: 0, meanLogRunning: 0, work: 100 });
    curve.add({ heldMs: 100, meanLogRunning: 0, work: 0 });
    curve.add({ heldMs: 100, meanLogRunning: 0, work: null });
    expect([curve.exponent, curve.exponentError]).toEqual([1, null]);
  });
});

test("the cost of a swap is kept by direction and by where the model came from", () => {
  const meter = new TrafficMeter(slots);
  expect(meter.measured("student", 0)).toMatchObject({ loadMs: { first: null, again: null, woken: null } });
  meter.swapped("student", 41_000, 40_000, "first");
  meter.swapped("talker", 21_000, 20_000, "first");
  expect(meter.rates(0).student.loadMs).toBe(40_000);
  meter.swapped("student", 11_000, 10_000, "again");
  meter.swapped("student", 13_000, 12_000, "again");
  // The slow first load from the disk won't come again.
  expect(meter.rates(0).student.loadMs).toBeGreaterThan(10_000);
  expect(meter.rates(0).student.loadMs).toBeLessThan(12_000);
  expect(meter.rates(0).talker.loadMs).toBe(20_000);
  meter.swapped("student", 1500, 500, "woken");
  expect(meter.rates(0).student.loadMs).toBe(500);
  const { loadMs, loadMsError } = meter.measured("student", 0);
  expect(loadMs).toMatchObject({ first: 40_000, woken: 500 });
  expect(loadMsError.first).toBeNull();
  expect(loadMsError.again).toBeGreaterThan(0);
});
