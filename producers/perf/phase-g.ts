import type { Phase } from "../report/schema.ts";
import { judged } from "../report/schema.ts";
import { capacitiesOf, MIX, mixedRun, rateFor } from "./mixed-traffic.ts";
import type { Measured, PhaseRunner } from "./phase.ts";
import { profileSettings } from "./shapes.ts";
import { lostTarget, successTarget } from "./targets.ts";
import { residencyOf } from "./traces.ts";

const POLICIES = ["least-wait", "ge", "exhaustive", "fifo"] as const;
/** High enough that a policy matters, low enough that a good one keeps up. */
const UTILISATION = 0.6;

/** G, mixed Student and Talker traffic through the queues: the same arrivals under each swap policy. */
export const runPhaseG: PhaseRunner = async (context) => {
  const { config, sizes, seed, say } = context;
  const capacities = await capacitiesOf(context);
  const ratePerS = rateFor(UTILISATION, MIX, capacities);
  const runs: Measured[] = [];
  for (const policy of POLICIES) {
    const run = await context.withSystem(`policy-${policy}`, { GPU_POLICY: policy }, (system) =>
      context.measure(
        system,
        mixedRun(
          { id: policy, label: `Policy ${policy}`, ratePerS, durationS: sizes.policyS, warmUpS: 0 },
          { seed, settings: { GPU_POLICY: policy }, sloMs: config.deadlinesMs.normal },
        ),
      ),
    );
    runs.push(run);
    const wait = run.row.latencies.queueWaitMs;
    say(`policy ${policy}: ${run.row.swaps} swaps, p95 wait ${wait === null ? "?" : (wait.p95.value / 1000).toFixed(1)} s`);
  }
  const [, ge, , fifo] = runs.map(({ row }) => row);
  const rows = runs.map(({ row }) => row);
  const phase: Phase = {
    id: "G",
    title: "Mixed traffic and swap policies",
    status: "measured",
    reason: null,
    startedAt: null,
    finishedAt: null,
    configuration: {
      ...profileSettings(config.profiles.student),
      ...profileSettings(config.profiles.talker),
      GPU_POLICY: config.gpuPolicy,
      ratePerS: Number(ratePerS.toFixed(2)),
    },
    targets: [
      lostTarget([ge!]),
      successTarget([ge!]),
      judged({
        name: "ge: nothing waits past the deadline of class normal",
        metric: "longest queue wait",
        runId: "ge",
        comparison: "at-most",
        threshold: config.deadlinesMs.normal,
        observed: ge!.latencies.queueWaitMs?.max ?? null,
        unit: "ms",
      }),
      judged({
        name: "ge: no more swaps than strict arrival order",
        metric: "swaps of ge against fifo",
        runId: "ge",
        comparison: "at-most",
        threshold: 1,
        observed: ge!.swaps === null || !fifo!.swaps ? null : ge!.swaps / fifo!.swaps,
        unit: "ratio",
      }),
    ],
    runs: rows,
    decision: { chosen: `GPU_POLICY=${config.gpuPolicy}`, reason: reasonFor(rows, config.gpuPolicy) },
    notes: [
      `Poisson arrivals at ${ratePerS.toFixed(2)} a second for ${sizes.policyS} s, the same for each policy, ${UTILISATION * 100} % of the models' time without swaps.`,
    ],
    evidence: [...rows.flatMap(({ records }) => records ?? []), ...runs.map(({ telemetryFile }) => telemetryFile)],
  };
  return {
    phase,
    settings: {},
    reasons: {},
    capacities,
    graphs: { residency: runs.map((run) => residencyOf(`policy ${run.row.id}`, "G", run)) },
    limits: [],
  };
};

function reasonFor(rows: Measured["row"][], configured: string): string {
  const figures = rows.map(({ id, swaps, latencies }) => {
    const wait = latencies.queueWaitMs;
    return `${id} ${swaps ?? "?"} swaps, ${wait === null ? "?" : (wait.p95.value / 1000).toFixed(1)} s p95 wait`;
  });
  return `${figures.join("; ")}. exhaustive has no bound on a wait and fifo swaps at nearly every job; ${configured} is configured.`;
}
