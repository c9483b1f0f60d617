import type { Phase } from "../report/schema.ts";
import { judged } from "../report/schema.ts";
import type { Measured, PhaseContext, PhaseRunner } from "./phase.ts";
import type { Settings } from "./settings.ts";
import { closedRun, profileSettings } from "./shapes.ts";
import { SPECULATION_GAIN, successTarget } from "./targets.ts";
import { acceptanceOf } from "./traces.ts";

const CONCURRENCIES = [1, 4];

interface Side {
  on: boolean;
  runs: Measured[];
}

const settingsOf = (on: boolean): Settings => ({ STUDENT_SPECULATIVE_ENABLED: on ? "1" : "0" });

/** C, speculative decoding on and off, one request at a time and four at once: kept if both are at least 20 % faster and as right. */
export const runPhaseC: PhaseRunner = async (context) => {
  const { config, say } = context;
  const { speculative, mode } = config.profiles.student;
  const base = {
    id: "C" as const,
    title: "Speculative decoding",
    startedAt: null,
    finishedAt: null,
    configuration: { ...profileSettings(config.profiles.student), STUDENT_DRAFT_MODEL: speculative.draftModel?.split("/").at(-1) ?? null },
  };
  const nothing = { settings: {}, reasons: {}, capacities: {}, graphs: {}, limits: [] };
  const skipped = (reason: string) => ({
    phase: { ...base, status: "skipped" as const, reason, targets: [], runs: [], decision: null, notes: [], evidence: [] },
    ...nothing,
  });
  if (mode === "ollama" || mode === "remote") return skipped(`STUDENT_MODE=${mode}: whether that server speculates is its own matter.`);
  if (speculative.draftModel === undefined && mode !== "vllm")
    return skipped("No draft model: set STUDENT_DRAFT_MODEL; `mathllm plan --draft` says whether one fits the Student.");

  const off = await measureSide(context, false);
  const on = await measureSide(context, true);
  const gains = CONCURRENCIES.map((_, i) => gainOf(off.runs[i]!, on.runs[i]!));
  const lowest = Math.min(...gains);
  const lessRight = isLessRight(off, on);
  const kept = lowest >= SPECULATION_GAIN && !lessRight;
  const chosen = kept ? on : off;
  const rows = [...off.runs, ...on.runs].map(({ row }) => row);
  const percent = (share: number) => `${(Math.abs(share) * 100).toFixed(0)} %`;
  const compared = (gain: number) => `${percent(gain)} ${gain < 0 ? "fewer" : "more"} tokens a second`;
  const figures = `${compared(gains[0]!)} one at a time, ${compared(gains[1]!)} four at once`;
  say(`speculation: ${figures}; ${kept ? "kept" : "left off"}`);
  const phase: Phase = {
    ...base,
    status: "measured",
    reason: null,
    targets: [
      judged({
        name: "Measured with and without",
        metric: "sides that served",
        runId: null,
        comparison: "at-least",
        threshold: 2,
        observed: [off, on].filter(({ runs }) => runs.every(({ row }) => row.requests.completed > 0)).length,
        unit: "count",
      }),
      successTarget(chosen.runs.map(({ row }) => row)),
    ],
    runs: rows,
    decision: {
      chosen: kept ? "Speculation on" : "Speculation off",
      reason: `${figures}; it is kept from ${percent(SPECULATION_GAIN)} on.${lessRight ? " Its answers are less often right, beyond chance." : ""}`,
    },
    notes: mode === "embedded" ? ["With a draft the embedded engine serves one request at a time, which costs it the batch."] : [],
    evidence: rows.flatMap(({ records }) => records ?? []),
  };
  const acceptance = on.runs.map((run) => acceptanceOf(run.row.label, run)).filter((graph) => graph !== null);
  return {
    phase,
    settings: speculative.enabled === kept ? {} : settingsOf(kept),
    reasons: { STUDENT_SPECULATIVE_ENABLED: `phase C: ${figures}` },
    capacities: {},
    graphs: { acceptance },
    limits: [],
  };
};

async function measureSide(context: PhaseContext, on: boolean): Promise<Side> {
  const { sizes, seed } = context;
  const word = on ? "on" : "off";
  const runs = await context.withSystem(`speculation-${word}`, settingsOf(on), async (system) => {
    const measured: Measured[] = [];
    for (const concurrency of CONCURRENCIES) {
      const label = `Speculation ${word}, ${concurrency === 1 ? "1 at a time" : `${concurrency} at once`}`;
      const spec = closedRun({ id: `${word}-${concurrency}`, label, kind: "student", shape: "natural", concurrency }, sizes, { seed });
      measured.push(await context.measure(system, { ...spec, settings: { speculation: on, concurrency } }));
    }
    return measured;
  });
  return { on, runs };
}

function gainOf(off: Measured, on: Measured): number {
  const [before, after] = [off, on].map(({ row }) => row.throughput?.tokensOutPerS ?? 0) as [number, number];
  return before === 0 ? 0 : after / before - 1;
}

/** Their Wilson intervals don't touch. */
function isLessRight(off: Side, on: Side): boolean {
  return off.runs.some(({ row }, i) => {
    const [before, after] = [row.accuracy, on.runs[i]!.row.accuracy];
    return before !== null && after !== null && after.high < before.low;
  });
}
