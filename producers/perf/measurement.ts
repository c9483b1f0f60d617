import path from "node:path";
import { runLoad } from "../load/load-run.ts";
import type { RequestKind } from "../load/record.ts";
import type { LoadSummary } from "../load/summary.ts";
import { readRecords } from "../report/recorded-runs.ts";
import { proportion, runRow } from "../report/run-row.ts";
import type { MeasuredSystem } from "./measured-system.ts";
import type { Measured, RunSpec } from "./phase.ts";
import { watchMemory } from "./process-memory.ts";
import { readTelemetry, type TelemetryRecords } from "./telemetry-file.ts";

/** Errors after which nobody knows how a request ended: its job may be lost. */
const UNENDED = ["timeout", "connection", "broken-stream", "unknown-job"];
/** The worker's sampler may write a second late. */
const TELEMETRY_SLACK_MS = 1500;

export interface MeasureOptions {
  /** The report's folder, and the phase's within it. */
  outDir: string;
  phaseFolder: string;
  seed: number;
  signal: AbortSignal;
}

/**
 * One run of the load generator against a system, with what the worker recorded meanwhile.
 * @throws the signal's reason when it aborts: an interrupted run is no measurement.
 */
export async function measureRun(system: MeasuredSystem, spec: RunSpec, options: MeasureOptions): Promise<Measured> {
  const { outDir, phaseFolder, signal } = options;
  const folder = path.join(phaseFolder, spec.id);
  const memory = watchMemory(system.apiPid);
  let summary: LoadSummary;
  try {
    summary = await runLoad(
      {
        ...spec.plan,
        ...(spec.sloMs === undefined ? {} : { slo: `e2e-p95<${spec.sloMs},errors<1%` }),
        seed: spec.seed ?? options.seed,
        url: system.url,
        outDir: path.join(outDir, folder),
      },
      { signal },
    );
  } finally {
    memory.stop();
  }
  signal.throwIfAborted();
  const recordsFile = path.posix.join(folder, "requests.jsonl");
  const records = await readRecords(path.join(outDir, recordsFile));
  const telemetry = await readTelemetry(system.telemetryPath, summary.startedAt, summary.finishedAt + TELEMETRY_SLACK_MS);
  const drafts = draftTokens(telemetry);
  const cacheIsSubject = (spec.plan.cache ?? "off") !== "off";
  const { requests, errors } = summary;
  const computed = runRow(summary, {
    id: spec.id,
    label: spec.label,
    role: spec.role,
    shape: spec.shape,
    settings: spec.settings ?? {},
    records: recordsFile,
    oomCount: telemetry.ooms.length,
    acceptance: drafts === null ? null : proportion(drafts.accepted, drafts.drafted),
    lostJobs: errors.filter(({ errorClass }) => UNENDED.includes(errorClass)).reduce((sum, { count }) => sum + count, 0),
  });
  const cacheHits = cacheIsSubject ? proportion(requests.cached + requests.coalesced, requests.completed) : null;
  const row = { ...computed, cacheHits };
  const telemetryFile = path.relative(outDir, system.telemetryPath).split(path.sep).join("/");
  return { row, summary, records, telemetry, telemetryFile, apiMemory: memory.stop() };
}

/** Drafted and accepted tokens within the telemetry, over restarts of the model server, which counts anew; null where nothing drafts. */
export function draftTokens({ samples }: Pick<TelemetryRecords, "samples">): { drafted: number; accepted: number } | null {
  let drafted = 0;
  let accepted = 0;
  let before: { drafted: number; accepted: number } | null = null;
  for (const { draftTokensTotal, draftAcceptedTokensTotal } of samples) {
    if (draftTokensTotal == null || draftAcceptedTokensTotal == null) continue;
    if (before !== null) {
      const from = draftTokensTotal < before.drafted ? { drafted: 0, accepted: 0 } : before;
      drafted += draftTokensTotal - from.drafted;
      accepted += draftAcceptedTokensTotal - from.accepted;
    }
    before = { drafted: draftTokensTotal, accepted: draftAcceptedTokensTotal };
  }
  return drafted === 0 ? null : { drafted, accepted };
}

/** Which models a mix of kinds needs, in the order they are needed. */
export function firstModelOf(mix: Partial<Record<RequestKind, number>> | undefined): "student" | "talker" {
  const shares = mix ?? { student: 1 };
  return (shares.student ?? 0) + (shares.explain ?? 0) > 0 ? "student" : "talker";
}
