import { isBetter } from "./compare.ts";
import { figure } from "./figure.ts";
import { type Finding, figuresOf, type Rule, runsWhere } from "./rule.ts";
import type { Phase, RunRow, Target, Unit } from "./schema.ts";

const MANY_SWAPS_PER_100_JOBS = 25;
const LOW_HIT_SHARE = 0.3;
const LOW_ACCEPTANCE_SHARE = 0.5;
const SPECULATION_PAYS = 0.2;
const MANY_TRUNCATED_SHARE = 0.05;
const SAFE_SHARE_OF_KNEE = 0.8;

/** What to do. */
export const RECOMMENDATIONS: readonly Rule[] = [
  {
    name: "latency-lever",
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
    condition: `drafts are accepted; speculation is worth it from ${figure(SPECULATION_PAYS, "share")} more tokens a second on`,
    find: ({ phases }) => speculationGains(phases.find(({ id }) => id === "C")!),
  },
  {
    name: "swaps-frequent",
    condition: `more than ${figure(MANY_SWAPS_PER_100_JOBS, "count")} swaps a hundred jobs`,
    find: (evidence) =>
      runsWhere(evidence, ({ swapsPer100Jobs }) => (swapsPer100Jobs ?? 0) > MANY_SWAPS_PER_100_JOBS).map(({ phase, run }) => ({
        text: `"${run.label}" swaps often. Raise the deadlines (INTERACTIVE_DEADLINE_MS, NORMAL_DEADLINE_MS), send fewer jobs as interactive, or use GPU_POLICY=least-wait or ge if it is another.`,
        figures: [["swaps per 100 jobs", run.swapsPer100Jobs!, "count"]],
        phase: phase.id,
      })),
  },
  {
    name: "best-policy",
    condition: "phase G tried several policies: the one with the highest goodput, or where that is not known the lowest p95",
    find: ({ phases }) => bestPolicy(phases.find(({ id }) => id === "G")!),
  },
  {
    name: "cache-misses",
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
  // The swap wait is a part of the queue wait, and that one of TTFT: what is left of it is the prompt's.
  const queueWaitMs = run?.latencies.queueWaitMs?.p95.value ?? 0;
  const largest = waits.find(([name, ms]) => ms !== null && ms - (name === "TTFT p95" ? queueWaitMs : 0) > observed / 2);
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

/** Pairs each run with drafts with the one without them of the same model, shape and concurrency. */
function speculationGains(phase: Phase): Finding[] {
  return phase.runs
    .filter(({ acceptance }) => acceptance !== null && acceptance.share >= LOW_ACCEPTANCE_SHARE)
    .flatMap((run) => {
      const without = phase.runs.find(
        (it) =>
          it.acceptance === null && it.role === run.role && it.shape === run.shape && it.settings.concurrency === run.settings.concurrency,
      );
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
