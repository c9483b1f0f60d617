import Table from "cli-table3";
import { isWorse } from "./compare.ts";
import { changeFigure, figure } from "./figure.ts";
import type { Comparison } from "./recorded-runs.ts";

/** A comparison as a table for a terminal. */
export function comparisonText({ rows, realChanges, worse, differences, warnings }: Comparison): string {
  const table = new Table({
    head: ["run", "metric", "A", "B", "change", "95 % interval", "verdict"],
    style: { head: [], border: [] },
    colAligns: ["left", "left", "right", "right", "right", "right", "left"],
    colWidths: [30],
    wordWrap: true,
  });
  for (const row of rows)
    table.push([
      row.run,
      row.metric,
      figure(row.a, row.unit),
      figure(row.b, row.unit),
      changeFigure(row.change),
      row.interval === null ? figure(null, "share") : `${changeFigure(row.interval.low)} to ${changeFigure(row.interval.high)}`,
      row.verdict === "noise" ? "noise" : isWorse(row) ? "real: worse" : "real: better",
    ]);
  const lines = [
    ...(rows.length === 0 ? [] : [table.toString()]),
    ...(differences.length === 0 ? [] : ["They were not made alike; a change may come from:"]),
    ...differences.map(({ name, a, b }) => `  ${name}: ${a} → ${b}`),
    ...warnings.map((text) => `Warning: ${text}`),
    realChanges === 0
      ? "No real change: no interval leaves 0 out with a change large enough to matter."
      : `${realChanges} of ${rows.length} figures changed for real, ${worse} to the worse.`,
  ];
  return `${lines.join("\n")}\n`;
}
