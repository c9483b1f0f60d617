import { setTimeout as delay } from "node:timers/promises";
import type { Evidence, Phase } from "../report/schema.ts";
import { judged } from "../report/schema.ts";
import type { MeasuredSystem } from "./measured-system.ts";
import { capacitiesOf, MIX, mixedRun, rateFor } from "./mixed-traffic.ts";
import type { Measured, PhaseRunner } from "./phase.ts";
import { growthBytes } from "./process-memory.ts";
import { profileSettings } from "./shapes.ts";
import { lostTarget, oomTarget, successTarget } from "./targets.ts";
import { memoryOf, residencyOf, throughputOf } from "./traces.ts";

/** Half of the models' time, so that swaps have room. */
const UTILISATION = 0.5;
const WARM_UP_S = 5;
const TELEMETRY_SHARE = 0.95;
const MOST_GROWTH_BYTES = 50 * 1_048_576;
const RECOVERY_TARGET_MS = 60_000;
const POLL_MS = 50;

/**
 * E, sustained mixed load with telemetry, and a guardrail tried for real: the model server is killed with -9 under load, and every
 * job has to end all the same.
 */
export const runPhaseE: PhaseRunner = async (context) => {
  const { config, sizes, say } = context;
  const capacities = await capacitiesOf(context);
  const ratePerS = rateFor(UTILISATION, MIX, capacities);
  const sustainedId = "sustained";
  const sustained = await context.withSystem(sustainedId, {}, (system) =>
    context.measure(
      system,
      mixedRun({
        id: sustainedId,
        label: `Sustained mixed load, ${sizes.sustainedS} s`,
        ratePerS,
        durationS: sizes.sustainedS,
        warmUpS: WARM_UP_S,
      }),
    ),
  );
  const ownsServer = !["ollama", "remote"].includes(config.profiles.student.mode);
  const guarded = ownsServer
    ? await context.withSystem("guardrail", {}, async (system) => {
        const spec = mixedRun({
          id: "guardrail",
          label: "Model server killed under load",
          ratePerS,
          durationS: sizes.guardrailS,
          warmUpS: 0,
        });
        // Together: an interruption rejects both, and neither may be left unheard.
        const [run, recoveryMs] = await Promise.all([
          context.measure(system, spec),
          killServer(system, (sizes.guardrailS * 1000) / 3, context.signal),
        ]);
        return { run, recoveryMs };
      })
    : null;
  const rows = [sustained.row, ...(guarded === null ? [] : [guarded.run.row])];
  const workerGrowth = growthBytes(sustained.telemetry.samples.flatMap(({ rssBytes }) => rssBytes ?? []));
  const apiGrowth = growthBytes(sustained.apiMemory.map(({ rssBytes }) => rssBytes));
  const spanS = (sustained.summary.finishedAt - sustained.summary.startedAt) / 1000;
  say(`sustained: ${sustained.row.requests.completed} of ${sustained.row.requests.sent} completed, ${sustained.row.swaps} swaps`);
  const growthTarget = (name: string, observed: number | null) =>
    judged({
      name: `${name}: memory doesn't grow`,
      metric: "growth of resident memory over the second half",
      runId: sustainedId,
      comparison: "at-most",
      threshold: MOST_GROWTH_BYTES,
      observed,
      unit: "bytes",
    });
  const phase: Phase = {
    id: "E",
    title: "Sustained load, telemetry and guardrails",
    status: "measured",
    reason: null,
    startedAt: null,
    finishedAt: null,
    configuration: {
      ...profileSettings(config.profiles.student),
      ...profileSettings(config.profiles.talker),
      ratePerS: Number(ratePerS.toFixed(2)),
    },
    targets: [
      oomTarget(rows),
      lostTarget(rows),
      successTarget(rows),
      judged({
        name: "Telemetry has no gaps",
        metric: "samples a second",
        runId: sustainedId,
        comparison: "at-least",
        threshold: TELEMETRY_SHARE,
        observed: Math.min(sustained.telemetry.samples.length / spanS, 1),
        unit: "share",
      }),
      growthTarget("Worker", workerGrowth),
      growthTarget("API", apiGrowth),
      ...(guarded === null
        ? []
        : [
            judged({
              name: "A killed model server is back",
              metric: "from kill -9 to a model that serves",
              runId: "guardrail",
              comparison: "at-most",
              threshold: RECOVERY_TARGET_MS,
              observed: guarded.recoveryMs,
              unit: "ms",
            }),
          ]),
    ],
    runs: rows,
    decision: null,
    notes: [
      `Poisson arrivals at ${ratePerS.toFixed(2)} a second, which takes ${UTILISATION * 100} % of the models' time: ${(capacities.student ?? 0).toFixed(1)} solutions and ${(capacities.talker ?? 0).toFixed(1)} Talker answers a second fill it.`,
      ...(guarded === null ? ["The model server is someone else's, so it was not killed."] : []),
    ],
    evidence: [
      ...rows.flatMap(({ records }) => records ?? []),
      ...[sustained, ...(guarded === null ? [] : [guarded.run])].map(({ telemetryFile }) => telemetryFile),
    ],
  };
  return {
    phase,
    settings: {},
    reasons: {},
    capacities,
    graphs: {
      throughput: throughputOf("E", sustained),
      memory: memoryOf("E", sustained),
      residency: [residencyOf("sustained mixed load", "E", sustained)],
    },
    limits: guarded === null ? [] : [recoveryLimit(guarded.run, guarded.recoveryMs)],
  };
};

/**
 * Waits, kills the model server that serves, and resolves with the milliseconds until one serves again; null when none did in time.
 * A moment without a server, within a swap, is waited out.
 */
async function killServer(system: MeasuredSystem, afterMs: number, signal: AbortSignal): Promise<number | null> {
  await delay(afterMs, undefined, { signal });
  const serving = async () => {
    const [gpu] = (await system.gpu()).gpus;
    return gpu?.server.state === "ready" ? gpu.server.pid : null;
  };
  let victim = await serving();
  while (victim === null) {
    await delay(POLL_MS, undefined, { signal });
    victim = await serving();
  }
  process.kill(victim, "SIGKILL");
  const killedAt = performance.now();
  while (performance.now() - killedAt < 2 * RECOVERY_TARGET_MS) {
    await delay(POLL_MS, undefined, { signal });
    const pid = await serving();
    if (pid !== null && pid !== victim) return performance.now() - killedAt;
  }
  return null;
}

function recoveryLimit({ row }: Measured, recoveryMs: number | null): Evidence["limits"][number] {
  const { completed, sent } = row.requests;
  return {
    name: "Death of the model server",
    finding:
      recoveryMs === null
        ? `After kill -9 no model served again within ${(2 * RECOVERY_TARGET_MS) / 1000} s.`
        : `After kill -9 under load a model served again in ${(recoveryMs / 1000).toFixed(1)} s; ${completed} of ${sent} requests completed.`,
    value: recoveryMs,
    unit: "ms",
    evidence: row.records,
  };
}
