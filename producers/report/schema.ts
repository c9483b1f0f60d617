import { z } from "zod";
import { ROLES } from "../../queues/names.ts";
import {
  latenciesSchema,
  loadAccuracySchema,
  requestCountsSchema,
  sloResultSchema,
  throughputSchema,
  validitySchema,
} from "../load/summary.ts";

/**
 * Everything a `report.json` holds. `report.md`, `report.html` and the graphs are made from it and from nothing else; report.schema.json
 * is generated from it.
 *
 * What was measured is the evidence; verdict, grade, ticks, risks and recommendations follow from it by stated rules
 * (`completeReport`). Times are milliseconds, memory bytes, shares 0 to 1; `null` means not measured. Paths are relative to the report's folder.
 */

export const PHASE_IDS = ["A", "B", "C", "D", "E", "F", "G"] as const;
export type PhaseId = (typeof PHASE_IDS)[number];

const UNITS = ["ms", "share", "perS", "tokensPerS", "tokens", "bytes", "count", "ratio", "celsius", "watts"] as const;
/** How a figure is written: `share` 0 to 1 as per cent, `ratio` as a factor. */
export type Unit = (typeof UNITS)[number];

/** The longest series of a graph; `boundedSeries` shortens a longer one and keeps its peaks. */
export const MAX_POINTS = 1500;
/** Of swaps and intervals: what lies closer than a pixel is drawn as one. */
const MAX_INTERVALS = 50_000;

const text = z.string().max(20_000);
const name = z.string().min(1).max(200);
const count = z.number().int().nonnegative();
const measured = z.number().nonnegative();
const share = z.number().min(0).max(1);
const epochMs = z.number().int().nonnegative();
const evidencePath = z
  .string()
  .max(500)
  .refine((path) => path !== "" && !path.startsWith("/") && !path.includes("\\") && !path.split("/").includes(".."), {
    message: "Expected a path inside the report's folder, relative to it, with forward slashes",
  });
const unit = z.enum(UNITS);
const settings = z.record(name, z.union([text, z.number(), z.boolean(), z.null()]));
const series = z.array(z.tuple([z.number(), z.number()])).max(MAX_POINTS);

const interval = z.strictObject({ low: z.number(), high: z.number() });
export type Interval = z.infer<typeof interval>;

/** A share of `total` with its 95 % Wilson interval. */
const proportion = z.strictObject({ hits: count, total: count, share, interval });
export type Proportion = z.infer<typeof proportion>;

/** One measured run: a row of a phase's table. What a load run measured is in the load summary's own forms. */
const runRow = z.strictObject({
  id: name,
  label: name,
  role: z.enum(ROLES).nullable(),
  /** `stated`: the short prompts and outputs that the targets judge; `natural`: whole solutions. */
  shape: z.enum(["stated", "natural"]).nullable(),
  settings,
  seed: z.number().int().nullable(),
  startedAt: epochMs,
  durationMs: measured,
  requests: requestCountsSchema,
  /** Completed of sent. */
  successRate: share.nullable(),
  errors: z.array(z.object({ errorClass: z.string(), count, example: z.string().nullable() })).max(50),
  latencies: latenciesSchema,
  throughput: throughputSchema.nullable(),
  slo: sloResultSchema.nullable(),
  accuracy: loadAccuracySchema,
  /** Whether the load generator kept its own pace; when not, the run's figures are not to be trusted. */
  validity: validitySchema.nullable(),
  /** Answers that the token limit cut, of the completed ones. */
  truncation: proportion.nullable(),
  cacheHits: proportion.nullable(),
  /** Drafted tokens that the model accepted. */
  acceptance: proportion.nullable(),
  oomCount: count,
  swaps: count.nullable(),
  swapsPer100Jobs: measured.nullable(),
  lostJobs: count.nullable(),
  /** The run's `requests.jsonl`, for comparisons. */
  records: evidencePath.nullable(),
});
export type RunRow = z.infer<typeof runRow>;

interface Judgement {
  comparison: "at-most" | "at-least";
  threshold: number;
  observed: number | null;
}

function meets({ comparison, threshold, observed }: Judgement): boolean {
  return observed !== null && (comparison === "at-most" ? observed <= threshold : observed >= threshold);
}

const target = z
  .strictObject({
    name,
    metric: name,
    /** Which run it judges; null: the phase as a whole. */
    runId: name.nullable(),
    comparison: z.enum(["at-most", "at-least"]),
    threshold: z.number(),
    observed: z.number().nullable(),
    unit,
    pass: z.boolean(),
  })
  .refine((it) => it.pass === meets(it), { message: "Expected `pass` to say whether `observed` meets `threshold`" });
