import { mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Checkpoint, fingerprintOf, type RunIdentity } from "../../producers/perf/checkpoint.ts";
import { draftTokens } from "../../producers/perf/measurement.ts";
import { MIX, rateFor } from "../../producers/perf/mixed-traffic.ts";
import { parsePhases } from "../../producers/perf/performance-run.ts";
import type { PhaseOutcome } from "../../producers/perf/phase.ts";
import { bestOf } from "../../producers/perf/phase-b.ts";
import { optionB } from "../../producers/perf/phase-d.ts";
import { growthBytes } from "../../producers/perf/process-memory.ts";
import { changedSettings, envText } from "../../producers/perf/settings.ts";
import { longPrompt } from "../../producers/perf/shapes.ts";
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

test("the rate for a utilisation: an explanation needs both models", () => {
  const rate = rateFor(0.5, MIX, { student: 10, talker: 5 });
  const busyS = rate * (0.6 / 10 + 0.2 / 5 + 0.2 * (1 / 10 + 1 / 5));
  expect(busyS).toBeCloseTo(0.5, 10);
});

test("long prompts begin at 2048 tokens, or at half a shorter context", () => {
  expect(longPrompt(512)).toEqual({ tokens: 256, byContext: true });
  expect(longPrompt(4096)).toEqual({ tokens: 2048, byContext: false });
});

test("growth is the end against the middle; neither a spike nor a first half that grows is any", () => {
  expect(growthBytes(Array.from({ length: 100 }, (_, i) => (i === 70 ? 900 : 100)))).toBe(0);
  expect(growthBytes(Array.from({ length: 100 }, (_, i) => Math.min(i, 45)))).toBe(0);
  expect(growthBytes(Array.from({ length: 100 }, (_, i) => i))).toBe(40);
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
