import { mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Checkpoint, fingerprintOf, type RunIdentity } from "../../producers/perf/checkpoint.ts";
import { draftTokens } from "../../producers/perf/measurement.ts";
import { MIX, rateFor } from "../../producers/perf/mixed-traffic.ts";
import { PerformanceRun, parsePhases } from "../../producers/perf/performance-run.ts";
import type { PhaseOutcome } from "../../producers/perf/phase.ts";
import { bestOf, latencyByRate, reasonFor, runPhaseB } from "../../producers/perf/phase-b.ts";
import { optionB, pick } from "../../producers/perf/phase-d.ts";
import { runPhaseE } from "../../producers/perf/phase-e.ts";
import { runPhaseG } from "../../producers/perf/phase-g.ts";
import { growthBytes } from "../../producers/perf/process-memory.ts";
import { changedSettings, envText } from "../../producers/perf/settings.ts";
import { longPrompt } from "../../producers/perf/shapes.ts";
import { QUICK_SIZES } from "../../producers/perf/sizes.ts";
import { readTelemetry, type TelemetryRecords } from "../../producers/perf/telemetry-file.ts";
import { residencyOf } from "../../producers/perf/traces.ts";
import { readConfig } from "../../queues/config.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-perf-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

test.each([
  [[], "ABCDEFG"],
  [["C", "a"], "AC"],
  [["A-D"], "ABCD"],
  [["A,F", "G"], "AFG"],
])("phases %j are %s", (texts, ids) => expect(parsePhases(texts).join("")).toBe(ids));

test.each(["H", "A-H", "all", "1"])("%s is no phase", (text) => expect(() => parsePhases([text])).toThrow(/Expected phases among A, B/));

describe("the choice of a setting", () => {
  const best = (...variants: [perS: number, isFit: boolean, spread?: number][]) =>
    variants.indexOf(
      bestOf(
        variants,
        ([, isFit]) => isFit,
        ([perS, , spread = 1]) => ({ perS, low: perS - spread, high: perS + spread }),
      ),
    );

  test("is the fastest that is fit; the configured one stays unless another is 5 % faster beyond noise", () => {
    expect(best([100, true], [104, true], [90, true])).toBe(0);
    expect(best([100, true], [106, true], [120, true])).toBe(2);
    expect(best([100, true], [106, true], [120, false])).toBe(1);
    expect(best([100, true], [106, true], [120, true, 30])).toBe(1);
    expect(best([100, true, 10], [106, true])).toBe(0);
    expect(best([100, false], [60, true])).toBe(1);
    expect(best([100, false], [60, false])).toBe(0);
  });
});

const measured = (p95Ms: number, { successRate = 1, low = p95Ms, high = p95Ms } = {}) => {
  const estimate = { value: p95Ms, low, high };
  return {
    row: { oomCount: 0, successRate, requests: { sent: 1, completed: 1 }, latencies: { e2eMs: { p95: estimate, mean: estimate } } },
  };
};

test("phase B doesn't call a slower setting faster that is chosen because the configured one misses its target", () => {
  const variant = (maxNumSeqs: number, p95Ms: number) =>
    ({ variant: { id: "", maxNumSeqs, kvCacheBits: 16 }, stated: measured(p95Ms), natural: measured(p95Ms) }) as never;
  const [configured, smaller] = [variant(8, 1700), variant(4, 1500)];
  expect(reasonFor(smaller, [configured, smaller])).toMatch(/What is configured misses the p95 target/);
  expect(reasonFor(smaller, [variant(2, 1500), smaller])).toMatch(/It keeps the p95 target and is at least 5 % faster/);
});

/** What a phase gets, with runs made up by `measure`. */
const contextOf = (measure: (id: string, spec: { settings?: object }) => unknown, rest: object = {}) =>
  ({
    config: readConfig({}),
    sizes: QUICK_SIZES,
    seed: 1,
    say: () => {},
    withSystem: (_name: string, _settings: object, body: (system: object) => unknown) => body({}),
    measure: async (_system: object, spec: { id: string; settings?: object }) => measure(spec.id, spec),
    ...rest,
  }) as never;

