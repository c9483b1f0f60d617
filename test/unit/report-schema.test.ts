import { readFileSync } from "node:fs";
import path from "node:path";
import { expect, test } from "vitest";
import { reportJsonSchema } from "../../producers/report/json-schema.ts";
import { completeReport } from "../../producers/report/report.ts";
import { judged, MAX_POINTS, reportSchema } from "../../producers/report/schema.ts";
import { boundedSeries, type Point } from "../../producers/report/series.ts";
import { fixtureEvidence } from "../fixtures/report/evidence.ts";

const PUBLISHED = path.join(import.meta.dirname, "../../producers/report/report.schema.json");

test("the published JSON Schema is the one of the code (mathllm report schema > producers/report/report.schema.json)", () => {
  expect(JSON.parse(readFileSync(PUBLISHED, "utf8"))).toEqual(JSON.parse(JSON.stringify(reportJsonSchema())));
});

test("what is completed from evidence is a report, and survives JSON", () => {
  const report = completeReport(fixtureEvidence());
  expect(reportSchema.parse(JSON.parse(JSON.stringify(report)))).toEqual(report);
});

test.each<[string, (evidence: ReturnType<typeof fixtureEvidence>) => void, RegExp]>([
  ["a judgement against its own figures", (it) => Object.assign(it.phases[0]!.targets[0]!, { pass: false }), /pass/],
  ["evidence outside the folder", (it) => it.phases[0]!.evidence.push("../../etc/passwd"), /inside the report's folder/],
  ["evidence with an absolute path", (it) => it.phases[0]!.evidence.push("/etc/passwd"), /inside the report's folder/],
  ["phases in another order", (it) => it.phases.reverse(), /in order/],
  ["a phase that is missing", (it) => it.phases.pop(), /phases/],
  ["a skipped phase without a reason", (it) => Object.assign(it.phases[2]!, { status: "skipped" }), /reason/],
  ["a name nobody knows", (it) => Object.assign(it.run, { durationSeconds: 3 }), /durationSeconds/],
  ["a figure that is none", (it) => Object.assign(it.resources[0]!, { peak: Number.NaN }), /peak/],
  [
    "a series without end",
    (it) => it.graphs.cacheHits[0]!.points.push(...Array.from({ length: MAX_POINTS }, (): Point => [0, 0])),
    /points/,
  ],
])("evidence is refused, and the place named: %s", (_, spoil, message) => {
  const evidence = fixtureEvidence();
  spoil(evidence);
  expect(() => completeReport(evidence)).toThrow(message);
});

test("a target that was not observed is not met", () => {
  const target = { name: "t", metric: "m", runId: null, comparison: "at-most", threshold: 5, unit: "ms" } as const;
  expect([null, 4, 5, 6].map((observed) => judged({ ...target, observed }).pass)).toEqual([false, true, true, false]);
  expect(judged({ ...target, comparison: "at-least", observed: 5 }).pass).toBe(true);
});

test("a shortened series keeps its ends, its order and its peaks", () => {
  const points = Array.from({ length: 50_000 }, (_, x): Point => [x, Math.sin(x / 900)]);
  points[31_234] = [31_234, 99];
  points[7] = [7, -99];
  const short = boundedSeries(points, 400);
  expect(short.length).toBeLessThanOrEqual(400);
  expect(short.length).toBeGreaterThan(350);
  expect([short[0], short.at(-1)]).toEqual([points[0], points.at(-1)]);
  expect(short).toContainEqual([31_234, 99]);
  expect(short).toContainEqual([7, -99]);
  expect(short.every(([x], at) => at === 0 || x > short[at - 1]![0])).toBe(true);
  expect(boundedSeries(points.slice(0, 400), 400)).toEqual(points.slice(0, 400));
});
