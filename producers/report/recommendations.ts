import { isBetter, isWorse } from "./compare.ts";
import { figure } from "./figure.ts";
import type { Evidence, Phase, PhaseId, Ruled, RunRow, Target, Unit } from "./schema.ts";

/**
 * Risks and recommendations follow from the evidence by these rules and by nothing else. A rule says its condition in words, finds where the
 * evidence fulfils it, and gives the figures it saw. The thresholds stand here and in the conditions' words.
 */

interface Rule {
  name: string;
  kind: "risk" | "recommendation";
  /** In words, as the report prints it. */
  condition: string;
  find: (evidence: Evidence) => Finding[];
}

interface Finding {
  text: string;
  figures: [name: string, value: number, unit: Unit][];
  phase?: PhaseId;
}

const MANY_SWAPS_PER_100_JOBS = 25;
const LOW_HIT_SHARE = 0.3;
const LOW_ACCEPTANCE_SHARE = 0.5;
const SPECULATION_PAYS = 0.2;
const FULL_MEMORY_SHARE = 0.9;
const LOW_SUCCESS_SHARE = 0.99;
const MANY_TRUNCATED_SHARE = 0.05;
const SAMPLES_FOR_P99 = 100;
const SAFE_SHARE_OF_KNEE = 0.8;
const GROWTH_SHARE = 0.1;
const GROWTH_BYTES = 32 * 1_048_576;

