import type { RequestKind } from "../load/record.ts";
import type { Capacities, PhaseContext, RunSpec } from "./phase.ts";
import { closedRun } from "./shapes.ts";

/** Both models' work, as a small group of users would send it. */
export const MIX: Record<RequestKind, number> = { student: 0.6, explain: 0.2, talker: 0.2 };
export const CLASSES = { interactive: 0.2, normal: 0.5, batch: 0.3 };

/** Longer than any wait that is no fault. */
const TIMEOUT_S = 300;

/**
 * The arrival rate at which the mix takes so much of the GPU's time on the models, swaps left out: `utilisation` / Σ share / capacity.
 * An explanation needs both models.
 */
export function rateFor(utilisation: number, mix: Record<RequestKind, number>, capacities: Required<Capacities>): number {
  const secondsOf: Record<RequestKind, number> = {
    student: 1 / capacities.student,
    talker: 1 / capacities.talker,
    explain: 1 / capacities.student + 1 / capacities.talker,
  };
  const seconds = (Object.keys(mix) as RequestKind[]).reduce((sum, kind) => sum + mix[kind] * secondsOf[kind], 0);
  return utilisation / seconds;
}

/** What the phases before measured; what is missing is measured now, with all sequences busy. */
export async function capacitiesOf(context: PhaseContext): Promise<Required<Capacities>> {
  const { capacities, sizes, config } = context;
  const { student, talker } = capacities;
  if (student !== undefined && talker !== undefined) return { student, talker };
  return context.withSystem("calibration", {}, async (system) => {
    const measured = async (kind: "student" | "talker") => {
      const concurrency = config.profiles[kind].maxNumSeqs;
      const spec = closedRun({ id: `calibration-${kind}`, label: `${kind}, saturated`, kind, shape: "natural", concurrency }, sizes);
      const { row } = await context.measure(system, spec);
      return row.throughput?.requestsPerS ?? 0;
    };
    return { student: student ?? (await measured("student")), talker: talker ?? (await measured("talker")) };
  });
}

/** An open loop of mixed traffic. */
export function mixedRun(
  { id, label, ratePerS, durationS, warmUpS }: { id: string; label: string; ratePerS: number; durationS: number; warmUpS: number },
  more: Partial<RunSpec> = {},
): RunSpec {
  return {
    id,
    label,
    role: null,
    shape: "natural",
    plan: {
      arrivals: { pattern: "poisson", ratePerS },
      durationS: durationS + warmUpS,
      warmUpS,
      mix: MIX,
      classes: CLASSES,
      timeoutS: TIMEOUT_S,
    },
    ...more,
  };
}
