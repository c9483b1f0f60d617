import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { seededRandom } from "../../maths/seeded-random.ts";
import type { LoadRecord } from "../../producers/load/record.ts";
import { blockLength, changeOf } from "../../producers/report/bootstrap.ts";
import { compareRecords, isWorse } from "../../producers/report/compare.ts";
import { compareFolders, readRecords } from "../../producers/report/recorded-runs.ts";
import { completeReport, readReport, writeReport } from "../../producers/report/report.ts";
import { fixtureEvidence } from "../fixtures/report/evidence.ts";

const RUNS = path.join(import.meta.dirname, "../fixtures/runs");
const CLI = path.join(import.meta.dirname, "../../mathllm.ts");

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-compare-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function mathllm(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  try {
    return { code: 0, ...(await promisify(execFile)(process.execPath, [CLI, ...args], { cwd: folder })) };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, stdout, stderr };
  }
}

describe("on recorded runs of the shipped Student", () => {
  it("two runs of one configuration have no real change", async () => {
    const { rows, realChanges, differences, warnings } = await compareFolders(path.join(RUNS, "one"), path.join(RUNS, "two"));
    expect(rows.length).toBeGreaterThan(5);
    expect(rows.filter(({ verdict }) => verdict === "real")).toEqual([]);
    expect({ realChanges, differences, warnings }).toEqual({ realChanges: 0, differences: [], warnings: [] });
  });

  it.each(["one", "two"])("an injected slow-down of a fifth is real, against run %s, whatever the resampling", async (other) => {
    for (const seed of [1, 2, 3]) {
      const { rows, differences } = await compareFolders(path.join(RUNS, other), path.join(RUNS, "slower"), { seed });
      const real = rows.filter(({ verdict }) => verdict === "real");
      expect(real.map(({ metric }) => metric)).toEqual(expect.arrayContaining(["E2E p50", "TTFT p50"]));
      expect(real.filter((row) => !isWorse(row))).toEqual([]);
      const { interval, change } = real.find(({ metric }) => metric === "E2E p50")!;
      expect(change).toBeGreaterThan(0.15);
      expect(interval!.low).toBeLessThan(0.2);
      expect(interval!.high).toBeGreaterThan(0.2);
      expect(differences.map(({ name }) => name)).toEqual(["url"]);
    }
  });

  it("the same slow-down done to the samples themselves is found, and its size with it", async () => {
    const records = await readRecords(path.join(RUNS, "one", "requests.jsonl"));
    const slower = records.map((record) => ({ ...record, e2eMs: 1.2 * record.e2eMs, finishedAt: record.scheduledAt + 1.2 * record.e2eMs }));
    for (const row of compareRecords("one", records, slower).filter(({ metric }) => metric.startsWith("E2E"))) {
      expect(row).toMatchObject({ verdict: "real" });
      expect(row.change).toBeCloseTo(0.2, 6);
    }
    const three = records.map((record) => ({ ...record, e2eMs: 1.03 * record.e2eMs }));
    expect(compareRecords("one", records, three).filter(({ verdict }) => verdict === "real")).toEqual([]);
    expect(compareRecords("one", records, three, { threshold: 0.02 }).filter(({ verdict }) => verdict === "real")).not.toEqual([]);
  });

  it("the command prints a table, or one object, and with --strict exits with 3 when something is worse", async () => {
    const [one, slower] = [path.join(RUNS, "one"), path.join(RUNS, "slower")];
    const table = await mathllm("report", "compare", one, slower);
    expect(table).toMatchObject({ code: 0, stderr: "" });
    expect(table.stdout).toMatch(/E2E p50.*real: worse/);
    const json = await mathllm("report", "compare", one, slower, "--json", "--strict");
    expect(json.code).toBe(3);
    expect(JSON.parse(json.stdout)).toMatchObject({
      worse: expect.any(Number),
      rows: expect.arrayContaining([expect.objectContaining({ verdict: "real" })]),
    });
    expect((await mathllm("report", "compare", one, path.join(one, "requests.jsonl"), "--strict")).code).toBe(0);
  });
});

test("two reports are compared run by run; what was not made alike is told", async () => {
  const [a, b] = [path.join(folder, "a"), path.join(folder, "b")];
  for (const [of, policy] of [
    [a, "ge"],
    [b, "fifo"],
  ] as const) {
    const evidence = fixtureEvidence();
    evidence.run.fingerprintOf.GPU_POLICY = policy;
    evidence.phases[0]!.runs[0]!.records = "evidence/requests.jsonl";
    if (of === b) evidence.phases[1]!.runs[0]!.records = "evidence/requests.jsonl";
    await writeReport(of, completeReport(evidence));
    await cp(path.join(RUNS, of === a ? "one" : "slower"), path.join(of, "evidence"), { recursive: true });
  }
  const { rows, differences, warnings } = await compareFolders(a, b);
  expect(new Set(rows.map(({ run }) => run))).toEqual(new Set(["A: Student, stated shape, 1 at a time"]));
  expect(rows.find(({ metric }) => metric === "E2E p50")).toMatchObject({ verdict: "real" });
  expect(differences).toEqual([{ name: "settings.GPU_POLICY", a: "ge", b: "fifo" }]);
  expect(warnings).toEqual(["B/sequences-8 is only in one of the two."]);
});

