import { readFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { MathllmError } from "../../queues/errors.ts";
import { DEFAULT_DEADLINES_MS, type Policy } from "./policy.ts";
import { simulate } from "./simulator.ts";
import { perModel, swapDraw, syntheticTraffic } from "./synthetic-traffic.ts";

/** Ten systems with the least mean waits that any policy can reach on them; ships with the project. */
export const OPTIMUM_TABLE = path.join(import.meta.dirname, "policy-optimum.jsonl");

/** Erlang-6. */
export const DEFAULT_SWAP_CV = 1 / Math.sqrt(6);

const positiveMs = z.number().positive().max(86_400_000);
const timeMs = z.union([positiveMs, z.strictObject({ student: positiveMs, talker: positiveMs })]);
const exponent = z.number().min(0).max(1);

/** One system, and the least means that any policy can reach on it, where they are known. Times in milliseconds. */
const settingSchema = z.strictObject({
  slots: z.number().int().min(1).max(256),
  /** ρ = λ · service / slots^a. */
  load: z.number().positive().max(100),
  /** The Student's share. */
  mix: z.number().min(0).max(1),
  /** Mean of a job alone. */
  serviceMs: timeMs,
  serviceCv: z.number().min(0).max(20).default(1),
  swapMs: timeMs,
  /** Erlang-6 unless told otherwise. */
  swapCv: z.number().min(0).max(5).default(DEFAULT_SWAP_CV),
  /** a: r jobs at once are together r^a times as fast as one. */
  batchExponent: z.union([exponent, z.strictObject({ student: exponent, talker: exponent })]).default(1),
  optimalMeanWaitMs: positiveMs.optional(),
  /** From acceptance to end: where jobs slow each other it is this that counts. */
  optimalMeanEndToEndMs: positiveMs.optional(),
});
export type Setting = z.infer<typeof settingSchema>;

/** What a policy did on one setting, means over the seeds; the ratios are to the least possible, null where that isn't known. */
export interface SettingResult {
  setting: Setting;
  meanWaitMs: number;
  meanEndToEndMs: number;
  maxWaitMs: number;
  swapsPer100Jobs: number;
  waitRatio: number | null;
  endToEndRatio: number | null;
  /** The one that counts: end to end where that optimum is known, else the wait. */
  ratio: number | null;
}

/** Reads a table: one JSON object a line. Throws `invalid-configuration` with the line's number. */
export function readSettings(file: string): Setting[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new MathllmError("invalid-configuration", `--against: expected a file with one setting a line; ${(error as Error).message}.`);
  }
  const settings = text.split("\n").flatMap((line, i) => (line.trim() === "" ? [] : [parseSetting(line, `${file}, line ${i + 1}`)]));
  if (settings.length === 0) throw new MathllmError("invalid-configuration", `--against: ${file} has no line.`);
  return settings;
}

function parseSetting(line: string, where: string): Setting {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw new MathllmError("invalid-configuration", `--against: ${where}: expected a JSON object; ${(error as Error).message}.`);
  }
  const parsed = settingSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new MathllmError("invalid-configuration", `--against: ${where}: ${z.prettifyError(parsed.error)}`);
}

/** Plays one setting with `seeds` seeds from 1 on, `jobs` jobs each, all of class normal. */
export function playSetting(setting: Setting, policy: Policy, jobs: number, seeds: number): SettingResult {
  const { slots, load, mix, serviceMs, serviceCv, swapMs, swapCv, batchExponent } = setting;
  const results = Array.from({ length: seeds }, (_, i) =>
    simulate({
      jobs: syntheticTraffic({
        jobs,
        serviceMs,
        serviceCv,
        slots,
        batchExponent,
        mix,
        load,
        burst: 1,
        classes: { normal: 1 },
        seed: i + 1,
      }),
      policy,
      slots,
      batchExponent: perModel(batchExponent),
      swapMs: perModel(swapMs),
      drawSwapMs: swapDraw(swapCv, i + 1),
      deadlinesMs: DEFAULT_DEADLINES_MS,
    }),
  );
  const mean = (value: (result: (typeof results)[number]) => number) => results.reduce((sum, result) => sum + value(result), 0) / seeds;
  const meanWaitMs = mean((result) => result.meanWaitMs);
  const meanEndToEndMs = mean((result) => result.meanEndToEndMs);
  const ratioTo = (value: number, optimum: number | undefined) => (optimum === undefined ? null : value / optimum);
  const waitRatio = ratioTo(meanWaitMs, setting.optimalMeanWaitMs);
  const endToEndRatio = ratioTo(meanEndToEndMs, setting.optimalMeanEndToEndMs);
  return {
    setting,
    meanWaitMs,
    meanEndToEndMs,
    maxWaitMs: Math.max(...results.map((result) => result.maxWaitMs)),
    swapsPer100Jobs: mean((result) => result.swapsPer100Jobs),
    waitRatio,
    endToEndRatio,
    ratio: endToEndRatio ?? waitRatio,
  };
}
