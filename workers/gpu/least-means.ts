import { MathllmError } from "../../queues/errors.ts";
import { ROLES } from "../../queues/names.ts";
import { type Optimum, type OptimumOptions, type OptimumSystem, solveOptimum } from "./optimum.ts";
import type { Setting } from "./optimum-table.ts";
import { perModel } from "./synthetic-traffic.ts";

/** Swaps are modelled by at most so many stages. */
const MAX_SWAP_STAGES = 24;

/** The least means that any policy can reach on a setting, each by the policy that is best for it. */
export interface LeastMeans {
  setting: Setting;
  swapStages: number;
  meanWaitMs: number;
  meanEndToEndMs: number;
  wait: Optimum;
  /** null: jobs don't slow each other, so who waits least is done first. */
  endToEnd: Optimum | null;
  /** To what the setting says; null where it says nothing. */
  waitRatio: number | null;
  endToEndRatio: number | null;
}

/** Throws `invalid-configuration` for a system that the method doesn't fit; see also `solveOptimum`. */
export function leastMeans(setting: Setting, options: OptimumOptions = {}): LeastMeans {
  const { mix, serviceCv, optimalMeanWaitMs, optimalMeanEndToEndMs } = setting;
  if (serviceCv !== 1)
    throw new MathllmError(
      "invalid-configuration",
      `--optimal: expected exponential service (coefficient of variation 1), got ${serviceCv}.`,
    );
  const models = modelsOf(setting);
  // As near as whole stages come; a constant swap would take infinitely many.
  const swapStages = Math.min(Math.max(Math.round(setting.swapCv ** -2), 1), MAX_SWAP_STAGES);
  const system = { slots: setting.slots, models, swapStages };
  const wait = solveOptimum({ ...system, objective: "wait" }, options);
  const slowing = ROLES.some((role) => models[role].arrivalsPerMs > 0 && models[role].batchExponent < 1);
  const endToEnd = slowing ? solveOptimum({ ...system, objective: "end-to-end" }, options) : null;
  const meanEndToEndMs = endToEnd?.meanMs ?? wait.meanMs + mix * models.student.serviceMs + (1 - mix) * models.talker.serviceMs;
  return {
    setting,
    swapStages,
    meanWaitMs: wait.meanMs,
    meanEndToEndMs,
    wait,
    endToEnd,
    waitRatio: optimalMeanWaitMs === undefined ? null : wait.meanMs / optimalMeanWaitMs,
    endToEndRatio: optimalMeanEndToEndMs === undefined ? null : meanEndToEndMs / optimalMeanEndToEndMs,
  };
}

function modelsOf({ slots, load, mix, ...setting }: Setting): OptimumSystem["models"] {
  const [serviceMs, swapMs, batchExponent] = [perModel(setting.serviceMs), perModel(setting.swapMs), perModel(setting.batchExponent)];
  const share = { student: mix, talker: 1 - mix };
  const perJobMs = ROLES.reduce((sum, role) => sum + (share[role] * serviceMs[role]) / slots ** batchExponent[role], 0);
  const model = (role: (typeof ROLES)[number]) => ({
    arrivalsPerMs: (share[role] * load) / perJobMs,
    serviceMs: serviceMs[role],
    batchExponent: batchExponent[role],
    swapMs: swapMs[role],
  });
  return { student: model("student"), talker: model("talker") };
}