test("noise does not choose the KV cache of the number of sequences that is chosen", async () => {
  const meanMs = (id: string) => ({ "seqs-10-stated": 100, "seqs-10-kv-8-stated": 99 })[id] ?? 130;
  const { settings } = await runPhaseB(contextOf((id) => measured(meanMs(id)), { choices: { maxNumSeqs: [8, 10] } }));
  expect(settings).toEqual({ STUDENT_MAX_NUM_SEQS: "10", STUDENT_KV_CACHE_BITS: "16" });
});

test("each run of phase G names its policy by the setting that chooses it", async () => {
  const measure = (id: string, { settings }: { settings?: object }) => ({
    row: { ...measured(1).row, id, settings, swaps: 1, latencies: { queueWaitMs: null } },
    summary: { startedAt: 0, finishedAt: 1 },
    telemetry: telemetry({}),
  });
  const { phase } = await runPhaseG(contextOf(measure, { capacities: { student: 1, talker: 1 } }));
  expect(phase.runs.map(({ settings }) => settings)).toEqual(
    ["least-wait", "ge", "exhaustive", "fifo"].map((GPU_POLICY) => ({ GPU_POLICY })),
  );
});

test("phase E that is interrupted while it waits to kill the model server leaves no run unheard", async () => {
  const interrupted = new AbortController();
  const measure = (id: string) => {
    if (id === "sustained") return measured(1);
    setImmediate(() => interrupted.abort(new Error("interrupted")));
    return new Promise((_, reject) => interrupted.signal.addEventListener("abort", () => setTimeout(reject, 5, new Error("cut off"))));
  };
  const context = contextOf(measure, { signal: interrupted.signal, capacities: { student: 1, talker: 1 } });
  await expect(runPhaseE(context)).rejects.toThrow();
  // vitest fails on a rejection that nobody hears.
  await new Promise((resolve) => setTimeout(resolve, 20));
});

test("goodput on the way to the knee leaves out what missed the SLO", () => {
  const e2es = [100, 100, 5000, 5000];
  const step = {
    by: "step",
    value: "0",
    ratePerS: 10,
    latencies: { e2eMs: { p50: { value: 100 }, p95: { value: 5000 } } },
    slo: { met: false },
  };
  const graph = latencyByRate({
    summary: { groups: [step], plan: { slo: "e2e-p95<1600,errors<1%" } },
    records: e2es.map((e2eMs) => ({ phase: "steady", step: 0, status: "completed", truncated: false, e2eMs })),
  } as never);
  expect(graph!.points).toMatchObject([{ ratePerS: 10, goodputPerS: 5 }]);
});

describe("the Talker's option", () => {
  const option = (name: "A" | "B", alone: object, explaining: object) =>
    ({ option: { name, targetMs: name === "A" ? 1200 : 900 }, alone, explaining }) as never;
  const chosen = (a: never, b?: never) => pick(b === undefined ? [a] : [a, b]).option.name;

  test("is the one that keeps its target, then the one with faster explanations beyond noise", () => {
    const a = option("A", measured(1000), measured(2000));
    expect(chosen(a)).toBe("A");
    expect(chosen(a, option("B", measured(1000), measured(500)))).toBe("A");
    expect(chosen(option("A", measured(1300), measured(500)), option("B", measured(800), measured(2000)))).toBe("B");
    expect(chosen(a, option("B", measured(800), measured(1950)))).toBe("A");
    expect(chosen(a, option("B", measured(800), measured(1500, { high: 2100 })))).toBe("A");
    expect(chosen(a, option("B", measured(800), measured(1500)))).toBe("B");
  });

  test("that fails requests keeps nothing, and one that was hardly answered is no faster", () => {
    const a = option("A", measured(1300), measured(2000));
    expect(chosen(a, option("B", measured(500, { successRate: 0.4 }), measured(2000)))).toBe("A");
    expect(chosen(a, option("B", measured(1000), measured(500, { low: null, high: null } as never)))).toBe("A");
  });
});