export const RULES: readonly Rule[] = [
  {
    name: "not-measured",
    kind: "risk",
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
    kind: "risk",
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
    kind: "risk",
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
    kind: "risk",
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
    kind: "risk",
    condition: "the accuracy of a later run lies, with its whole interval, below that of the baseline",
    find: (evidence) => accuracyLosses(evidence),
  },
  {
    name: "memory-nearly-full",
    kind: "risk",
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
    kind: "risk",
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
    kind: "risk",
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
    kind: "risk",
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
    kind: "risk",
    condition: "the run was a quick one",
    find: ({ run }) =>
      run.mode === "quick"
        ? [{ text: "This was a quick run: phases are shortened and intervals wide. Run it in full before relying on it.", figures: [] }]
        : [],
  },
  {
    name: "no-gpu",
    kind: "risk",
    condition: "no GPU was there",
    find: ({ hardware }) =>
      hardware.gpus.length === 0
        ? [{ text: "Everything ran on the CPU: the figures are this machine's and say nothing about a GPU's.", figures: [] }]
        : [],
  },
  {
    name: "interrupted",
    kind: "risk",
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
  {
    name: "latency-lever",
    kind: "recommendation",
    condition: "a latency target is missed; the lever is what most of the time goes to",
    find: ({ phases }) =>
      phases.flatMap((phase) =>
        phase.targets
          .filter((target) => !target.pass && target.unit === "ms" && target.observed !== null)
          .map((target) => leverFor(phase, target)),
      ),
  },
  {
    name: "speculation-off",
    kind: "recommendation",
    condition: `fewer than ${figure(LOW_ACCEPTANCE_SHARE, "share")} of the drafted tokens are accepted`,
    find: ({ phases }) =>
      phases
        .find(({ id }) => id === "C")!
        .runs.filter(({ acceptance }) => acceptance !== null && acceptance.share < LOW_ACCEPTANCE_SHARE)
        .map((run) => ({
          text: `Leave speculation off with the settings of "${run.label}": most drafted tokens are thrown away. A draft of the same family, trained on the same texts, would be accepted more.`,
          figures: [["accepted", run.acceptance!.share, "share"]],
          phase: "C",
        })),
  },
  {
    name: "speculation-gain",
    kind: "recommendation",
    condition: `drafts are accepted; speculation is worth it from ${figure(SPECULATION_PAYS, "share")} more tokens a second on`,
    find: ({ phases }) => speculationGains(phases.find(({ id }) => id === "C")!),
  },
  {
    name: "swaps-frequent",
    kind: "recommendation",
    condition: `more than ${figure(MANY_SWAPS_PER_100_JOBS, "count")} swaps a hundred jobs`,
    find: (evidence) =>
      runsWhere(evidence, ({ swapsPer100Jobs }) => (swapsPer100Jobs ?? 0) > MANY_SWAPS_PER_100_JOBS).map(({ phase, run }) => ({
        text: `"${run.label}" swaps often. Raise the deadlines (INTERACTIVE_DEADLINE_MS, NORMAL_DEADLINE_MS), send fewer jobs as interactive, or use GPU_POLICY=ge if it is another.`,
        figures: [["swaps per 100 jobs", run.swapsPer100Jobs!, "count"]],
        phase: phase.id,
      })),
  },
  {
    name: "best-policy",
    kind: "recommendation",
    condition: "phase G tried several policies: the one with the highest goodput, or where that is not known the lowest p95",
    find: ({ phases }) => bestPolicy(phases.find(({ id }) => id === "G")!),
  },
  {
    name: "cache-misses",
    kind: "recommendation",
    condition: `the cache answers fewer than ${figure(LOW_HIT_SHARE, "share")} of the requests`,
    find: ({ phases }) =>
      phases
        .find(({ id }) => id === "F")!
        .runs.filter(({ cacheHits }) => cacheHits !== null && cacheHits.share < LOW_HIT_SHARE)
        .map((run) => ({
          text: `The cache seldom helped in "${run.label}": raise CACHE_TTL_SECONDS or CACHE_MAX_BYTES, and ask at temperature 0 where the same question comes again.`,
          figures: [["hits", run.cacheHits!.share, "share"]],
          phase: "F",
        })),
  },
  {
    name: "out-of-memory",
    kind: "recommendation",
    condition: "a model ran out of memory and the ladder was used",
    find: (evidence) =>
      runsWhere(evidence, ({ oomCount }) => oomCount > 0).map(({ phase, run }) => ({
        text: `A model ran out of memory in "${run.label}": set MAX_NUM_SEQS, MAX_MODEL_LEN or KV_CACHE_BITS to what the ladder ended with (mathllm gpu shows it), so that no start has to find it again.`,
        figures: [["out of memory", run.oomCount, "count"]],
        phase: phase.id,
      })),
  },
  {
    name: "answers-truncated",
    kind: "recommendation",
    condition: `more than ${figure(MANY_TRUNCATED_SHARE, "share")} of whole solutions are cut off`,
    find: (evidence) =>
      runsWhere(
        evidence,
        ({ shape, truncation }) => shape === "natural" && truncation !== null && truncation.share > MANY_TRUNCATED_SHARE,
      ).map(({ phase, run }) => ({
        text: `Solutions of "${run.label}" are cut off before their answer: raise MAX_TOKENS, and MAX_MODEL_LEN where the context ends first.`,
        figures: [["truncated", run.truncation!.share, "share"]],
        phase: phase.id,
      })),
  },
  {
    name: "rate-to-offer",
    kind: "recommendation",
    condition: "the knee was found",
    find: ({ graphs: { latencyByRate } }) => {
      if (latencyByRate == null) return [];
      const knee = latencyByRate.kneeRatePerS;
      if (knee === null)
        return [
          {
            text: `No tried rate meets ${latencyByRate.percentile} within the SLO: the service time alone is too long, so a lower rate will not help.`,
            figures: [["SLO", latencyByRate.sloMs, "ms"]],
          },
        ];
      return [
        {
          text: `Offer at most ${figure(SAFE_SHARE_OF_KNEE, "share")} of the highest rate that met the SLO, and limit the queue to that rate (mathllm limit).`,
          figures: [
            ["highest rate within the SLO", knee, "perS"],
            ["rate to offer", SAFE_SHARE_OF_KNEE * knee, "perS"],
          ],
        },
      ];
    },
  },
  {
    name: "use-final-configuration",
    kind: "recommendation",
    condition: "the final configuration changes a setting, and a metric of it is really better than the baseline's",
    find: ({ beforeAfter, finalConfiguration }) => {
      const better = beforeAfter.rows.filter(isBetter);
      if (better.length === 0 || (finalConfiguration?.changes.length ?? 0) === 0) return [];
      const { run, metric, change } = better.reduce((best, row) => (Math.abs(row.change ?? 0) > Math.abs(best.change ?? 0) ? row : best));
      return [
        {
          text: `Use the final configuration: its largest real gain is ${metric} (${run}).`,
          figures: figuresOf([["change", change, "share"]]),
        },
      ];
    },
  },
];

export function applyRules(evidence: Evidence): { risks: Ruled[]; recommendations: Ruled[] } {
  const ruled = (kind: Rule["kind"]): Ruled[] =>
    RULES.filter((rule) => rule.kind === kind).flatMap(({ name, condition, find }) =>
      find(evidence).map(({ text, figures, phase }) => ({
        rule: name,
        condition,
        text,
        figures: figures.map(([figureName, value, unit]) => ({ name: figureName, value, unit })),
        phase: phase ?? null,
      })),
    );
  return { risks: ruled("risk"), recommendations: ruled("recommendation") };
}

function runsWhere({ phases }: Evidence, holds: (run: RunRow) => boolean): { phase: Phase; run: RunRow }[] {
  return phases.flatMap((phase) => phase.runs.filter(holds).map((run) => ({ phase, run })));
}

function figuresOf(figures: [name: string, value: number | null, unit: Unit][]): Finding["figures"] {
  return figures.filter((it): it is [string, number, Unit] => it[1] !== null);
}

function mostFrequent([first]: RunRow["errors"]): string {
  return first === undefined ? "" : `, most often with ${first.errorClass}`;
}

function meanOfFifth(points: readonly (readonly [number, number])[], fifth: number): number | null {
  if (points.length < 10) return null;
  const part = points.slice(Math.floor((fifth * points.length) / 5), Math.floor(((fifth + 1) * points.length) / 5));
  return part.reduce((sum, [, value]) => sum + value, 0) / part.length;
}

function leverFor(phase: Phase, target: Target): Finding {
  const run = phase.runs.find(({ id }) => id === target.runId);
  const observed = target.observed!;
  const waits: [name: string, ms: number | null, lever: string][] = [
    [
      "swap wait p95",
      run?.latencies.swapWaitMs?.p95.value ?? null,
      "waiting for the other model: raise the deadlines so that it swaps less, or make a swap cheaper (SLEEP_LEVEL)",
    ],
    [
      "queue wait p95",
      run?.latencies.queueWaitMs?.p95.value ?? null,
      "waiting in the queue: offer a lower rate, or raise MAX_NUM_SEQS if memory allows",
    ],
    ["TTFT p95", run?.latencies.ttftMs?.p95.value ?? null, "reading the prompt: shorten it, or keep prefixes cached"],
  ];
  const largest = waits.find(([, ms]) => ms !== null && ms > observed / 2);
  return {
    text:
      largest === undefined
        ? `Target missed: ${target.name}. Most of the time goes to writing tokens: a smaller quantisation, a lower MAX_TOKENS, fewer requests at once (MAX_NUM_SEQS), or speculation where phase C found it faster.`
        : `Target missed: ${target.name}. Most of the time goes to ${largest[2]}.`,
    figures: figuresOf([
      ["observed", observed, target.unit],
      ["target", target.threshold, target.unit],
      ...(largest === undefined ? [] : [[largest[0], largest[1], "ms"] as [string, number | null, Unit]]),
    ]),
    phase: phase.id,
  };
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

/** Pairs each run with drafts with the one without them of the same model and shape. */
function speculationGains(phase: Phase): Finding[] {
  return phase.runs
    .filter(({ acceptance }) => acceptance !== null && acceptance.share >= LOW_ACCEPTANCE_SHARE)
    .flatMap((run) => {
      const without = phase.runs.find((it) => it.acceptance === null && it.role === run.role && it.shape === run.shape);
      if (!without?.throughput?.tokensOutPerS || run.throughput === null) return [];
      const gain = run.throughput.tokensOutPerS / without.throughput.tokensOutPerS - 1;
      return {
        text:
          gain >= SPECULATION_PAYS
            ? `Keep speculation as in "${run.label}": it is faster by more than the threshold.`
            : `Leave speculation off: "${run.label}" accepts its drafts, yet gains too little, because drafting costs nearly as much as it saves.`,
        figures: [
          ["accepted", run.acceptance!.share, "share"],
          ["change in tokens/s", gain, "share"],
        ],
        phase: phase.id,
      } satisfies Finding;
    });
}

function bestPolicy(phase: Phase): Finding[] {
  const tried = phase.runs.filter(({ settings }) => typeof settings.GPU_POLICY === "string");
  if (new Set(tried.map(({ settings }) => settings.GPU_POLICY)).size < 2) return [];
  const byGoodput = tried.every(({ throughput }) => typeof throughput?.goodputPerS === "number");
  const score = (run: RunRow) => (byGoodput ? run.throughput!.goodputPerS! : -(run.latencies.e2eMs?.p95.value ?? Number.POSITIVE_INFINITY));
  const best = tried.reduce((so, run) => (score(run) > score(so) ? run : so));
  return [
    {
      text: `Set GPU_POLICY=${best.settings.GPU_POLICY}: of the policies tried it ${byGoodput ? "serves most requests within the SLO" : "has the lowest p95"}.`,
      figures: figuresOf([
        ["goodput", best.throughput?.goodputPerS ?? null, "perS"],
        ["p95", best.latencies.e2eMs?.p95.value ?? null, "ms"],
        ["swaps per 100 jobs", best.swapsPer100Jobs, "count"],
      ]),
      phase: phase.id,
    },
  ];
}
