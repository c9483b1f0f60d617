import type { Evidence, Phase, PhaseId, RunRow, Unit } from "./schema.ts";

/** Says its condition in words, finds where the evidence fulfils it, and gives the figures it saw. */
export interface Rule {
  name: string;
  /** As the report prints it. */
  condition: string;
  find: (evidence: Evidence) => Finding[];
}

export interface Finding {
  text: string;
  figures: [name: string, value: number, unit: Unit][];
  phase?: PhaseId;
}

export function runsWhere({ phases }: Evidence, holds: (run: RunRow) => boolean): { phase: Phase; run: RunRow }[] {
  return phases.flatMap((phase) => phase.runs.filter(holds).map((run) => ({ phase, run })));
}

/** Without those that were not measured. */
export function figuresOf(figures: [name: string, value: number | null, unit: Unit][]): Finding["figures"] {
  return figures.filter((it): it is [string, number, Unit] => it[1] !== null);
}
