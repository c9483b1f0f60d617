import { z } from "zod";
import type { LoadSummary } from "./summary.ts";

const pointSchema = z.object({
  ratePerS: z.number(),
  /** Of its plan. */
  seed: z.number().nullable(),
  sent: z.number(),
  completed: z.number(),
  e2eP50Ms: z.number().nullable(),
  e2eP95Ms: z.number().nullable(),
  goodputPerS: z.number().nullable(),
  valid: z.boolean(),
  sloMet: z.boolean(),
  /** Of the output folder; null when nothing is written, or all points are of one run. */
  folder: z.string().nullable(),
});
export type KneePoint = z.infer<typeof pointSchema>;

export const kneeResultSchema = z.object({
  method: z.enum(["bisection", "steps"]),
  /** The highest rate that met the SLO with every lower one measured meeting it too; null: none did. */
  highestMetPerS: z.number().nullable(),
  /** The lowest that missed it; null: none did. */
  firstMissedPerS: z.number().nullable(),
  interrupted: z.boolean(),
  /** Why the knee is not between these rates. */
  note: z.string().nullable(),
  /** As measured, in order. */
  points: z.array(pointSchema),
});
export type KneeResult = z.infer<typeof kneeResultSchema>;

export interface KneeSearch {
  lowPerS: number;
  highPerS: number;
  /** Ends when the two rates are apart by no more than this share; default 10 %. */
  precision?: number;
  /** Default 8 runs. */
  maxRuns?: number;
  /** Runs one rate. `index` is to vary the seed: the same prompts again would be served from a prefix cache. */
  measure: (ratePerS: number, index: number) => Promise<{ summary: LoadSummary; folder: string | null }>;
  onPoint?: (point: KneePoint) => void;
}

/**
 * The knee by bisection: the lowest rate, then the highest, then the middle of what met and what missed. An invalid run counts as missed:
 * whatever the server can do, this generator can't show it.
 */
export async function findKnee(search: KneeSearch): Promise<KneeResult> {
  const { lowPerS, highPerS, precision = 0.1, maxRuns = 8, measure, onPoint } = search;
  const points: KneePoint[] = [];
  let interrupted = false;
  const meets = async (ratePerS: number) => {
    const { summary, folder } = await measure(ratePerS, points.length);
    interrupted ||= summary.interrupted;
    const point = pointOf(ratePerS, summary, folder);
    points.push(point);
    onPoint?.(point);
    return point.valid && point.sloMet;
  };
  let met: number | null = null;
  let missed: number | null = null;
  const see = async (ratePerS: number) => {
    const isMet = await meets(ratePerS);
    if (interrupted) return;
    if (isMet) met = ratePerS;
    else missed = ratePerS;
  };
  await see(lowPerS);
  if (met !== null && !interrupted) await see(highPerS);
  while (!interrupted && met !== null && missed !== null && points.length < maxRuns && missed > met * (1 + precision))
    await see((met + missed) / 2);
  const invalid = points.some(({ valid }) => !valid);
  const note = interrupted
    ? "The search was interrupted."
    : invalid
      ? "Some runs were INVALID: there the generator was the limit, so the server may take more."
      : met === null
        ? "The lowest rate misses it already: begin lower."
        : missed === null
          ? "The highest rate meets it still: end higher."
          : null;
  return { method: "bisection", highestMetPerS: met, firstMissedPerS: missed, interrupted, note, points };
}

/** The same from one run over `--steps` that go up; null where the run has no steps or no SLO. */
export function kneeOfSteps(summary: LoadSummary): KneeResult | null {
  const steps = summary.groups.filter(({ by, slo, ratePerS }) => by === "step" && slo !== null && ratePerS !== null);
  if (steps.length === 0) return null;
  const points = steps
    .map(
      ({ ratePerS, requests, latencies, slo }): KneePoint => ({
        ratePerS: ratePerS!,
        seed: null,
        sent: requests.sent,
        completed: requests.completed,
        e2eP50Ms: latencies.e2eMs?.p50.value ?? null,
        e2eP95Ms: latencies.e2eMs?.p95.value ?? null,
        goodputPerS: null,
        valid: summary.validity.valid,
        sloMet: slo!.met,
        folder: null,
      }),
    )
    .sort((a, b) => a.ratePerS - b.ratePerS);
  const missedAt = points.findIndex(({ sloMet }) => !sloMet);
  return {
    method: "steps",
    highestMetPerS: (missedAt < 0 ? points.at(-1) : points[missedAt - 1])?.ratePerS ?? null,
    firstMissedPerS: points[missedAt]?.ratePerS ?? null,
    interrupted: summary.interrupted,
    note: missedAt < 0 ? "The highest step meets it still." : missedAt === 0 ? "The lowest step misses it already." : null,
    points,
  };
}

function pointOf(
  ratePerS: number,
  { requests, latencies, throughput, validity, slo, plan }: LoadSummary,
  folder: string | null,
): KneePoint {
  return {
    ratePerS,
    seed: typeof plan.seed === "number" ? plan.seed : null,
    sent: requests.sent,
    completed: requests.completed,
    e2eP50Ms: latencies.e2eMs?.p50.value ?? null,
    e2eP95Ms: latencies.e2eMs?.p95.value ?? null,
    goodputPerS: throughput.goodputPerS,
    valid: validity.valid,
    sloMet: slo?.met ?? false,
    folder,
  };
}
