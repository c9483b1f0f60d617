import { graphFile } from "./charts/chart.ts";
import { chartsOf } from "./charts/charts.ts";
import { isWorse } from "./compare.ts";
import {
  type Block,
  code,
  column,
  heading,
  type Inline,
  list,
  mark,
  numberColumn,
  paragraph,
  type ReportDocument,
  strong,
  table,
} from "./document.ts";
import { bareFigure, changeFigure, figure, timeText } from "./figure.ts";
import { phaseSection, targetOverview } from "./phase-sections.ts";
import type { Report, Ruled, Unit } from "./schema.ts";

/** The report's document, in the order of its template. */
export function documentOf(report: Report): ReportDocument {
  const { run, hardware, verdict, grade, phases } = report;
  const machine = hardware.gpus[0]?.name ?? hardware.cpuModel;
  return {
    title: "Performance report",
    subtitle: [
      `${run.mode === "quick" ? "Quick run" : "Full run"} `,
      code(run.id),
      ` on ${machine}, ${timeText(run.startedAt)} to ${timeText(run.finishedAt)}`,
      ...(run.interrupted ? [", ", mark("bad", "interrupted")] : []),
      ...(run.resumed > 0 ? [`, resumed: ${bareFigure(run.resumed, "count")}`] : []),
      ". ",
      { kind: "link", href: "#recommendations", text: "What to do" },
      " and ",
      { kind: "link", href: "#risks", text: "what can go wrong" },
      ".",
    ],
    verdict: {
      mark: { ready: "good", reservations: "open", incomplete: "open", "not-ready": "bad" }[verdict.level] as "good" | "open" | "bad",
      headline: verdict.headline,
      reasons: verdict.reasons,
    },
    grade: {
      text: `${bareFigure(grade.points, "count")}/${bareFigure(grade.of, "count")}`,
      points: grade.points,
      of: grade.of,
      phases: grade.phases.map(({ id, point }, nth) => ({
        id,
        point,
        title: phases[nth]!.title,
        mark: point ? "good" : phases[nth]!.status === "measured" ? "bad" : "open",
      })),
    },
    ticks: grade.ticks,
    blocks: [
      ...targetOverview(report),
      ...phases.flatMap((phase) => phaseSection(report, phase)),
      ...finalConfiguration(report),
      ...beforeAfter(report),
      ...resources(report),
      ...limits(report),
      ...recommendations(report),
      ...graphs(report),
      ...gradeSection(report),
      ...formulas(report),
      ...circumstances(report),
    ],
  };
}

function finalConfiguration({ finalConfiguration: final }: Report): Block[] {
  if (final === null)
    return [heading(2, "final-configuration", "Final configuration"), paragraph("None was found: the run did not get that far.")];
  return [
    heading(2, "final-configuration", "Final configuration"),
    ...(final.changes.length === 0 ? [paragraph("Nothing was changed: the settings it began with are the best of those tried.")] : []),
    ...table("What was changed", final.changes, [
      column("setting", ({ name }) => code(name)),
      column("before", ({ before }) => (before === null ? "not set" : code(before))),
      column("after", ({ after }) => (after === null ? "not set" : code(after))),
      column("why", ({ reason }) => reason),
    ]),
    { kind: "code", text: final.env.trimEnd() },
  ];
}

function beforeAfter({ beforeAfter: { rows, reason } }: Report): Block[] {
  return [
    heading(2, "before-after", "Before and after"),
    paragraph(
      "The baseline against the final configuration. A change is real when its interval leaves 0 out and it is large enough to matter; the intervals hold for all rows of a run together.",
    ),
    ...(reason === null ? [] : [paragraph(reason)]),
    ...table("Baseline and final configuration", rows, [
      column("run", ({ run }) => run),
      column("metric", ({ metric }) => metric),
      numberColumn("baseline", ({ a, unit }) => figure(a, unit)),
      numberColumn("final", ({ b, unit }) => figure(b, unit)),
      numberColumn("change", ({ change }) => changeFigure(change)),
      numberColumn("interval", ({ interval }) =>
        interval === null ? "" : `${changeFigure(interval.low)} to ${changeFigure(interval.high)}`,
      ),
      numberColumn("requests", ({ samplesA, samplesB }) => `${bareFigure(samplesA, "count")} / ${bareFigure(samplesB, "count")}`),
      column("verdict", (row) =>
        row.verdict === "noise" ? mark("open", "noise") : isWorse(row) ? mark("bad", "real: worse") : mark("good", "real: better"),
      ),
    ]),
  ];
}

function resources({ resources: rows }: Report): Block[] {
  return [
    heading(2, "resources", "Resource use"),
    ...(rows.length === 0 ? [paragraph("Nothing was recorded.")] : []),
    ...table("Average and peak", rows, [
      column("resource", ({ name }) => name),
      column("phase", ({ phase }) => phase ?? "all"),
      numberColumn("average", ({ average, unit }) => figure(average, unit)),
      numberColumn("peak", ({ peak, unit }) => figure(peak, unit)),
    ]),
  ];
}

