import { isWorse } from "./compare.ts";
import { figure } from "./figure.ts";
import { type Finding, figuresOf, type Rule, runsWhere } from "./rule.ts";
import type { Evidence, RunRow } from "./schema.ts";

const FULL_MEMORY_SHARE = 0.9;
const LOW_SUCCESS_SHARE = 0.99;
const SAMPLES_FOR_P99 = 100;
const GROWTH_SHARE = 0.1;
const GROWTH_BYTES = 32 * 1_048_576;

/** What the figures don't promise, and what can go wrong. */
export const RISKS: readonly Rule[] = [
  {
    name: "not-measured",
    condition: "a phase was skipped or failed",
    find: ({ phases }) =>
      phases
        .filter(({ status }) => status !== "measured")
        .map(({ id, status, reason }) => ({
          text: `Phase ${id} was ${status} (${reason}), so nothing is known of what it measures.`,
          figures: [],
          phase: id,
        })),
  },
  {
    name: "lost-jobs",
    condition: "an accepted job did not end",
    find: (evidence) =>
      runsWhere(evidence, ({ lostJobs }) => (lostJobs ?? 0) > 0).map(({ phase, run }) => ({
        text: `Accepted jobs were lost in "${run.label}": look for them in the records before anything else.`,
        figures: [["lost jobs", run.lostJobs!, "count"]],
        phase: phase.id,
      })),
  },
  {
    name: "generator-invalid",
    condition: "the load generator could not keep its own pace",
    find: (evidence) =>
      runsWhere(evidence, ({ validity }) => validity?.valid === false).map(({ phase, run }) => ({
        text: `The figures of "${run.label}" are not to be trusted: the load generator itself was the limit (${run.validity!.reasons.join("; ")}). Run the generator on another machine, or at a lower rate.`,
        figures: figuresOf([
          ["requested", run.validity!.requestedRatePerS, "perS"],
          ["achieved", run.validity!.achievedRatePerS, "perS"],
          ["dispatch delay p99", run.validity!.dispatchDelayMs.p99, "ms"],
        ]),
        phase: phase.id,
      })),
  },
  {
    name: "requests-failed",
    condition: `the success rate of a run is below ${figure(LOW_SUCCESS_SHARE, "share")}`,
    find: (evidence) =>
      runsWhere(evidence, ({ successRate }) => successRate !== null && successRate < LOW_SUCCESS_SHARE).map(({ phase, run }) => ({
        text: `Requests failed in "${run.label}"${mostFrequent(run.errors)}.`,
        figures: [
          ["success rate", run.successRate!, "share"],
          ["failed", run.requests.failed, "count"],
          ["refused", run.requests.refused, "count"],
        ],
        phase: phase.id,
      })),
  },
  {
    name: "accuracy-under-load",
    condition: "the accuracy of a later run lies, with its whole interval, below that of the baseline",
    find: (evidence) => accuracyLosses(evidence),
  },
  {
    name: "memory-nearly-full",
    condition: `the peak of the memory is above ${figure(FULL_MEMORY_SHARE, "share")} of its capacity`,
    find: ({ graphs: { memory } }) => {
      if (memory?.capacityBytes == null) return [];
      const capacity = memory.capacityBytes;
      return memory.series
        .map(({ label, points }) => ({ label, peak: Math.max(0, ...points.map(([, bytes]) => bytes)) }))
        .filter(({ peak }) => peak > FULL_MEMORY_SHARE * capacity)
        .map(({ label, peak }) => ({
          text: `${label} comes close to the capacity: another program on this machine, or a longer prompt, can push it over.`,
          figures: [
            ["peak", peak, "bytes"],
            ["capacity", capacity, "bytes"],
          ],
          phase: memory.phase,
        }));
    },
  },
  {
    name: "memory-grows",
    condition: `under sustained load memory grows by more than ${figure(GROWTH_SHARE, "share")} and ${figure(GROWTH_BYTES, "bytes")} from the second fifth to the last`,
    find: ({ graphs: { memory } }) =>
      (memory?.series ?? []).flatMap(({ label, points }) => {
        const early = meanOfFifth(points, 1);
        const late = meanOfFifth(points, 4);
        if (early === null || late === null || late - early < Math.max(GROWTH_BYTES, GROWTH_SHARE * early)) return [];
        return {
          text: `${label} grew under sustained load: watch it over hours before leaving it unattended.`,
          figures: [
            ["early", early, "bytes"],
            ["late", late, "bytes"],
          ],
          phase: memory!.phase,
        } satisfies Finding;
      }),
  },
  {
    name: "final-worse",
    condition: "a metric of the final configuration is really worse than the baseline's",
    find: ({ beforeAfter }) =>
      beforeAfter.rows.filter(isWorse).map(({ run, metric, unit, a, b }) => ({
        text: `The final configuration pays with ${metric} (${run}): decide whether that is worth what it gains.`,
        figures: [
          ["baseline", a, unit],
          ["final", b, unit],
        ],
      })),
  },
  {
    name: "few-samples",
    condition: `a p99 comes from fewer than ${figure(SAMPLES_FOR_P99, "count")} requests`,
    find: (evidence) => {
      const few = runsWhere(evidence, ({ latencies: { e2eMs } }) => e2eMs !== null && e2eMs.count < SAMPLES_FOR_P99);
      if (few.length === 0) return [];
      const fewest = Math.min(...few.map(({ run }) => run.latencies.e2eMs!.count));
      return [
        {
          text: `Some runs are short: a p99 of so few requests is nearly their maximum, so trust p50 and p95 there.`,
          figures: [
            ["such runs", few.length, "count"],
            ["fewest requests", fewest, "count"],
          ],
        },
      ];
    },
  },
  {
    name: "quick-run",
    condition: "the run was a quick one",
    find: ({ run }) =>
      run.mode === "quick"
        ? [{ text: "This was a quick run: phases are shortened and intervals wide. Run it in full before relying on it.", figures: [] }]
        : [],
  },
  {
    name: "no-gpu",
    condition: "no GPU was there",
    find: ({ hardware }) =>
      hardware.gpus.length === 0
        ? [{ text: "Everything ran on the CPU: the figures are this machine's and say nothing about a GPU's.", figures: [] }]
        : [],
  },
  {
    name: "interrupted",
    condition: "the run was interrupted",
    find: ({ run }) =>
      run.interrupted || run.resumed > 0
        ? [
            {
              text: run.interrupted
                ? "The run was interrupted before its end: go on with it."
                : "The run was interrupted and resumed: its phases did not run under one state of the machine.",
              figures: [["resumed", run.resumed, "count"]],
            },
          ]
        : [],
  },
];