test("what can't be compared is refused with what was expected", async () => {
  const broken = path.join(folder, "broken");
  await cp(path.join(RUNS, "one"), broken, { recursive: true });
  const file = path.join(broken, "requests.jsonl");
  const lines = (await readFile(file, "utf8")).split("\n");
  // A line that the end of the process cut off is no reason to refuse the rest.
  await writeFile(file, `${lines.slice(0, 150).join("\n")}\n{"index":1,"ses`);
  expect((await readRecords(file)).length).toBe(150);
  await writeFile(file, `${lines[0]}\n{"index":"one"}\n`);
  await expect(readRecords(file)).rejects.toThrow(/line 2; index/);
  await expect(compareFolders(path.join(folder, "nowhere"), broken)).rejects.toThrow(/there is no /);
  await expect(compareFolders(folder, broken)).rejects.toThrow(/Expected report.json or requests.jsonl/);
  await expect(readReport(folder)).rejects.toThrow(/Expected a report at/);
  await writeFile(path.join(folder, "report.json"), '{"version": 2}');
  expect(await mathllm("report", "render", folder)).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/^Expected a report .*version/s),
  });
});

test("the command renders a folder again", async () => {
  const of = path.join(folder, "rendered");
  await writeReport(of, completeReport(fixtureEvidence()));
  const { code, stdout } = await mathllm("report", "render", of);
  expect(code).toBe(0);
  expect(stdout).toContain(path.join(of, "report.html"));
  expect((await readdir(of)).sort()).toEqual(["graphs", "report.html", "report.json", "report.md"]);
});

describe("the bootstrap", () => {
  const options = { seed: 1, confidence: 0.95, paired: false };
  /** Values around 100 that lean on the one before: what waits in a queue does. */
  function leaning(seed: number, count: number, lean: number, level = 100): number[] {
    const random = seededRandom(seed);
    const noise = () => (random() + random() + random() + random() - 2) * 10;
    let last = 0;
    return Array.from({ length: count }, () => {
      last = lean * last + noise();
      return level + last;
    });
  }

  it.each([0, 0.8])("finds no change in pairs of runs from one source, hardly ever (lean %d)", (lean) => {
    const pairs = 30;
    const found = Array.from({ length: pairs }, (_, nth) =>
      changeOf(leaning(2 * nth + 1, 200, lean), leaning(2 * nth + 2, 200, lean), ["mean", 0.5, 0.95], options),
    );
    for (const statistic of [0, 1, 2]) {
      const wrong = found.filter((estimates) => estimates[statistic]!.interval!.low > 0 || estimates[statistic]!.interval!.high < 0);
      // 95 % intervals: 1 or 2 of 30 are expected to be wrong; 8 would come once in some thousand times.
      expect(wrong.length).toBeLessThan(8);
    }
  });

  it("resamples longer blocks the more a value leans on the one before", () => {
    expect(blockLength(leaning(1, 400, 0))).toBe(1);
    expect(blockLength(leaning(1, 400, 0.8))).toBeGreaterThan(6);
    expect(blockLength([5, 5, 5])).toBe(1);
  });

  it("is narrower for the same requests compared in pairs", () => {
    const a = leaning(1, 200, 0).map((value, nth) => value + (nth % 7) * 40);
    const b = a.map((value) => 1.02 * value);
    const width = (paired: boolean) => {
      const { low, high } = changeOf(a, b, ["mean"], { ...options, paired })[0]!.interval!;
      return high - low;
    };
    expect(width(true)).toBeLessThan(0.1 * width(false));
  });

  it("gives the same for the same seed, and says nothing about a change from 0", () => {
    const [a, b] = [leaning(1, 100, 0), leaning(2, 100, 0)];
    expect(changeOf(a, b, ["mean", 0.95], options)).toEqual(changeOf(a, b, ["mean", 0.95], options));
    expect(changeOf(a, b, ["mean"], options)).not.toEqual(changeOf(a, b, ["mean"], { ...options, seed: 2 }));
    expect(changeOf([0, 0], [1, 1], ["mean"], options)).toEqual([{ a: 0, b: 1, change: null, interval: null }]);
  });
});

test("only steady, completed requests count; a failure counts as one", () => {
  const record = (index: number, more: Partial<LoadRecord>) =>
    ({
      index,
      problemId: `p${index}`,
      phase: "steady",
      status: "completed",
      e2eMs: 100 + index,
      scheduledAt: index,
      finishedAt: index + 100,
      tokensOut: null,
      queueWaitMs: null,
      ttftMs: null,
      tpotMs: null,
      verdict: null,
      ...more,
    }) as LoadRecord;
  const good = Array.from({ length: 100 }, (_, index) => record(index, {}));
  const warmUp = Array.from({ length: 50 }, (_, index) => record(1000 + index, { phase: "warm-up", e2eMs: 9000 }));
  const half = good.map((it) => (it.index % 2 === 0 ? it : record(it.index, { status: "failed", e2eMs: 60_000 })));
  const rows = compareRecords("r", [...good, ...warmUp], half);
  const byName = Object.fromEntries(rows.map((row) => [row.metric, row]));
  expect(byName["success rate"]).toMatchObject({ a: 1, b: 0.5, verdict: "real", better: "higher" });
  expect(byName["E2E p95"]!.b).toBeLessThan(200);
  expect(byName["E2E p95"]!.a).toBeLessThan(200);
  expect(Object.keys(byName)).not.toContain("accuracy");
});
