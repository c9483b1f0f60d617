import { expect, test } from "vitest";
import { seededRandom } from "../../maths/seeded-random.ts";
import { bareFigure, changeFigure, durationText, figure } from "../../producers/report/figure.ts";
import { markdownOf } from "../../producers/report/markdown.ts";
import { completeReport } from "../../producers/report/report.ts";
import type { Report, RunRow, Unit } from "../../producers/report/schema.ts";
import { documentOf } from "../../producers/report/sections.ts";
import { fixtureEvidence } from "../fixtures/report/evidence.ts";

interface ParsedTable {
  section: string;
  caption: string;
  columns: string[];
  rows: string[][];
}

/** The tables of a Markdown text, with the section and the caption they stand under. */
function tablesOf(markdown: string): ParsedTable[] {
  const tables: ParsedTable[] = [];
  let section = "";
  let caption = "";
  for (const line of markdown.split("\n")) {
    if (line.startsWith("## ")) section = line.slice(3).replace(/ — .*/, "");
    if (line.startsWith("**")) caption = line.slice(2, -2);
    if (!line.startsWith("| ")) continue;
    const cells = line
      .slice(2, -2)
      .split(/ (?<!\\)\| /)
      .map((cell) => cell.replace(/\\(.)/g, "$1"));
    const last = tables.at(-1);
    if (last?.caption === caption && last.section === section) last.rows.push(cells);
    else tables.push({ section, caption, columns: cells, rows: [] });
  }
  return tables;
}

/** A figure read back: its value, and by how much rounding may have moved it. */
function readBack(text: string): { value: number; tolerance: number } {
  const [, sign, digits, symbol] = /^(?:[≤≥] )?([−+]?)([\d,]+(?:\.\d+)?) ?(%|MiB)?/.exec(text) ?? [];
  if (digits === undefined) throw new Error(`Expected a figure; came "${text}"`);
  const scale = symbol === "%" ? 0.01 : symbol === "MiB" ? 1_048_576 : 1;
  const decimals = digits.split(".")[1]?.length ?? 0;
  return { value: (sign === "−" ? -1 : 1) * Number(digits.replaceAll(",", "")) * scale, tolerance: 0.5000001 * 10 ** -decimals * scale };
}

function expectFigure(text: string, value: number | null | undefined, where: string): void {
  if (value === null || value === undefined) {
    expect(text, where).toMatch(/^(–|not measured)$/);
    return;
  }
  const read = readBack(text);
  expect(Math.abs(read.value - value), `${where}: "${text}" for ${value}`).toBeLessThanOrEqual(read.tolerance);
}

/** Every number apart from the times of the day changed, so that no two are alike and none has a familiar value. */
function scrambled<T>(value: T, random: () => number, key = ""): T {
  if (typeof value === "number") return (/At$/.test(key) || value === 0 ? value : value * (1 + 0.4 * random())) as T;
  if (Array.isArray(value)) return value.map((item) => scrambled(item, random)) as T;
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, scrambled(inner, random, name)])) as T;
}

const report: Report = scrambled(completeReport(fixtureEvidence()), seededRandom(11));
const markdown = markdownOf(documentOf(report));
const tables = tablesOf(markdown);
const only = (section: string | RegExp, caption: string | RegExp): ParsedTable => {
  const is = (text: string, pattern: string | RegExp) => (typeof pattern === "string" ? text === pattern : pattern.test(text));
  const found = tables.filter((table) => is(table.section, section) && is(table.caption, caption));
  expect(found, `${section}, ${caption}`).toHaveLength(1);
  return found[0]!;
};

type Cells<T> = Record<string, (row: T) => (number | null | undefined)[] | null>;

