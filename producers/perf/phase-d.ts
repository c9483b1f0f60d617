import { spawnSync } from "node:child_process";
import os from "node:os";
import type { Config } from "../../queues/config.ts";
import type { Phase } from "../report/schema.ts";
import type { Measured, PhaseContext, PhaseRunner } from "./phase.ts";
import type { Settings } from "./settings.ts";
import { closedRun, profileSettings } from "./shapes.ts";
import { oomTarget, p95Target, SUCCESS_SHARE, successTarget, TALKER_A_P95_MS, TALKER_B_P95_MS } from "./targets.ts";

const MOST_THREADS = 8;
/** As in phase B. */
const WORTHWHILE_GAIN = 0.05;

interface Option {
  name: "A" | "B";
  /** In words. */
  deployment: string;
  settings: Settings;
  targetMs: number;
}

interface MeasuredOption {
  option: Option;
  alone: Measured;
  explaining: Measured;
}

/**
 * B, the offloaded Talker: on llama-server without VRAM beside the Student where that program is there; else, on the same engine, with its
 * layers on the CPU and up to 8 threads, one core left free. undefined: its model is none for llama.cpp, and the user named no option.
 */
export function optionB(config: Config, given: Settings, hasLlamaServer: boolean): Option | undefined {
  if (Object.keys(given).length > 0) return { name: "B", deployment: "as the user described", settings: given, targetMs: TALKER_B_P95_MS };
  const { mode } = config.profiles.talker;
  if (mode !== "embedded" && mode !== "llamacpp") return undefined;
  // A core is left for the API and Redis: threads that spin at their barriers on busy cores are slower than fewer.
  const threads = String(Math.max(Math.min(os.availableParallelism() - 1, MOST_THREADS), 1));
  const offloaded = { TALKER_NGL: "0", TALKER_THREADS: threads };
  return hasLlamaServer
    ? {
        name: "B",
        deployment: `llama-server on ${threads} CPU thread(s), beside the Student`,
        settings: { ...offloaded, TALKER_MODE: "llamacpp", TALKER_CORESIDENT: "1" },
        targetMs: TALKER_B_P95_MS,
      }
    : { name: "B", deployment: `${mode}, on ${threads} CPU thread(s), taking turns`, settings: offloaded, targetMs: TALKER_B_P95_MS };
}

/** D, the Talker's deployment: option A as configured, taking turns with the Student; option B offloaded. Picks one. */
export const runPhaseD: PhaseRunner = async (context) => {
  const { config, choices, say } = context;
  const { status } = spawnSync(config.llamaServerBin, ["--version"], { stdio: "ignore", timeout: 10_000 });
  const turns = config.talkerCoresident ? "beside the Student" : "taking turns with the Student";
  const a: Option = { name: "A", deployment: `${config.profiles.talker.mode}, ${turns}`, settings: {}, targetMs: TALKER_A_P95_MS };
  const b = optionB(config, choices.talkerB, status === 0);
  const measured: MeasuredOption[] = [];
  for (const option of b === undefined ? [a] : [a, b]) measured.push(await measureOption(context, option));
  const best = pick(measured);
  const rows = measured.flatMap(({ alone, explaining }) => [alone.row, explaining.row]);
  const capacityPerS = best.alone.row.throughput?.requestsPerS ?? 0;
  say(`Talker: option ${best.option.name}, ${best.option.deployment}`);
  const phase: Phase = {
    id: "D",
    title: "Talker deployment",
    status: "measured",
    reason: null,
    startedAt: null,
    finishedAt: null,
    configuration: profileSettings(config.profiles.talker),
    targets: [
      p95Target(best.alone.row, best.option.targetMs, `Option ${best.option.name} (chosen): p95, the Talker alone`),
      oomTarget([best.alone.row, best.explaining.row]),
      successTarget([best.alone.row, best.explaining.row]),
    ],
    runs: rows,
    decision: { chosen: `Option ${best.option.name}: ${best.option.deployment}`, reason: reasonFor(best, measured) },
    notes: [
      `Option A is to keep a p95 of ${TALKER_A_P95_MS} ms, option B one of ${TALKER_B_P95_MS} ms. The Talker alone is judged; explained solutions also pay for the swaps.`,
      ...(b === undefined
        ? [`Option B was not measured: ${config.profiles.talker.mode} can't be offloaded; name its settings with --talker-b.`]
        : []),
    ],
    evidence: rows.flatMap(({ records }) => records ?? []),
  };
  return {
    phase,
    settings: best.option.settings,
    reasons: Object.fromEntries(Object.keys(best.option.settings).map((name) => [name, `phase D: option ${best.option.name}`])),
    capacities: capacityPerS > 0 ? { talker: capacityPerS } : {},
    graphs: {},
    limits: [],
  };
};