export type Target = z.infer<typeof target>;

/** A target with its judgement; what wasn't observed is not met. */
export function judged(it: Omit<Target, "pass">): Target {
  return { ...it, pass: meets(it) };
}

const phase = z
  .strictObject({
    id: z.enum(PHASE_IDS),
    title: name,
    status: z.enum(["measured", "skipped", "failed"]),
    /** Why it was skipped or failed. */
    reason: text.nullable(),
    startedAt: epochMs.nullable(),
    finishedAt: epochMs.nullable(),
    configuration: settings,
    targets: z.array(target).max(40),
    runs: z.array(runRow).max(60),
    decision: z.strictObject({ chosen: text, reason: text }).nullable(),
    notes: z.array(text).max(40),
    evidence: z.array(evidencePath).max(100),
  })
  .refine((it) => it.status === "measured" || it.reason !== null, { message: "Expected a `reason` for a phase that was not measured" });
export type Phase = z.infer<typeof phase>;

const comparisonRow = z.strictObject({
  run: name,
  metric: name,
  unit,
  better: z.enum(["lower", "higher"]),
  a: z.number(),
  b: z.number(),
  samplesA: count,
  samplesB: count,
  /** (b − a) / a; null when a is 0. */
  change: z.number().nullable(),
  /** The 95 % bootstrap interval of `change`. */
  interval: interval.nullable(),
  /** `real`: the interval leaves 0 out and the change is at least the practical threshold. */
  verdict: z.enum(["real", "noise"]),
});
export type ComparisonRow = z.infer<typeof comparisonRow>;

const resourceUse = z.strictObject({ phase: z.enum(PHASE_IDS).nullable(), name, unit, average: measured, peak: measured });

const limit = z.strictObject({
  name,
  /** What was found, in a sentence. */
  finding: text,
  value: z.number().nullable(),
  unit,
  evidence: evidencePath.nullable(),
});

const change = z.strictObject({ name, before: text.nullable(), after: text.nullable(), reason: text });

const engine = z.strictObject({
  role: z.enum(ROLES),
  engine: name,
  version: text.nullable(),
  model: text,
  digest: text.nullable(),
  contextTokens: count.nullable(),
  maxNumSeqs: count.nullable(),
});

const run = z.strictObject({
  id: name,
  startedAt: epochMs,
  finishedAt: epochMs,
  mode: z.enum(["full", "quick"]),
  /** How often it was interrupted and gone on with. */
  resumed: count,
  /** It ended before all asked phases did. */
  interrupted: z.boolean(),
  phasesAsked: z.array(z.enum(PHASE_IDS)).max(PHASE_IDS.length),
  seeds: z.record(name, z.number().int()),
  commands: z.array(text).max(200),
  commit: text.nullable(),
  /** A hash over the settings that can change a figure. */
  fingerprint: name,
  /** The settings the fingerprint is over, so that two reports can say what differs. */
  fingerprintOf: settings,
});

const hardware = z.strictObject({
  cpuModel: text,
  cpuCores: count,
  ramBytes: measured,
  os: text,
  gpus: z.array(z.strictObject({ name: text, vramBytes: measured.nullable(), driver: text.nullable() })).max(16),
});

const versions = z.strictObject({
  mathllm: text,
  node: text,
  redis: text.nullable(),
  engines: z.array(engine).max(8),
});

const labelledSeries = z.strictObject({ label: name, points: series });