/** Every number in the table is the one of the JSON; every column is known: null for one of texts. */
function expectTable<T>({ section, caption, columns, rows }: ParsedTable, data: readonly T[], cells: Cells<T>): void {
  expect(rows, caption).toHaveLength(data.length);
  const measured = Object.keys(cells).filter((column) => data.some((row) => cells[column]!(row)?.some((value) => value != null)));
  expect(columns, `${section}, ${caption}`).toEqual(expect.arrayContaining(measured));
  for (const [at, row] of rows.entries()) {
    for (const [nth, column] of columns.entries()) {
      const values = cells[column]?.(data[at]!);
      const where = `${section}, ${caption}, ${column}, row ${at + 1}`;
      expect(values, `${where}: a column that nobody checks`).not.toBeUndefined();
      if (values == null) continue;
      const texts = row[nth]!.split(/ \/ | to | \(|; | of /);
      expect(
        texts.length === values.length || (texts.length === 1 && values.every((value) => value == null)),
        `${where}: "${row[nth]}"`,
      ).toBe(true);
      for (const [part, text] of texts.entries()) expectFigure(text, values[part], where);
    }
  }
}

const interval = (it: { low: number | null; high: number | null } | null | undefined) => (it?.low == null ? [null] : [it.low, it.high]);
const parts = (key: keyof RunRow["latencies"]) => (run: RunRow) => {
  const found = run.latencies[key];
  return found === null ? [null] : [found.p50.value, found.p95.value];
};
const proportionOf = (it: { share: number; hits: number; total: number; interval: { low: number; high: number } } | null) =>
  it === null ? [null] : [it.share, it.hits, it.total, it.interval.low, it.interval.high];

test("every target's figures are the JSON's, in the overview and in the phases", () => {
  const cells: Cells<Report["phases"][number]["targets"][number]> = {
    target: () => null,
    metric: () => null,
    required: ({ threshold }) => [threshold],
    observed: ({ observed }) => [observed],
    result: () => null,
  };
  expectTable(
    only("Targets", /./),
    report.phases.flatMap(({ targets }) => targets),
    cells,
  );
  for (const phase of report.phases) expectTable(only(new RegExp(`^${phase.id} ·`), "Targets"), phase.targets, cells);
});

test("every run's figures are the JSON's", () => {
  for (const { id, runs } of report.phases) {
    const section = new RegExp(`^${id} ·`);
    const run = { run: () => null };
    expectTable(only(section, /^End-to-end latency/), runs, {
      ...run,
      p50: ({ latencies: { e2eMs } }) => [e2eMs!.p50.value],
      p90: ({ latencies: { e2eMs } }) => [e2eMs!.p90.value],
      p95: ({ latencies: { e2eMs } }) => [e2eMs!.p95.value],
      p99: ({ latencies: { e2eMs } }) => [e2eMs!.p99.value],
      "p95 interval": ({ latencies: { e2eMs } }) => interval(e2eMs!.p95),
      max: ({ latencies: { e2eMs } }) => [e2eMs!.max],
      mean: ({ latencies: { e2eMs } }) => [e2eMs!.mean.value],
      "mean interval": ({ latencies: { e2eMs } }) => interval(e2eMs!.mean),
    });
    expectTable(only(section, /^Parts of the latency/), runs, {
      ...run,
      "queue wait": parts("queueWaitMs"),
      "swap wait": parts("swapWaitMs"),
      TTFT: parts("ttftMs"),
      ITL: parts("itlMs"),
      TPOT: parts("tpotMs"),
    });
    expectTable(only(section, "Throughput and outcome"), runs, {
      ...run,
      "requests/s": ({ throughput }) => [throughput?.requestsPerS],
      "goodput/s": ({ throughput }) => [throughput?.goodputPerS],
      "tokens/s out": ({ throughput }) => [throughput?.tokensOutPerS],
      "tokens/s in": ({ throughput }) => [throughput?.tokensInPerS],
      success: ({ successRate }) => [successRate],
      OOM: ({ oomCount }) => [oomCount],
      lost: ({ lostJobs }) => [lostJobs],
      swaps: ({ swaps }) => [swaps],
      "swaps/100 jobs": ({ swapsPer100Jobs }) => [swapsPer100Jobs],
    });
    expectTable(only(section, /^Shares/), runs, {
      ...run,
      accuracy: ({ accuracy: it }) => proportionOf(it && { share: it.accuracy, hits: it.equal, total: it.graded, interval: it }),
      truncated: ({ truncation }) => proportionOf(truncation),
      "drafts accepted": ({ acceptance }) => proportionOf(acceptance),
      "cache hits": ({ cacheHits }) => proportionOf(cacheHits),
    });
    const settings = Object.fromEntries(runs.flatMap((row) => Object.keys(row.settings)).map((name) => [name, () => null]));
    expectTable(only(section, "Runs"), runs, {
      ...run,
      model: () => null,
      shape: () => null,
      ...settings,
      requests: ({ requests }) => [requests.sent],
      lasted: () => null,
    });
  }
});

test("before and after, resources, limits and what the rules saw are the JSON's", () => {
  expectTable(only("Before and after", /./), report.beforeAfter.rows, {
    run: () => null,
    metric: () => null,
    baseline: ({ a }) => [a],
    final: ({ b }) => [b],
    change: ({ change }) => [change],
    interval: (row) => interval(row.interval),
    requests: ({ samplesA, samplesB }) => [samplesA, samplesB],
    verdict: () => null,
  });
  expectTable(only("Resource use", /./), report.resources, {
    resource: () => null,
    phase: () => null,
    average: ({ average }) => [average],
    peak: ({ peak }) => [peak],
  });
  expectTable(only("Limits found", /./), report.limits, {
    limit: () => null,
    finding: () => null,
    value: ({ value }) => [value],
    evidence: () => null,
  });
  for (const [caption, rows] of [
    ["What to do", report.recommendations],
    [/^What these figures/, report.risks],
  ] as const) {
    const { columns, rows: cells } = only("Recommendations", caption);
    const seen = cells.map((row) => row[columns.indexOf("seen")]!);
    for (const [at, { figures }] of rows.entries()) {
      const texts = figures.length === 0 ? [] : seen[at]!.split(", ");
      expect(texts).toHaveLength(figures.length);
      for (const [nth, { name, value }] of figures.entries())
        expectFigure(texts[nth]!.slice(name.length + 1), value, `${caption}, ${name}`);
    }
  }
});

test("the whole text has no number that is not the JSON's", () => {
  const leaves = { numbers: [] as number[], texts: [] as string[] };
  const collect = (value: unknown): void => {
    if (typeof value === "number") leaves.numbers.push(value);
    else if (typeof value === "string") leaves.texts.push(value);
    else if (value !== null && typeof value === "object") Object.values(value).forEach(collect);
  };
  collect(report);
  const plain = markdown.replace(/\\(.)/g, "$1");
  const texts = leaves.texts.filter((text) => /\d/.test(text)).sort((a, b) => b.length - a.length);
  const days = [report.run.startedAt, report.run.finishedAt].map((at) => new Date(at).toISOString().slice(0, 19).replace("T", " "));
  const durations = report.phases.flatMap(({ runs }) => runs.map(({ durationMs }) => durationText(durationMs)));
  // What the report itself says: names of percentiles, of intervals and of units.
  const fixed = ["p50", "p90", "p95", "p99", "95 % intervals", "95 % Wilson", "swaps/100 jobs", "leaves 0 out", "swaps per 100 jobs"];
  let rest = plain.replace(/\]\(<?[^)]*\)/g, "](").replace(/```[\s\S]*?```/g, "");
  for (const known of [...days, ...texts, ...durations, ...fixed])
    rest = rest.replace(new RegExp(`(?<![\\d.,])${known.replace(/[^\w\s]/g, "\\$&")}(?![\\d.,]*\\d)`, "g"), " ");
  const strange = [...rest.matchAll(/[−+]?\d[\d,]*(?:\.\d+)?(?: (?:%|MiB))?/g)].filter(([text]) => {
    const { value, tolerance } = readBack(text);
    return !leaves.numbers.some((number) => Math.abs(number - value) <= tolerance);
  });
  expect(strange.map(({ index }) => rest.slice(index - 30, index + 20))).toEqual([]);
  expect([...rest.matchAll(/\d+/g)].length).toBeGreaterThan(500);
});

