import { isGood, parseSlo } from "../load/slo.ts";
import type { Graphs, Phase, RunRow } from "../report/schema.ts";
import type { Measured, PhaseContext, PhaseRunner } from "./phase.ts";
import type { Settings } from "./settings.ts";
import { closedRun, profileSettings } from "./shapes.ts";
import { oomTarget, p95Target, STUDENT_BATCH_P95_MS, SUCCESS_SHARE, successTarget } from "./targets.ts";

/** More sequences, or a smaller KV cache, must pay at least so much to be chosen over what is configured: less is noise. */
const WORTHWHILE_GAIN = 0.05;
/** Shares of the measured capacity, one after the other, on the way to the knee. */
const KNEE_SHARES = [0.3, 0.5, 0.7, 0.85, 1, 1.2];

interface Variant {
  id: string;
  maxNumSeqs: number;
  kvCacheBits: number;
}

interface MeasuredVariant {
  variant: Variant;
  stated: Measured;
  natural: Measured;
}

const settingsOf = ({ maxNumSeqs, kvCacheBits }: Variant): Settings => ({
  STUDENT_MAX_NUM_SEQS: String(maxNumSeqs),
  STUDENT_KV_CACHE_BITS: String(kvCacheBits),
});

/** Requests a second with all sequences busy, n / mean E2E, with the interval that the mean's bootstrap interval gives. */
interface Speed {
  perS: number;
  low: number;
  high: number;
}

function speedOf({ stated, variant }: MeasuredVariant): Speed {
  const mean = stated.row.latencies.e2eMs?.mean;
  if (mean === undefined) return { perS: 0, low: 0, high: 0 };
  const perS = (ms: number) => (1000 * variant.maxNumSeqs) / ms;
  return { perS: perS(mean.value), low: perS(mean.high ?? mean.value), high: perS(mean.low ?? mean.value) };
}

/** Whether it may be chosen at all: nothing ran out of memory, requests succeed, and the p95 of the stated shape is within the target. */
function isFit({ stated, natural }: MeasuredVariant): boolean {
  const isWhole = ({ oomCount, successRate }: RunRow) => oomCount === 0 && (successRate ?? 0) >= SUCCESS_SHARE;
  const p95 = stated.row.latencies.e2eMs?.p95.value ?? Number.POSITIVE_INFINITY;
  return isWhole(stated.row) && isWhole(natural.row) && p95 <= STUDENT_BATCH_P95_MS;
}

/**
 * The fastest fit variant. What is configured (the first) stays unless another is at least 5 % faster and their intervals don't touch: else
 * noise would choose. With none fit, what is configured.
 */
export function bestOf<T>(variants: readonly T[], isFit: (variant: T) => boolean, speed: (variant: T) => Speed): T {
  const configured = variants[0]!;
  const candidates = variants.filter(isFit).sort((a, b) => speed(b).perS - speed(a).perS);
  if (!isFit(configured)) return candidates[0] ?? configured;
  const { perS, high } = speed(configured);
  return candidates.find((variant) => speed(variant).perS >= perS * (1 + WORTHWHILE_GAIN) && speed(variant).low > high) ?? configured;
}

/** B, how many sequences at once and which KV cache: each variant saturated, in both shapes; then the way to the knee with the best. */
export const runPhaseB: PhaseRunner = async (context) => {
  const { config, choices, say } = context;
  const { maxNumSeqs, kvCacheBits } = config.profiles.student;
  const counts = [maxNumSeqs, ...choices.maxNumSeqs.filter((count) => count !== maxNumSeqs)];
  const variants: MeasuredVariant[] = [];
  for (const count of counts) variants.push(await measureVariant(context, { id: `seqs-${count}`, maxNumSeqs: count, kvCacheBits }));
  const widest = bestOf(variants, isFit, speedOf).variant;
  const otherBits = kvCacheBits === 16 ? 8 : 16;
  const other = { id: `seqs-${widest.maxNumSeqs}-kv-${otherBits}`, maxNumSeqs: widest.maxNumSeqs, kvCacheBits: otherBits };
  variants.push(await measureVariant(context, other));
  // Against the one it differs from by the cache alone.
  const best = bestOf([variants.find(({ variant }) => variant === widest)!, variants.at(-1)!], isFit, speedOf);
  const chosen = settingsOf(best.variant);
  const capacityPerS = best.natural.row.throughput?.requestsPerS ?? 0;
  say(
    `sequences: ${best.variant.maxNumSeqs} at once, ${best.variant.kvCacheBits}-bit KV cache, ${capacityPerS.toFixed(1)} solutions a second`,
  );
  const knee = capacityPerS > 0 ? await measureKnee(context, chosen, capacityPerS) : null;
  const rows = variants.flatMap(({ stated, natural }) => [stated.row, natural.row]);
  const ceiling = variants.filter(isFit).reduce((most, { variant }) => Math.max(most, variant.maxNumSeqs), 0);
  const phase: Phase = {
    id: "B",
    title: "Sequences at once and KV cache",
    status: "measured",
    reason: null,
    startedAt: null,
    finishedAt: null,
    configuration: profileSettings(config.profiles.student),
    targets: [
      p95Target(best.stated.row, STUDENT_BATCH_P95_MS, "Chosen setting: p95, all sequences busy"),
      oomTarget([best.stated.row, best.natural.row]),
      successTarget([best.stated.row, best.natural.row]),
    ],
    runs: [...rows, ...(knee === null ? [] : [knee.row])],
    decision: {
      chosen: `${best.variant.maxNumSeqs} sequences, ${best.variant.kvCacheBits}-bit KV cache`,
      reason: reasonFor(best, variants),
    },
    notes: ["Each variant is kept busy with as many requests as it has sequences, so its p95 holds the wait of a full batch."],
    evidence: [...rows, ...(knee === null ? [] : [knee.row])].flatMap(({ records }) => records ?? []),
  };
  return {
    phase,
    settings: best.variant.maxNumSeqs === maxNumSeqs && best.variant.kvCacheBits === kvCacheBits ? {} : chosen,
    reasons: Object.fromEntries(
      Object.keys(chosen).map((name) => [
        name,
        isFit(variants[0]!)
          ? "phase B: faster beyond noise, within the targets"
          : "phase B: within the targets, which what was configured misses",
      ]),
    ),
    capacities: capacityPerS > 0 ? { student: capacityPerS } : {},
    graphs: { latencyByRate: knee === null ? null : latencyByRate(knee) },
    limits: [
      {
        name: "Batch ceiling",
        finding:
          ceiling === 0
            ? "None of the variants kept the target with all its sequences busy."
            : `${ceiling} is the most sequences at once, of those tried (${counts.join(", ")}), that ran without an out-of-memory and kept the p95 target.`,
        value: ceiling === 0 ? null : ceiling,
        unit: "count",
        evidence: best.stated.row.records,
      },
    ],
  };
};

