import { type Evidence, PHASE_IDS, type Phase, type PhaseId, type Report, type TickId } from "./schema.ts";

/**
 * Grade and verdict, from the evidence alone. A phase has its point when it was measured, every target of it is met, and no target was
 * judged on a run whose load generator was the limit.
 */

export function gradeOf(evidence: Evidence): Report["grade"] {
  const phases = evidence.phases.map((phase) => {
    const flaw = flawOf(phase);
    return { id: phase.id, point: flaw === null, reason: flaw ?? passed(phase) };
  });
  return {
    points: phases.filter(({ point }) => point).length,
    of: PHASE_IDS.length,
    phases,
    ticks: TICKS.map(({ id, label, condition, missing }) => {
      const lacking = missing((phase) => evidence.phases.find((it) => it.id === phase)!);
      return { id, label, ticked: lacking === null, reason: lacking ?? condition };
    }),
  };
}

/** Why the phase has no point. */
function flawOf(phase: Phase): string | null {
  if (phase.status !== "measured") return `${phase.status}: ${phase.reason}`;
  const missed = phase.targets.filter(({ pass }) => !pass);
  if (missed.length > 0) return `missed: ${missed.map(({ name }) => name).join("; ")}`;
  const untrusted = phase.targets.filter(({ runId }) => !isTrusted(phase, runId));
  if (untrusted.length > 0) return `met, but its load generator was the limit: ${untrusted.map(({ name }) => name).join("; ")}`;
  return null;
}

function passed(phase: Phase): string {
  return phase.targets.length === 0 ? "measured; it has no target" : "measured, every target met";
}

/** Whether a target of that run (null: of the phase) was judged on figures that its load generator could keep. */
export function isTrusted({ runs }: Phase, runId: string | null): boolean {
  return !runs.some(({ id, validity }) => id === runId && validity?.valid === false);
}

interface Tick {
  id: TickId;
  label: string;
  condition: string;
  /** What the condition lacks; null: nothing. */
  missing: (phase: (id: PhaseId) => Phase) => string | null;
}

const TICKS: Tick[] = [
  {
    id: "baseline-documented",
    label: "Baseline documented",
    condition: "phase A measured the latency of at least one run",
    missing: (phase) =>
      unmeasured(phase("A")) ??
      (phase("A").runs.some(({ latencies }) => latencies.e2eMs !== null) ? null : "phase A has no run with latencies"),
  },
  {
    id: "tuning-done",
    label: "Tuning done",
    condition: "phase B compared at least two settings and chose one",
    missing: (phase) => unmeasured(phase("B")) ?? compared(phase("B")) ?? undecided(phase("B")),
  },
  {
    id: "speculation-evaluated",
    label: "Speculation evaluated",
    condition: "phase C measured with and without it and decided",
    missing: (phase) => unmeasured(phase("C")) ?? compared(phase("C")) ?? undecided(phase("C")),
  },
  {
    id: "talker-deployed",
    label: "Talker deployed",
    condition: "phase D chose an option, and the Talker answered with it",
    missing: (phase) =>
      unmeasured(phase("D")) ??
      undecided(phase("D")) ??
      (phase("D").runs.some(({ requests }) => requests.completed > 0) ? null : "the Talker finished no request in phase D"),
  },
  {
    id: "guardrails-and-cache-verified",
    label: "Guardrails and cache verified",
    condition: "phases E and F were measured and met every target",
    missing: (phase) => flawIn(phase("E")) ?? flawIn(phase("F")),
  },
];

const unmeasured = (phase: Phase) => (phase.status === "measured" ? null : `phase ${phase.id} was not measured (${phase.reason})`);
const compared = (phase: Phase) => (phase.runs.length >= 2 ? null : `phase ${phase.id} has nothing to compare`);
const undecided = (phase: Phase) => (phase.decision === null ? `phase ${phase.id} made no decision` : null);
function flawIn(phase: Phase): string | null {
  const flaw = flawOf(phase);
  return flaw === null ? null : `phase ${phase.id}: ${flaw}`;
}

/**
 * - `incomplete`: a phase was not measured;
 * - `not-ready`: a job was lost, or the baseline (A) or the sustained load (E) has no point;
 * - `reservations`: another phase has no point;
 * - `ready`: all seven have one.
 */
export function verdictOf(evidence: Evidence, grade: Report["grade"]): Report["verdict"] {
  const lacking = Map.groupBy(
    grade.phases.filter(({ point }) => !point),
    ({ reason }) => reason,
  );
  const titled = (id: PhaseId) => `${id}, ${evidence.phases.find((phase) => phase.id === id)!.title}`;
  const reasons = [...lacking].map(([reason, [first, ...others]]) =>
    others.length === 0 ? `${titled(first!.id)}: ${reason}` : `${[first!, ...others].map(({ id }) => id).join(", ")}: ${reason}`,
  );
  const lost = evidence.phases.flatMap(({ runs }) => runs).some(({ lostJobs }) => (lostJobs ?? 0) > 0);
  const lacks = (id: PhaseId) => grade.phases.some((phase) => phase.id === id && !phase.point);
  if (evidence.phases.some(({ status }) => status !== "measured"))
    return { level: "incomplete", headline: "Not everything was measured: there is no verdict on the whole yet.", reasons };
  if (lost) return { level: "not-ready", headline: "Not ready: accepted jobs were lost.", reasons };
  if (lacks("A") || lacks("E"))
    return { level: "not-ready", headline: "Not ready: the baseline or the sustained load misses its targets.", reasons };
  if (reasons.length > 0)
    return { level: "reservations", headline: "Usable, with reservations: not every phase meets its targets.", reasons };
  return { level: "ready", headline: "Ready: every phase was measured and meets its targets.", reasons };
}
