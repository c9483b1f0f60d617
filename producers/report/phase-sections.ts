import { chartsOf } from "./charts/charts.ts";
import {
  type Block,
  code,
  column,
  type Field,
  heading,
  type Inline,
  list,
  mark,
  numberColumn,
  paragraph,
  strong,
  table,
} from "./document.ts";
import { figure } from "./figure.ts";
import { isTrusted } from "./grade.ts";
import { runTables } from "./run-tables.ts";
import type { Phase, Report, Target } from "./schema.ts";

const anchor = (phase: Pick<Phase, "id">) => `phase-${phase.id.toLowerCase()}`;

type JudgedTarget = Target & { isTrusted: boolean };

const judgedTargets = (phase: Phase): JudgedTarget[] =>
  phase.targets.map((target) => ({ ...target, isTrusted: isTrusted(phase, target.runId) }));

const TARGET_FIELDS: Field<JudgedTarget>[] = [
  column("target", ({ name }) => name),
  column("metric", ({ metric }) => metric),
  numberColumn("required", ({ comparison, threshold, unit }) => `${comparison === "at-most" ? "≤" : "≥"} ${figure(threshold, unit)}`),
  numberColumn("observed", ({ observed, unit }) => (observed === null ? "not measured" : figure(observed, unit))),
  column("result", ({ pass, observed, isTrusted }) => {
    if (observed === null) return mark("bad", "NOT MEASURED");
    if (!pass) return mark("bad", "MISSED");
    return isTrusted ? mark("good", "PASS") : mark("bad", "INVALID");
  }),
];

export function targetOverview({ phases }: Report): Block[] {
  const rows = phases.flatMap((phase) => judgedTargets(phase).map((target) => ({ ...target, name: `${phase.id} · ${target.name}` })));
  return [
    heading(2, "targets", "Targets"),
    ...table(
      "Every target with what was observed",
      rows,
      TARGET_FIELDS.filter(({ label }) => label !== "metric"),
    ),
    ...(rows.length === 0 ? [paragraph("No phase has a target.")] : []),
  ];
}

/** A phase: what was decided, targets, measured runs, graphs, and how it was configured. */
export function phaseSection(report: Report, phase: Phase): Block[] {
  const { id, title, status, configuration, runs, decision, notes, evidence } = phase;
  const { point } = report.grade.phases.find((it) => it.id === id)!;
  const isMeasured = status === "measured";
  const result = isMeasured ? (point ? mark("good", "PASS") : mark("bad", "FAIL")) : mark("open", status.toUpperCase());
  const charts = chartsOf(report.graphs).filter((it) => it.phase === id);
  return [
    heading(2, anchor(phase), `${id} · ${title}`, result),
    ...(phase.reason === null ? [] : [paragraph(strong(isMeasured ? "Note: " : "Not measured: "), phase.reason)]),
    ...(decision === null ? [] : [paragraph(strong("Decision: "), `${decision.chosen}. `, decision.reason)]),
    ...table("Targets", judgedTargets(phase), TARGET_FIELDS),
    ...runTables(runs),
    ...charts.map(({ chart }): Block => ({ kind: "chart", chart })),
    ...(notes.length === 0 ? [] : [list(notes.map((note) => [note]))]),
    ...settingsTable("Configuration", configuration),
    ...(evidence.length === 0
      ? []
      : [
          paragraph(
            "Evidence: ",
            ...evidence.flatMap((href, nth): Inline[] => [...(nth === 0 ? [] : [", "]), { kind: "link", href, text: href }]),
          ),
        ]),
  ];
}

function settingsTable(caption: string, settings: Phase["configuration"]): Block[] {
  return table(caption, Object.entries(settings), [
    column("setting", ([name]) => code(name)),
    column("value", ([, value]) => (value === null || value === "" ? "not set" : code(String(value)))),
  ]);
}
