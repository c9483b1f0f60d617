import { mkdir } from "node:fs/promises";
import path from "node:path";
import { graphFile, renderSvg, standalone, WIDE } from "./charts/chart.ts";
import { chartsOf } from "./charts/charts.ts";
import { htmlOf } from "./html.ts";
import { markdownOf } from "./markdown.ts";
import { completeReport, readReport, replaceFile, writeReport } from "./report.ts";
import type { Evidence, Report } from "./schema.ts";
import { documentOf } from "./sections.ts";

/**
 * Writes report.md, report.html and graphs/*.svg from the folder's report.json; the paths written.
 * @throws MathllmError `invalid-request`: there is none, or not of its form.
 */
export async function renderReport(folder: string): Promise<string[]> {
  const report = await readReport(folder);
  const document = documentOf(report);
  const files: [name: string, text: string][] = [
    ["report.md", markdownOf(document)],
    ["report.html", htmlOf(document)],
    ...chartsOf(report.graphs).map(({ chart }): [string, string] => [graphFile(chart.id), standalone(renderSvg(chart, WIDE))]),
  ];
  await mkdir(path.join(folder, "graphs"), { recursive: true });
  for (const [name, text] of files) await replaceFile(path.join(folder, name), text);
  return files.map(([name]) => path.join(folder, name));
}

/** Draws verdict, grade and recommendations from the evidence and writes the whole report into the folder. */
export async function publishReport(folder: string, evidence: Evidence): Promise<Report> {
  const report = completeReport(evidence);
  await writeReport(folder, report);
  await renderReport(folder);
  return report;
}
