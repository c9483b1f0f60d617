import { setTimeout as delay } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import type { Engine, EngineMetrics } from "../../workers/engines/engine.ts";
import { type SampleSource, sampleOf, TelemetrySampler } from "../../workers/gpu/telemetry-sampler.ts";

const COUNTERS: EngineMetrics = {
  requestsRunning: 3,
  requestsWaiting: 2,
  promptTokensTotal: 1000,
  completionTokensTotal: 500,
  draftTokensTotal: 50,
  draftAcceptedTokensTotal: 40,
  kvCacheUsage: 0.25,
  preemptionsTotal: 1,
  prefixCacheHitTokensTotal: 320,
  prefixCacheQueryTokensTotal: 800,
};
const NOTHING = Object.fromEntries(Object.keys(sampleOf(null, null)).map((name) => [name, null]));
const earlier = { metrics: COUNTERS, at: 10_000 };
const later = (metrics: Partial<EngineMetrics>, at = 12_000) => sampleOf({ metrics: { ...COUNTERS, ...metrics }, at }, earlier);

describe("rates", () => {
  test("of what was counted between two samples", () => {
    const now = later({
      promptTokensTotal: 1300,
      completionTokensTotal: 601,
      draftTokensTotal: 80,
      draftAcceptedTokensTotal: 60,
      prefixCacheHitTokensTotal: 350,
      prefixCacheQueryTokensTotal: 890,
    });
    expect(now).toEqual({
      requestsRunning: 3,
      requestsWaiting: 2,
      kvCacheUsage: 0.25,
      preemptionsTotal: 1,
      prefixCacheHitRate: 0.3333,
      draftAcceptanceRate: 0.6667,
      draftTokensTotal: 80,
      draftAcceptedTokensTotal: 60,
      promptTokensPerSecond: 150,
      tokensPerSecond: 50.5,
    });
  });

  test("nothing counted: no tokens a second, and no share of nothing", () => {
    expect(later({})).toMatchObject({ tokensPerSecond: 0, promptTokensPerSecond: 0, prefixCacheHitRate: null, draftAcceptanceRate: null });
  });

  test("the first sample of a server has none", () => {
    expect(sampleOf(earlier, null)).toMatchObject({ requestsRunning: 3, tokensPerSecond: null, prefixCacheHitRate: null });
  });

  test("counters that start anew make none, rather than negative or half ones", () => {
    const now = later({ completionTokensTotal: 10, promptTokensTotal: 1200, draftTokensTotal: 60, draftAcceptedTokensTotal: 45 });
    expect(now).toMatchObject({ requestsRunning: 3, tokensPerSecond: null, promptTokensPerSecond: null, draftAcceptanceRate: null });
    expect(later({ prefixCacheQueryTokensTotal: 5, prefixCacheHitTokensTotal: 400 }).prefixCacheHitRate).toBeNull();
  });

  test("without a server, and with one that doesn't count something", () => {
    expect(sampleOf(null, earlier)).toEqual(NOTHING);
    expect(later({ draftTokensTotal: null, draftAcceptedTokensTotal: null, kvCacheUsage: Number.NaN })).toMatchObject({
      draftAcceptanceRate: null,
      kvCacheUsage: null,
      tokensPerSecond: 0,
    });
  });

  test("whatever is counted, a field is null or a number that is not below 0, always of the same names", () => {
    const value = fc.oneof(
      fc.double({ min: 0, max: 1e12, noDefaultInfinity: true }),
      fc.constantFrom(null, Number.NaN, Number.POSITIVE_INFINITY),
    );
    const counters = fc.record({
      metrics: fc.record(Object.fromEntries(Object.keys(COUNTERS).map((name) => [name, value]))) as unknown as fc.Arbitrary<EngineMetrics>,
      at: fc.integer({ min: 0, max: 100_000 }),
    });
    const maybe = fc.option(counters, { nil: null });
    fc.assert(
      fc.property(maybe, maybe, (now, before) => {
        const sample = sampleOf(now, before);
        expect(Object.keys(sample)).toEqual(Object.keys(NOTHING));
        for (const field of Object.values(sample)) expect(field === null || (Number.isFinite(field) && field >= 0)).toBe(true);
      }),
    );
  });
});

