import { existsSync } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import path from "node:path";
import { MathllmError } from "../../queues/errors.ts";
import { type LoadRecord, loadRecordSchema } from "../load/record.ts";
import { loadSummarySchema } from "../load/summary.ts";
import { type CompareOptions, compareRecords, isWorse } from "./compare.ts";
import { REPORT_FILE, readReport } from "./report.ts";
import type { ComparisonRow, Report } from "./schema.ts";

/** What two folders hold and how they differ. */
export interface Comparison {
  a: string;
  b: string;
  rows: ComparisonRow[];
  /** How many rows changed for real, and how many of them to the worse. */
  realChanges: number;
  worse: number;
  /** What differs in how the two were made: a change may come from there. */
  differences: { name: string; a: string; b: string }[];
  warnings: string[];
}

interface RecordedRuns {
  /** By phase and run; a single load run has one, with no name. */
  runs: Map<string, { label: string; file: string }>;
  /** What a figure depends on, flat. */
  conditions: Map<string, string>;
  warnings: string[];
}

const SINGLE = "";
const REQUESTS_FILE = "requests.jsonl";

/**
 * Compares two reports (folders of `mathllm perf`), or two load runs (folders of `mathllm load`, or their requests.jsonl).
 * @throws MathllmError `invalid-request`: nothing recorded there, or not of this form.
 */
export async function compareFolders(a: string, b: string, options: CompareOptions = {}): Promise<Comparison> {
  const [one, other] = [await recordedRuns(a), await recordedRuns(b)];
  const common = [...one.runs.keys()].filter((key) => other.runs.has(key));
  if (common.length === 0)
    throw new MathllmError("invalid-request", `Expected runs of the same names in ${a} and ${b}; came none in common.`);
  const lonely = [...one.runs.keys(), ...other.runs.keys()].filter((key) => !common.includes(key));
  const rows: ComparisonRow[] = [];
  const warnings = [...one.warnings.map((text) => `A: ${text}`), ...other.warnings.map((text) => `B: ${text}`)];
  for (const key of common) {
    const run = one.runs.get(key)!;
    const found = compareRecords(run.label, await readRecords(run.file), await readRecords(other.runs.get(key)!.file), options);
    if (found.length === 0) warnings.push(`${run.label}: too few requests to say anything.`);
    rows.push(...found);
  }
  for (const key of lonely) warnings.push(`${key} is only in one of the two.`);
  return {
    a,
    b,
    rows,
    realChanges: rows.filter(({ verdict }) => verdict === "real").length,
    worse: rows.filter(isWorse).length,
    differences: differencesOf(one.conditions, other.conditions),
    warnings,
  };
}

/** The records of a `requests.jsonl`, in the order of the file. A last line that an end cut off is left out. */
export async function readRecords(file: string): Promise<LoadRecord[]> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw new MathllmError("invalid-request", `Expected recorded requests at ${file}; ${(error as Error).message}`, { cause: error });
  }
  const lines = text.slice(0, text.lastIndexOf("\n") + 1).split("\n");
  return lines.flatMap((line, at) => {
    if (line === "") return [];
    const outcome = loadRecordSchema.safeParse(parsedJson(line));
    if (outcome.success) return outcome.data;
    const [issue] = outcome.error.issues;
    throw new MathllmError(
      "invalid-request",
      `Expected a recorded request in ${file}, line ${at + 1}; ${issue!.path.join(".")}: ${issue!.message}`,
    );
  });
}

function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

async function recordedRuns(place: string): Promise<RecordedRuns> {
  const isFolder = await stat(place).then(
    (found) => found.isDirectory(),
    () => null,
  );
  if (isFolder === null)
    throw new MathllmError("invalid-request", `Expected a folder of mathllm perf or mathllm load; there is no ${place}.`);
  const folder = isFolder ? place : path.dirname(place);
  if (place.endsWith(".jsonl")) return loadRun(place, folder);
  if (existsSync(path.join(folder, REPORT_FILE))) return reportRuns(await readReport(folder), folder);
  if (existsSync(path.join(folder, REQUESTS_FILE))) return loadRun(path.join(folder, REQUESTS_FILE), folder);
  throw new MathllmError("invalid-request", `Expected ${REPORT_FILE} or ${REQUESTS_FILE} in ${place}; came neither.`);
}

function reportRuns(report: Report, folder: string): RecordedRuns {
  const rows = report.phases.flatMap((phase) => phase.runs.map((row) => ({ phase, row })));
  const recorded = rows.filter(({ row }) => row.records !== null);
  const { run, hardware, versions } = report;
  return {
    runs: new Map(
      recorded.map(({ phase, row }) => [
        `${phase.id}/${row.id}`,
        { label: `${phase.id}: ${row.label}`, file: path.join(folder, row.records!) },
      ]),
    ),
    conditions: flat({
      mode: run.mode,
      commit: run.commit,
      seeds: run.seeds,
      settings: run.fingerprintOf,
      hardware,
      versions,
      runs: Object.fromEntries(rows.map(({ phase, row }) => [`${phase.id}/${row.id}`, { seed: row.seed, ...row.settings }])),
    }),
    warnings: recorded
      .filter(({ row }) => row.validity?.valid === false)
      .map(({ row }) => `${row.label} is INVALID: its load generator was the limit.`),
  };
}

async function loadRun(file: string, folder: string): Promise<RecordedRuns> {
  const runs = new Map([[SINGLE, { label: "load", file }]]);
  const summaryFile = path.join(folder, "summary.json");
  if (!existsSync(summaryFile))
    return { runs, conditions: new Map(), warnings: ["no summary.json beside it: it isn't known how it was made."] };
  const outcome = loadSummarySchema.safeParse(parsedJson(await readFile(summaryFile, "utf8")));
  if (!outcome.success)
    throw new MathllmError("invalid-request", `Expected a summary of mathllm load in ${summaryFile}; came another form.`);
  const { plan, url, validity, interrupted } = outcome.data;
  return {
    runs,
    conditions: flat({ url, plan }),
    warnings: [
      ...(validity.valid ? [] : [`INVALID, its load generator was the limit: ${validity.reasons.join("; ")}`]),
      ...(interrupted ? ["it was interrupted."] : []),
    ],
  };
}

function flat(value: unknown, prefix = ""): Map<string, string> {
  if (value === null || typeof value !== "object") return new Map([[prefix, String(value)]]);
  return new Map(Object.entries(value).flatMap(([key, inner]) => [...flat(inner, prefix === "" ? key : `${prefix}.${key}`)]));
}

function differencesOf(a: Map<string, string>, b: Map<string, string>): Comparison["differences"] {
  if (a.size === 0 || b.size === 0) return [];
  return [...new Set([...a.keys(), ...b.keys()])]
    .map((name) => ({ name, a: a.get(name) ?? "not set", b: b.get(name) ?? "not set" }))
    .filter((it) => it.a !== it.b);
}
