import type { Graphs, Phase } from "../report/schema.ts";
import type { Measured, PhaseContext, PhaseRunner, RunSpec } from "./phase.ts";
import { closedRun, longPrompt, profileSettings, STATED_MAX_TOKENS } from "./shapes.ts";
import { oomTarget, p95Target, STUDENT_BATCH_P95_MS, STUDENT_SINGLE_P95_MS, successTarget } from "./targets.ts";
import { spectrumOf, waterfallOf } from "./traces.ts";

const BATCHES = [2, 3, 4];

/** The stated runs of the baseline; the final configuration is measured by the same ones. */
export function baselineRuns({ sizes, seed }: Pick<PhaseContext, "sizes" | "seed">): RunSpec[] {
  const single = closedRun(
    { id: "stated-1", label: "Student, stated shape, 1 at a time", kind: "student", shape: "stated", concurrency: 1 },
    sizes,
    {
      sloMs: STUDENT_SINGLE_P95_MS,
      seed,
    },
  );
  const batches = BATCHES.map((concurrency) =>
    closedRun(
      {
        id: `stated-${concurrency}`,
        label: `Student, stated shape, ${concurrency} at once`,
        kind: "student",
        shape: "stated",
        concurrency,
      },
      sizes,
      { sloMs: STUDENT_BATCH_P95_MS, seed },
    ),
  );
  return [single, ...batches];
}

/** A, baseline: the Student as it is configured, one request at a time and 2 to 4, in both shapes, and with long prompts. */
export const runPhaseA: PhaseRunner = async (context) => {
  const { sizes, config, say } = context;
  const measured = await context.withSystem("baseline", {}, async (system) => {
    const runs: Measured[] = [];
    for (const spec of baselineRuns(context)) runs.push(await context.measure(system, spec));
    for (const concurrency of [1, 4]) {
      const label = `Student, whole solutions, ${concurrency === 1 ? "1 at a time" : "4 at once"}`;
      runs.push(
        await context.measure(
          system,
          closedRun({ id: `natural-${concurrency}`, label, kind: "student", shape: "natural", concurrency }, sizes),
        ),
      );
    }
    const contextTokens = (await system.gpu()).gpus[0]?.models.student.contextTokens ?? config.profiles.student.maxModelLen;
    const long = longPrompt(contextTokens);
    const spec = closedRun(
      { id: "long", label: `Student, prompts of ${long.tokens} tokens`, kind: "student", shape: "stated", concurrency: 1 },
      { ...sizes, singleRequests: sizes.longPromptRequests },
    );
    const longRun = await context.measure(system, { ...spec, plan: { ...spec.plan, promptTokens: long.tokens } });
    return { runs, longRun, long, contextTokens };
  });
  const { runs, longRun, long, contextTokens } = measured;
  const stated = runs.filter(({ row }) => row.shape === "stated").map(({ row }) => row);
  const rows = [...runs, longRun].map(({ row }) => row);
  const p95 = longRun.row.latencies.e2eMs?.p95.value ?? null;
  const [single] = stated;
  say(`baseline: p95 ${single?.latencies.e2eMs?.p95.value.toFixed(0) ?? "?"} ms one at a time`);
  const phase: Phase = {
    id: "A",
    title: "Baseline",
    status: "measured",
    reason: null,
    startedAt: null,
    finishedAt: null,
    configuration: profileSettings(config.profiles.student),
    targets: [
      ...stated.map((row) => p95Target(row, row.id === "stated-1" ? STUDENT_SINGLE_P95_MS : STUDENT_BATCH_P95_MS)),
      oomTarget(rows),
      successTarget(runs.map(({ row }) => row)),
    ],
    runs: rows,
    decision: null,
    notes: [
      `Stated shape: prompts of at most 256 tokens, at most ${STATED_MAX_TOKENS} tokens of answer; the targets judge it. Whole solutions tell accuracy and truncation.`,
    ],
    evidence: rows.flatMap(({ records }) => records ?? []),
  };
  return {
    phase,
    settings: {},
    reasons: {},
    capacities: {},
    graphs: {
      latencySpectrum: runs
        .filter(({ row }) => ["stated-1", "stated-4", "natural-1"].includes(row.id))
        .map((run) => spectrumOf(run.row.label, run)),
      waterfall: runs
        .filter(({ row }) => ["natural-1", "natural-4"].includes(row.id))
        .map((run) => waterfallOf(run.row.label, run))
        .filter((graph): graph is Graphs["waterfall"][number] => graph !== null),
    },
    limits: [
      {
        name: long.byContext ? "Long prompts (half of the model's context)" : "Long prompts",
        finding: long.byContext
          ? `The model's context is ${contextTokens} tokens, so prompts of ${long.tokens} tokens, half of it, stand for long ones: ${ended(longRun)}.`
          : `Prompts of ${long.tokens} tokens: ${ended(longRun)}.`,
        value: p95,
        unit: "ms",
        evidence: longRun.row.records,
      },
    ],
  };
};

function ended({ row: { requests, latencies } }: Measured): string {
  const p95 = latencies.e2eMs?.p95.value;
  return `${requests.completed} of ${requests.sent} were answered${p95 === undefined ? "" : `, p95 ${Math.round(p95)} ms`}`;
}