/** Points are `[x, y]`; times are milliseconds from `originAt` on. A graph without data is left out of the report. */
const graphs = z.strictObject({
  /** Latency against percentile: `[percentile 0 to 100, ms]`. */
  latencySpectrum: z.array(labelledSeries).max(12),
  throughput: z.strictObject({ phase: z.enum(PHASE_IDS), originAt: epochMs, requestsPerS: series, tokensPerS: series }).nullable(),
  latencyByRate: z
    .strictObject({
      sloMs: measured,
      /** Of the SLO: such as `p95`. */
      percentile: name,
      points: z
        .array(z.strictObject({ ratePerS: measured, p50Ms: measured, p95Ms: measured, goodputPerS: measured, meetsSlo: z.boolean() }))
        .max(100),
      /** The highest rate that met the SLO, and the lowest that did not. */
      kneeRatePerS: measured.nullable(),
      firstMissedRatePerS: measured.nullable(),
    })
    .nullable(),
  /** `capacityBytes`: the card's or the machine's memory. */
  memory: z
    .strictObject({
      phase: z.enum(PHASE_IDS),
      originAt: epochMs,
      capacityBytes: measured.nullable(),
      series: z.array(labelledSeries).max(8),
    })
    .nullable(),
  /** One for each policy that was tried, or one for the sustained load. */
  residency: z
    .array(
      z.strictObject({
        label: name,
        phase: z.enum(PHASE_IDS),
        originAt: epochMs,
        durationMs: measured,
        intervals: z
          .array(
            z.strictObject({ model: z.enum(ROLES), state: z.enum(["loading", "resident", "draining"]), fromMs: measured, toMs: measured }),
          )
          .max(MAX_INTERVALS),
        swaps: z
          .array(z.strictObject({ atMs: measured, from: z.enum(ROLES).nullable(), to: z.enum(ROLES), durationMs: measured, reason: text }))
          .max(MAX_INTERVALS),
        studentDepth: series,
        talkerDepth: series,
      }),
    )
    .max(6),
  /** `[request number, share of hits so far]`. */
  cacheHits: z.array(labelledSeries).max(6),
  /** Where a job's time goes, in the order of its way. */
  waterfall: z
    .array(z.strictObject({ label: name, stages: z.array(z.strictObject({ name, p50Ms: measured, p95Ms: measured })).max(20) }))
    .max(6),
  /** How many requests had which share of their drafted tokens accepted, or drafts by accepted length. */
  acceptance: z.array(z.strictObject({ label: name, axis: name, bins: z.array(z.strictObject({ label: name, count })).max(60) })).max(6),
});
export type Graphs = z.infer<typeof graphs>;

export const NO_GRAPHS: Graphs = {
  latencySpectrum: [],
  throughput: null,
  latencyByRate: null,
  memory: null,
  residency: [],
  cacheHits: [],
  waterfall: [],
  acceptance: [],
};

export const evidenceSchema = z.strictObject({
  version: z.literal(1),
  run,
  hardware,
  versions,
  phases: z
    .array(phase)
    .length(PHASE_IDS.length)
    .refine((phases) => phases.every(({ id }, at) => id === PHASE_IDS[at]), { message: "Expected the phases A to G, in order" }),
  /** Baseline (a) against the final configuration (b). */
  beforeAfter: z.strictObject({
    rows: z.array(comparisonRow).max(60),
    /** Why there is no comparison. */
    reason: text.nullable(),
  }),
  resources: z.array(resourceUse).max(60),
  limits: z.array(limit).max(40),
  finalConfiguration: z.strictObject({ env: text, changes: z.array(change).max(100) }).nullable(),
  graphs,
  /** What each metric is, as a formula. */
  formulas: z.array(z.strictObject({ name, formula: text })).max(60),
});
/** What a run measured. */
export type Evidence = z.infer<typeof evidenceSchema>;

const ruled = z.strictObject({
  /** The rule that made it: its name in `risks.ts` or `recommendations.ts`. */
  rule: name,
  /** The rule's condition, in words. */
  condition: text,
  text,
  /** The figures that fulfilled the condition. */
  figures: z.array(z.strictObject({ name, value: z.number(), unit })).max(12),
  phase: z.enum(PHASE_IDS).nullable(),
});
export type Ruled = z.infer<typeof ruled>;

const TICK_IDS = [
  "baseline-documented",
  "tuning-done",
  "speculation-evaluated",
  "talker-deployed",
  "guardrails-and-cache-verified",
] as const;
export type TickId = (typeof TICK_IDS)[number];

export const reportSchema = evidenceSchema.extend({
  verdict: z.strictObject({
    level: z.enum(["ready", "reservations", "not-ready", "incomplete"]),
    headline: text,
    reasons: z.array(text).max(40),
  }),
  grade: z.strictObject({
    points: count.max(PHASE_IDS.length),
    of: z.literal(PHASE_IDS.length),
    phases: z.array(z.strictObject({ id: z.enum(PHASE_IDS), point: z.boolean(), reason: text })).length(PHASE_IDS.length),
    ticks: z.array(z.strictObject({ id: z.enum(TICK_IDS), label: text, ticked: z.boolean(), reason: text })).length(TICK_IDS.length),
  }),
  risks: z.array(ruled).max(60),
  recommendations: z.array(ruled).max(60),
});
export type Report = z.infer<typeof reportSchema>;