async function measureVariant(context: PhaseContext, variant: Variant): Promise<MeasuredVariant> {
  const { sizes, seed } = context;
  const { id, maxNumSeqs, kvCacheBits } = variant;
  const settings = { maxNumSeqs, kvCacheBits };
  const name = `${maxNumSeqs} sequences, ${kvCacheBits}-bit KV`;
  return context.withSystem(id, settingsOf(variant), async (system) => {
    const run = (shape: "stated" | "natural") => {
      const label = `${name}, ${shape === "stated" ? "stated shape" : "whole solutions"}`;
      // The same problems for every variant.
      const spec = closedRun({ id: `${id}-${shape}`, label, kind: "student", shape, concurrency: maxNumSeqs }, sizes, { seed, settings });
      return context.measure(system, shape === "stated" ? { ...spec, sloMs: STUDENT_BATCH_P95_MS } : spec);
    };
    return { variant, stated: await run("stated"), natural: await run("natural") };
  });
}

function measureKnee(context: PhaseContext, settings: Settings, capacityPerS: number): Promise<Measured> {
  const ratesPerS = KNEE_SHARES.map((share) => share * capacityPerS);
  return context.withSystem("knee", settings, (system) =>
    context.measure(system, {
      id: "knee",
      label: "Open loop, rising rates",
      role: "student",
      shape: "natural",
      sloMs: STUDENT_BATCH_P95_MS,
      plan: { arrivals: { pattern: "steps", ratesPerS }, durationS: ratesPerS.length * context.sizes.kneeStepS },
    }),
  );
}

export function latencyByRate({ summary, records }: Pick<Measured, "summary" | "records">): Graphs["latencyByRate"] {
  const limits = parseSlo(String(summary.plan.slo));
  const goodShare = (step: string) => {
    const sent = records.filter((record) => record.phase === "steady" && String(record.step) === step);
    return sent.filter((record) => isGood(record, limits, summary.plan.allowTruncated === true)).length / sent.length;
  };
  const points = summary.groups
    .filter(({ by, latencies }) => by === "step" && latencies.e2eMs !== null)
    .map(({ value, ratePerS, latencies, slo }) => ({
      ratePerS: ratePerS ?? 0,
      p50Ms: latencies.e2eMs!.p50.value,
      p95Ms: latencies.e2eMs!.p95.value,
      goodputPerS: (ratePerS ?? 0) * goodShare(value),
      meetsSlo: slo?.met ?? false,
    }))
    .sort((a, b) => a.ratePerS - b.ratePerS);
  const missed = points.find(({ meetsSlo }) => !meetsSlo);
  const met = points.filter(({ meetsSlo, ratePerS }) => meetsSlo && ratePerS < (missed?.ratePerS ?? Number.POSITIVE_INFINITY)).at(-1);
  return {
    sloMs: STUDENT_BATCH_P95_MS,
    percentile: "p95",
    points,
    kneeRatePerS: met?.ratePerS ?? null,
    firstMissedRatePerS: missed?.ratePerS ?? null,
  };
}

export function reasonFor(best: MeasuredVariant, variants: readonly MeasuredVariant[]): string {
  if (!isFit(best)) return "No variant kept the p95 target without errors, so what is configured stays.";
  const figures = variants.map(({ variant, ...measured }) => {
    const { perS, low, high } = speedOf({ variant, ...measured });
    return `${variant.maxNumSeqs} sequences, ${variant.kvCacheBits}-bit ${perS.toFixed(1)} (${low.toFixed(1)} to ${high.toFixed(1)})`;
  });
  const rule = `at least ${WORTHWHILE_GAIN * 100} % faster than what is configured, beyond noise`;
  if (!isFit(variants[0]!)) {
    return `Requests a second, stated shape: ${figures.join("; ")}. What is configured misses the p95 target or fails; of those that don't, this is the fastest beyond noise.`;
  }
  return `Requests a second, stated shape: ${figures.join("; ")}. ${best === variants[0] ? `None that keeps the p95 target is ${rule}, so that stays.` : `It keeps the p95 target and is ${rule}.`}`;
}