async function measureOption(context: PhaseContext, option: Option): Promise<MeasuredOption> {
  const { sizes, seed } = context;
  const id = option.name.toLowerCase();
  return context.withSystem(`talker-${id}`, option.settings, async (system) => {
    const settings = { option: option.name, deployment: option.deployment };
    const alone = { id: `${id}-alone`, label: `Option ${option.name}, the Talker alone, 1 at a time`, kind: "talker" as const };
    const explaining = { id: `${id}-explain`, label: `Option ${option.name}, explained solutions, 4 at once`, kind: "explain" as const };
    const more = { seed, settings };
    return {
      option,
      alone: await context.measure(system, {
        ...closedRun({ ...alone, shape: "stated", concurrency: 1 }, sizes, more),
        sloMs: option.targetMs,
      }),
      explaining: await context.measure(system, closedRun({ ...explaining, shape: "natural", concurrency: 4 }, sizes, more)),
    };
  });
}

const p95Of = ({ row }: Measured) => row.latencies.e2eMs?.p95.value ?? Number.POSITIVE_INFINITY;
const intervalOf = ({ row }: Measured) => {
  const { low, high } = row.latencies.e2eMs?.p95 ?? { low: null, high: null };
  return low === null || high === null ? null : { low, high };
};
const isWhole = ({ row }: Measured) => row.oomCount === 0 && (row.successRate ?? 0) >= SUCCESS_SHARE;
const keepsTarget = ({ alone, explaining, option }: MeasuredOption) =>
  isWhole(alone) && isWhole(explaining) && p95Of(alone) <= option.targetMs;

/** One that keeps its own target goes before one that doesn't; then explained solutions' p95 decides: A stays unless B is 5 % faster beyond noise. */
export function pick([a, b]: MeasuredOption[]): MeasuredOption {
  if (b === undefined || keepsTarget(a!) !== keepsTarget(b)) return b === undefined || keepsTarget(a!) ? a! : b;
  const isBeyondNoise = (intervalOf(b.explaining)?.high ?? Number.POSITIVE_INFINITY) < (intervalOf(a!.explaining)?.low ?? 0);
  return isBeyondNoise && p95Of(b.explaining) < p95Of(a!.explaining) * (1 - WORTHWHILE_GAIN) ? b : a!;
}

function reasonFor(best: MeasuredOption, measured: readonly MeasuredOption[]): string {
  const figures = measured
    .map(
      ({ option, alone, explaining }) =>
        `option ${option.name}: p95 ${Math.round(p95Of(alone))} ms alone (target ${option.targetMs} ms), ${Math.round(p95Of(explaining))} ms explained`,
    )
    .join("; ");
  if (measured.length === 1) return `${figures}; there was no other.`;
  const keeping = measured.filter(keepsTarget);
  if (keeping.length === 1) return `${figures}. Only ${best.option.name} keeps its target.`;
  const rule = `explained solutions decide, and B has to be at least ${WORTHWHILE_GAIN * 100} % faster, beyond noise`;
  return `${figures}. ${keeping.length === 0 ? "Neither keeps its target" : "Both keep their targets"}, so ${rule}.`;
}