function mostFrequent([first]: RunRow["errors"]): string {
  return first === undefined ? "" : `, most often with ${first.errorClass}`;
}

function meanOfFifth(points: readonly (readonly [number, number])[], fifth: number): number | null {
  if (points.length < 10) return null;
  const part = points.slice(Math.floor((fifth * points.length) / 5), Math.floor(((fifth + 1) * points.length) / 5));
  return part.reduce((sum, [, value]) => sum + value, 0) / part.length;
}

function accuracyLosses(evidence: Evidence): Finding[] {
  return runsWhere(evidence, ({ accuracy, shape }) => accuracy !== null && shape === "natural").flatMap(({ phase, run }) => {
    const baseline = evidence.phases[0]!.runs.find(
      (it) => it.role === run.role && it.shape === "natural" && it.accuracy !== null && it.id !== run.id,
    );
    if (phase.id === "A" || baseline === undefined || run.accuracy!.high >= baseline.accuracy!.low) return [];
    return {
      text: `"${run.label}" answers less often right than "${baseline.label}": speed is bought with wrong answers there.`,
      figures: [
        ["baseline", baseline.accuracy!.accuracy, "share"],
        ["this run", run.accuracy!.accuracy, "share"],
      ],
      phase: phase.id,
    } satisfies Finding;
  });
}
