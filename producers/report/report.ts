import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { MathllmError } from "../../queues/errors.ts";
import { gradeOf, verdictOf } from "./grade.ts";
import { applyRules } from "./rules.ts";
import { type Evidence, evidenceSchema, type Report, reportSchema } from "./schema.ts";

export const REPORT_FILE = "report.json";

/**
 * The evidence with what follows from it.
 * @throws MathllmError `invalid-request`: the evidence doesn't have its form.
 */
export function completeReport(evidence: Evidence): Report {
  const checked = parsed(evidenceSchema, evidence, "the evidence of a run");
  const grade = gradeOf(checked);
  return { ...checked, verdict: verdictOf(checked, grade), grade, ...applyRules(checked) };
}

/**
 * The report in `folder`, or in the file itself.
 * @throws MathllmError `invalid-request`: there is none, or not of this form.
 */
export async function readReport(fileOrFolder: string): Promise<Report> {
  const file = path.basename(fileOrFolder).endsWith(".json") ? fileOrFolder : path.join(fileOrFolder, REPORT_FILE);
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw new MathllmError("invalid-request", `Expected a report at ${file}; ${(error as Error).message}`, { cause: error });
  }
  try {
    return parsed(reportSchema, JSON.parse(text), file);
  } catch (error) {
    if (error instanceof MathllmError) throw error;
    throw new MathllmError("invalid-request", `Expected JSON in ${file}; ${(error as Error).message}`, { cause: error });
  }
}

function parsed<T>(schema: z.ZodType<T>, value: unknown, from: string): T {
  const outcome = schema.safeParse(value);
  if (outcome.success) return outcome.data;
  throw new MathllmError("invalid-request", `Expected a report (report.schema.json) in ${from}; came:\n${z.prettifyError(outcome.error)}`);
}

/** Writes report.json; a reader never sees half of it. */
export async function writeReport(folder: string, report: Report): Promise<void> {
  await mkdir(folder, { recursive: true });
  await replaceFile(path.join(folder, REPORT_FILE), `${JSON.stringify(report, null, 2)}\n`);
}

export async function replaceFile(file: string, text: string): Promise<void> {
  await writeFile(`${file}.partial`, text);
  await rename(`${file}.partial`, file);
}