test("a setting of option B that is a secret is refused: it would stand in the report", () => {
  const choices = { maxNumSeqs: [], talkerB: { TALKER_API_KEY: "hidden" } };
  expect(() => new PerformanceRun({ outDir: folder, env: {}, choices } as never)).toThrow(/got TALKER_API_KEY/);
});

test("the rate for a utilisation: an explanation needs both models", () => {
  const rate = rateFor(0.5, MIX, { student: 10, talker: 5 });
  const busyS = rate * (0.6 / 10 + 0.2 / 5 + 0.2 * (1 / 10 + 1 / 5));
  expect(busyS).toBeCloseTo(0.5, 10);
});

test("long prompts begin at 2048 tokens, or at half a shorter context", () => {
  expect(longPrompt(512)).toEqual({ tokens: 256, byContext: true });
  expect(longPrompt(4096)).toEqual({ tokens: 2048, byContext: false });
});

test("growth is what stays: neither a spike, nor a heap on its way to its size, nor a collection in the middle is any", () => {
  const series = (value: (i: number) => number) => growthBytes(Array.from({ length: 100 }, (_, i) => value(i)));
  expect(series((i) => (i === 70 ? 900 : 100))).toBe(0);
  expect(series((i) => Math.min(i, 45))).toBe(0);
  expect(series((i) => (i === 20 ? 99 : i < 50 ? 98 : i))).toBe(0);
  expect(series((i) => i)).toBe(40);
  expect(growthBytes([1, 2, 3])).toBeNull();
});

test("option B is llama-server beside the Student where it is there, else the CPU, else nothing", () => {
  const embedded = readConfig({});
  expect(optionB(embedded, {}, true)?.settings).toMatchObject({ TALKER_MODE: "llamacpp", TALKER_CORESIDENT: "1", TALKER_NGL: "0" });
  expect(optionB(embedded, {}, false)?.settings).toMatchObject({ TALKER_NGL: "0" });
  const vllm = readConfig({ TALKER_MODE: "vllm", TALKER_MODEL: "some/model" });
  expect(optionB(vllm, {}, true)).toBeUndefined();
  expect(optionB(vllm, { TALKER_NGL: "7" }, true)?.settings).toEqual({ TALKER_NGL: "7" });
});

test("settings are told apart and written so that they are read back", async () => {
  expect(changedSettings({ A: "1", B: "2" }, { B: "3", C: "4" })).toEqual([
    { name: "A", before: "1", after: null },
    { name: "B", before: "2", after: "3" },
    { name: "C", before: null, after: "4" },
  ]);
  const settings = { STUDENT_MODEL: "hf:owner/name:Q4_K_M", TALKER_MODEL: "/a folder/with #1.gguf", STUDENT_MAX_NUM_SEQS: "10" };
  const file = path.join(folder, "final.env");
  await writeFile(file, envText(settings, "first\nsecond"));
  const before = { ...process.env };
  try {
    for (const name of Object.keys(settings)) delete process.env[name];
    process.loadEnvFile(file);
    expect(process.env).toMatchObject(settings);
  } finally {
    process.env = before;
  }
});

const telemetry = (some: Partial<TelemetryRecords>): TelemetryRecords => ({
  samples: [],
  swaps: [],
  ooms: [],
  guardrails: [],
  jobs: 0,
  ...some,
});
const sample = (ts: number, rest: object = {}) => ({ ts, depths: {}, ...rest });

test("drafted tokens are counted over a restart of the model server, from the first sample on", () => {
  const at = (draftTokensTotal: number, draftAcceptedTokensTotal: number) => sample(0, { draftTokensTotal, draftAcceptedTokensTotal });
  expect(draftTokens(telemetry({ samples: [at(100, 50), at(160, 90), sample(0), at(10, 5), at(30, 20)] }))).toEqual({
    drafted: 90,
    accepted: 60,
  });
  expect(draftTokens(telemetry({ samples: [sample(0)] }))).toBeNull();
});