test.each<[number | null, Unit, string]>([
  [1234.4, "ms", "1,234 ms"],
  [123.44, "ms", "123.4 ms"],
  [12.344, "ms", "12.34 ms"],
  [0.01234, "ms", "0.012 ms"],
  [0, "ms", "0 ms"],
  [0.975, "share", "97.5 %"],
  [1, "share", "100.0 %"],
  [-0.0004, "share", "0.0 %"],
  [12_227 * 1_048_576, "bytes", "12,227 MiB"],
  [7, "count", "7"],
  [null, "ms", "–"],
])("%d %s is written %s", (value, unit, text) => {
  expect(figure(value, unit)).toBe(text);
});

test("changes carry their sign, durations their parts, columns no unit", () => {
  expect([0.05, -0.05, 0, null].map(changeFigure)).toEqual(["+5.0 %", "−5.0 %", "0.0 %", "–"]);
  expect([45_400, 860_000, 3_900_000].map(durationText)).toEqual(["45 s", "14 min 20 s", "1 h 5 min"]);
  expect(bareFigure(1234.4, "ms")).toBe("1,234");
});

test("no text can become markup", () => {
  const hostile = "a | b\n## c `d` <script>alert(1)</script> [x](javascript:y) **z** \\";
  const evidence = fixtureEvidence();
  evidence.phases[0]!.runs[0]!.label = hostile;
  evidence.phases[0]!.notes = [hostile];
  evidence.run.commands = ["```", hostile];
  evidence.finalConfiguration!.env = "A=```\n## not a heading\n";
  evidence.phases[0]!.configuration = { [hostile.slice(0, 190)]: "`x` | y" };
  const text = markdownOf(documentOf(completeReport(evidence)));
  const outside = text.replace(/(`{3,})\n[\s\S]*?\n\1/g, "").replace(/(`+)[^`\n](?:.*?[^`])?\1(?!`)/g, "");
  expect(outside).not.toMatch(/(?<!\\)<script|(?<!\\)\]\(javascript|^## c|^## not/m);
  const width = (line: string) => line.split(/(?<!\\)\|/).length;
  for (const { columns, rows } of tablesOf(text)) for (const row of rows) expect(row.length).toBe(columns.length);
  expect(
    text
      .split("\n")
      .filter((line) => line.startsWith("| ") && line.includes("## c"))
      .map(width),
  ).not.toContain(1);
});