function limits({ limits: rows }: Report): Block[] {
  return [
    heading(2, "limits", "Limits found"),
    ...(rows.length === 0 ? [paragraph("None was looked for or found.")] : []),
    ...table("Limits", rows, [
      column("limit", ({ name }) => name),
      column("finding", ({ finding }) => finding),
      numberColumn("value", ({ value, unit }) => (value === null ? "" : figure(value, unit))),
      column("evidence", ({ evidence }) => (evidence === null ? "" : { kind: "link", href: evidence, text: evidence })),
    ]),
  ];
}

function recommendations(report: Report): Block[] {
  return [
    heading(2, "recommendations", "Recommendations"),
    ...ruledTable("What to do", report.recommendations, "No rule asks for anything."),
    heading(3, "risks", "Risks"),
    ...ruledTable("What these figures don't promise, and what can go wrong", report.risks, "No rule found one."),
  ];
}

function ruledTable(caption: string, rows: Ruled[], none: string): Block[] {
  if (rows.length === 0) return [paragraph(none)];
  return table(caption, rows, [
    column("what", ({ text }) => text),
    column("phase", ({ phase }) => phase ?? "all"),
    column("seen", ({ figures }) => figures.map(({ name, value, unit }) => `${name} ${figureOf(name, value, unit)}`).join(", ")),
    column("rule", ({ rule, condition }) => `${rule}: ${condition}`),
  ]);
}

const figureOf = (name: string, value: number, unit: Unit) => (name.startsWith("change") ? changeFigure(value) : figure(value, unit));

function graphs({ graphs: data }: Report): Block[] {
  const charts = chartsOf(data);
  return [
    heading(2, "graphs", "Graphs"),
    ...(charts.length === 0 ? [paragraph("There is nothing to draw.")] : []),
    ...(charts.length === 0
      ? []
      : [
          paragraph("Each graph stands in its phase; as files of their own:"),
          list(charts.map(({ phase, chart }) => [`${phase}: `, { kind: "link", href: graphFile(chart.id), text: chart.title }])),
        ]),
  ];
}

function gradeSection({ grade, phases }: Report): Block[] {
  return [
    heading(2, "grade", "Grade"),
    paragraph(
      strong(`${bareFigure(grade.points, "count")}/${bareFigure(grade.of, "count")}`),
      ": a phase has its point when it was measured, meets all its targets, and its load generator kept its own pace.",
    ),
    ...table("Points", grade.phases, [
      column("phase", ({ id }) => `${id} · ${phases.find((phase) => phase.id === id)!.title}`),
      column("point", ({ point }) => (point ? mark("good", "yes") : mark("bad", "no"))),
      column("because", ({ reason }) => reason),
    ]),
    ...table("What was to be done", grade.ticks, [
      column("item", ({ label }) => label),
      column("done", ({ ticked }) => (ticked ? mark("good", "yes") : mark("bad", "no"))),
      column("because", ({ reason }) => reason),
    ]),
  ];
}

function formulas({ formulas: rows }: Report): Block[] {
  return [
    heading(2, "formulas", "Formulas"),
    ...table("What each metric means", rows, [column("metric", ({ name }) => name), column("formula", ({ formula }) => formula)]),
  ];
}

function circumstances({ run, hardware, versions }: Report): Block[] {
  const machine: [string, Inline][] = [
    ["CPU", `${hardware.cpuModel}, ${bareFigure(hardware.cpuCores, "count")} cores`],
    ["memory", figure(hardware.ramBytes, "bytes")],
    ["system", hardware.os],
    ...(hardware.gpus.length === 0 ? [["GPU", "none"] as [string, Inline]] : []),
    ...hardware.gpus.map((gpu): [string, Inline] => [
      "GPU",
      [gpu.name, gpu.vramBytes === null ? null : figure(gpu.vramBytes, "bytes"), gpu.driver === null ? null : `driver ${gpu.driver}`]
        .filter((it) => it !== null)
        .join(", "),
    ]),
    ["mathllm", versions.mathllm],
    ["Node", versions.node],
    ["Redis", versions.redis ?? "unknown"],
    ["commit", run.commit === null ? "unknown" : code(run.commit)],
    ["fingerprint", code(run.fingerprint)],
    ["began, ended", `${timeText(run.startedAt)}, ${timeText(run.finishedAt)}`],
    ["phases asked for", run.phasesAsked.join(", ")],
    [
      "seeds",
      Object.entries(run.seeds)
        .map(([name, seed]) => `${name} ${seed}`)
        .join(", "),
    ],
  ];
  return [
    heading(2, "circumstances", "Hardware, versions, commands"),
    ...table("The machine and the run", machine, [column("what", ([name]) => name), column("value", ([, value]) => value)]),
    ...table("Models", versions.engines, [
      column("model", ({ role }) => role),
      column("file", ({ model }) => code(model)),
      column("digest", ({ digest }) => (digest === null ? "" : code(digest))),
      column("engine", ({ engine, version }) => (version === null ? engine : `${engine} ${version}`)),
      numberColumn("context (tokens)", ({ contextTokens }) => bareFigure(contextTokens, "tokens")),
      numberColumn("sequences", ({ maxNumSeqs }) => bareFigure(maxNumSeqs, "count")),
    ]),
    ...(run.commands.length === 0 ? [] : [{ kind: "code", text: run.commands.join("\n") } as Block]),
  ];
}