test("telemetry is read within its span; what is no record is passed over", async () => {
  const file = path.join(folder, "telemetry.jsonl");
  const lines = [
    { ts: 1, kind: "sample", depths: { student: 1 } },
    { ts: 5, kind: "sample", depths: { student: 2, talker: null }, residentModel: null },
    { ts: 6, kind: "swap", from: null, to: "student", reason: "first", drainMs: 0, totalMs: 3 },
    { ts: 7, kind: "oom" },
    { ts: 8, kind: "job" },
    { ts: 99, kind: "job" },
  ].map((line) => JSON.stringify(line));
  await writeFile(file, [...lines, "{broken", ""].join("\n"));
  const found = await readTelemetry(file, 2, 50);
  expect(found).toMatchObject({ samples: [{ ts: 5 }], swaps: [{ to: "student" }], ooms: [{ ts: 7 }], jobs: 1 });
});

test("who was resident when, from the swaps alone", () => {
  const run = {
    summary: { startedAt: 1000, finishedAt: 11_000 },
    telemetry: telemetry({
      samples: [sample(1500, { residentModel: "student", depths: { student: 3, talker: 0 } })],
      swaps: [{ ts: 6000, from: "student" as const, to: "talker" as const, reason: "empty", drainMs: 400, totalMs: 1000 }],
    }),
  };
  const { intervals, swaps, studentDepth } = residencyOf("x", "E", run as never);
  expect(intervals).toEqual([
    { model: "student", state: "resident", fromMs: 0, toMs: 4000 },
    { model: "student", state: "draining", fromMs: 4000, toMs: 4400 },
    { model: "talker", state: "loading", fromMs: 4400, toMs: 5000 },
    { model: "talker", state: "resident", fromMs: 5000, toMs: 10_000 },
  ]);
  expect(swaps).toEqual([{ atMs: 5000, from: "student", to: "talker", durationMs: 1000, reason: "empty" }]);
  expect(studentDepth).toEqual([[500, 3]]);

  const first = { ts: 3000, from: null, to: "talker" as const, reason: "empty", drainMs: 0, totalMs: 1000 };
  const loaded = { ...run, telemetry: telemetry({ samples: [sample(4000, { residentModel: "talker" })], swaps: [first] }) };
  expect(residencyOf("x", "E", loaded as never).intervals).toEqual([
    { model: "talker", state: "loading", fromMs: 1000, toMs: 2000 },
    { model: "talker", state: "resident", fromMs: 2000, toMs: 10_000 },
  ]);
});

describe("a run's folder", () => {
  const identity = (some: Partial<RunIdentity> = {}): RunIdentity => ({
    id: "one",
    startedAt: 1,
    mode: "quick",
    seed: 1,
    conditions: { STUDENT_MAX_NUM_SEQS: "8" },
    resumed: 0,
    commands: ["mathllm perf A"],
    phasesAsked: ["A"],
    ...some,
  });

  test("is gone on with by the same settings, and keeps what was found", async () => {
    const checkpoint = new Checkpoint(path.join(folder, "new"));
    await checkpoint.open(identity());
    expect(await checkpoint.outcome("A")).toBeNull();
    const outcome = { phase: { id: "A" }, settings: {} } as PhaseOutcome;
    await checkpoint.keep(outcome);
    const again = await checkpoint.open(identity({ id: "two", startedAt: 9, commands: ["mathllm perf B"], phasesAsked: ["B"] }));
    expect(again).toMatchObject({
      id: "one",
      startedAt: 1,
      resumed: 1,
      commands: ["mathllm perf A", "mathllm perf B"],
      phasesAsked: ["A", "B"],
    });
    expect(await checkpoint.outcome("A")).toEqual(outcome);
  });

  test("refuses other settings and says which", async () => {
    const checkpoint = new Checkpoint(folder);
    await checkpoint.open(identity());
    const other = identity({ mode: "full", conditions: { STUDENT_MAX_NUM_SEQS: "12" } });
    await expect(checkpoint.open(other)).rejects.toThrow(/STUDENT_MAX_NUM_SEQS: 8 then, 12 now\nmode: quick then, full now/);
    expect(fingerprintOf(other)).not.toBe(fingerprintOf(identity()));
  });

  test("that is damaged says so", async () => {
    await writeFile(path.join(folder, "run.json"), "{");
    await expect(new Checkpoint(folder).open(identity())).rejects.toThrow(/Expected JSON in .*run\.json/);
  });
});