describe("samples", () => {
  let sampler: TelemetrySampler | undefined;
  const samples: Record<string, unknown>[] = [];
  const times: number[] = [];

  afterEach(() => {
    sampler?.stop();
    samples.length = 0;
    times.length = 0;
  });

  const engineOf = (metrics: () => Promise<EngineMetrics>) => ({ metrics }) as Engine;
  function start(sampleMs: number, source: () => Partial<SampleSource>): void {
    const write = (kind: string, record: object) => {
      samples.push({ kind, ...record });
      times.push(performance.now());
    };
    const rest: SampleSource = {
      residentModel: null,
      engine: null,
      depths: { student: 0, talker: null },
      running: 0,
      rssBytes: 1,
      modelServerRssBytes: null,
      modelServerVramBytes: null,
      cache: null,
      gpu: null,
    };
    sampler = new TelemetrySampler({ write }, () => ({ ...rest, ...source() }), sampleMs);
    sampler.start();
  }

  test("have the same fields with and without a GPU, with and without a model server", async () => {
    let whole = false;
    const gpu = {
      vramUsedBytes: 1,
      vramTotalBytes: 2,
      vramFreeBytes: 1,
      gpuPercent: 97,
      temperatureCelsius: 62,
      powerWatts: 203.41,
      smClockMhz: 2797,
    };
    const engine = engineOf(async () => COUNTERS);
    start(20, () => (whole ? { engine, gpu, modelServerVramBytes: 8, modelServerRssBytes: 9 } : {}));
    await expect.poll(() => samples.length).toBeGreaterThan(2);
    const bare = samples.at(-1)!;
    whole = true;
    await expect.poll(() => samples.at(-1)?.tokensPerSecond).not.toBeNull();
    const full = samples.at(-1)!;
    expect(Object.keys(full)).toEqual(Object.keys(bare));
    expect(full).toMatchObject({ kind: "sample", ...gpu, modelServerVramBytes: 8, modelServerRssBytes: 9, tokensPerSecond: 0 });
    expect(bare).toMatchObject({ kind: "sample", ...NOTHING, vramUsedBytes: null, gpuPercent: null, smClockMhz: null });
    for (const value of [bare.memAvailableBytes, bare.cpuPercent]) expect(value).toEqual(expect.any(Number));
    expect(JSON.parse(JSON.stringify(bare))).toEqual(bare);
  });

  test("tell a second's tokens of one server, and never those of two together", async () => {
    let total = 0;
    const engine = () => engineOf(async () => ({ ...COUNTERS, promptTokensTotal: total, completionTokensTotal: total }));
    let current = engine();
    start(100, () => ({ engine: current }));
    const counting = setInterval(() => {
      total += 10;
    }, 10);
    await expect.poll(() => samples.length).toBe(4);
    clearInterval(counting);
    const rate = samples.at(-1)!.tokensPerSecond as number;
    expect(rate).toBeGreaterThan(300);
    expect(rate).toBeLessThan(1500);
    current = engine();
    await expect.poll(() => samples.at(-1)?.tokensPerSecond).toBeNull();
    await expect.poll(() => samples.at(-1)?.tokensPerSecond).toBe(0);
  });

  test("are not held up by a server that never answers, which is asked once", async () => {
    let asked = 0;
    const engine = engineOf(() => {
      asked++;
      return new Promise(() => {});
    });
    start(600, () => ({ engine }));
    const startedAt = performance.now();
    await expect.poll(() => samples.length, { timeout: 5000 }).toBe(3);
    expect(times[0]! - startedAt).toBeLessThan(600 + 500 + 200);
    expect(asked).toBe(1);
    expect(samples.at(-1)).toMatchObject(NOTHING);
  });

  test("take an answer that came too late for the one before", async () => {
    const engine = engineOf(async () => {
      await delay(900);
      return COUNTERS;
    });
    start(700, () => ({ engine }));
    await expect.poll(() => samples.map(({ requestsRunning }) => requestsRunning), { timeout: 5000 }).toEqual([null, 3]);
  });

  test("go on when the server fails, and the next server is asked at once", async () => {
    const silent = engineOf(() => new Promise(() => {}));
    const failing = engineOf(async () => {
      throw new Error("connect ECONNREFUSED");
    });
    let engine = failing;
    start(600, () => ({ engine }));
    await expect.poll(() => samples.length, { timeout: 5000 }).toBe(1);
    expect(samples[0]).toMatchObject(NOTHING);
    engine = silent;
    await expect.poll(() => samples.length, { timeout: 5000 }).toBe(2);
    engine = engineOf(async () => COUNTERS);
    await expect.poll(() => samples.length, { timeout: 5000 }).toBe(3);
    expect(samples[2]).toMatchObject({ requestsRunning: 3 });
  });

  test("end with stop, one under way too", async () => {
    const engine = engineOf(() => delay(200, COUNTERS));
    start(100, () => ({ engine }));
    await delay(150);
    sampler!.stop();
    await delay(600);
    expect(samples).toEqual([]);
  });
});
