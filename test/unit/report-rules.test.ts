import { expect, test } from "vitest";
import { RECOMMENDATIONS } from "../../producers/report/recommendations.ts";
import { completeReport } from "../../producers/report/report.ts";
import { RISKS } from "../../producers/report/risks.ts";
import { applyRules } from "../../producers/report/rules.ts";
import { proportion } from "../../producers/report/run-row.ts";
import { type Evidence, judged, type Phase, type PhaseId, type RunRow } from "../../producers/report/schema.ts";
import { fixtureEvidence } from "../fixtures/report/evidence.ts";

const MIB = 1_048_576;
const phaseOf = (evidence: Evidence, id: PhaseId): Phase => evidence.phases.find((phase) => phase.id === id)!;
const firstRun = (evidence: Evidence, id: PhaseId): RunRow => phaseOf(evidence, id).runs[0]!;
const e2e = (run: RunRow) => run.latencies.e2eMs!;

/** The fixture without anything that a rule could find. */
function flawless(): Evidence {
  const evidence = fixtureEvidence();
  for (const phase of evidence.phases) {
    phase.targets = phase.targets.map(({ pass: _, ...target }) =>
      judged({ ...target, threshold: target.comparison === "at-most" ? 1e9 : 0 }),
    );
    phase.runs = phase.runs.map((run) => ({
      ...run,
      oomCount: 0,
      swapsPer100Jobs: null,
      validity: { ...run.validity!, valid: true, reasons: [] },
      latencies: { ...run.latencies, e2eMs: { ...e2e(run), count: 1000 } },
    }));
  }
  phaseOf(evidence, "C").runs = phaseOf(evidence, "C").runs.slice(0, 1);
  phaseOf(evidence, "G").runs = phaseOf(evidence, "G").runs.slice(0, 1);
  evidence.run.resumed = 0;
  evidence.beforeAfter.rows = [];
  evidence.graphs.latencyByRate = null;
  return evidence;
}

const latencyMissed = (evidence: Evidence, part: keyof RunRow["latencies"] | null): void => {
  const phase = phaseOf(evidence, "A");
  const run = phase.runs[0]!;
  phase.targets = [
    judged({
      name: "single: p95",
      metric: "E2E p95",
      runId: run.id,
      comparison: "at-most",
      threshold: 1,
      observed: e2e(run).p95.value,
      unit: "ms",
    }),
  ];
  for (const key of ["queueWaitMs", "swapWaitMs", "ttftMs"] as const)
    run.latencies[key] = { ...e2e(run), p95: { ...e2e(run).p95, value: key === part ? e2e(run).p95.value * 0.9 : 1 } };
};

const speculated = (evidence: Evidence, acceptedOf100: number, faster: number): void => {
  const [off] = phaseOf(evidence, "C").runs as [RunRow];
  const throughput = { ...off.throughput!, tokensOutPerS: off.throughput!.tokensOutPerS * faster };
  phaseOf(evidence, "C").runs.push({ ...off, id: "on", label: "with drafts", acceptance: proportion(acceptedOf100, 100), throughput });
};

/** What is done to flawless evidence, and what then is found: each rule, once or more. */
const CASES: [rule: string, spoil: (evidence: Evidence) => void, text: RegExp][] = [
  [
    "not-measured",
    (it) => Object.assign(phaseOf(it, "C"), { status: "skipped", reason: "no draft fits" }),
    /Phase C was skipped \(no draft fits\)/,
  ],
  ["lost-jobs", (it) => Object.assign(firstRun(it, "E"), { lostJobs: 2 }), /lost/],
  [
    "generator-invalid",
    (it) => Object.assign(firstRun(it, "F"), { validity: { ...firstRun(it, "F").validity!, valid: false, reasons: ["dispatch delay"] } }),
    /not to be trusted.*dispatch delay/,
  ],
  [
    "requests-failed",
    (it) => Object.assign(firstRun(it, "E"), { successRate: 0.98, errors: [{ errorClass: "timeout", count: 5, example: null }] }),
    /most often with timeout/,
  ],
  [
    "accuracy-under-load",
    (it) =>
      Object.assign(firstRun(it, "E"), {
        role: "student",
        accuracy: { ...firstRun(it, "E").accuracy!, accuracy: 0.5, low: 0.45, high: 0.55 },
      }),
    /wrong answers/,
  ],
  ["memory-nearly-full", (it) => it.graphs.memory!.series[0]!.points.push([901_000, 12_000 * MIB]), /VRAM comes close/],
  [
    "memory-grows",
    (it) => Object.assign(it.graphs.memory!.series[1]!, { points: Array.from({ length: 100 }, (_, n) => [n, (100 + n) * MIB]) }),
    /API process grew/,
  ],
  ["final-worse", (it) => it.beforeAfter.rows.push(...fixtureEvidence().beforeAfter.rows.slice(1, 2)), /pays with TTFT p50/],
  ["few-samples", (it) => Object.assign(e2e(firstRun(it, "A")), { count: 99 }), /short/],
  ["quick-run", (it) => Object.assign(it.run, { mode: "quick" }), /quick run/],
  ["no-gpu", (it) => Object.assign(it.hardware, { gpus: [] }), /CPU/],
  ["interrupted", (it) => Object.assign(it.run, { resumed: 1 }), /resumed/],
  ["interrupted", (it) => Object.assign(it.run, { interrupted: true }), /before its end/],
  ["latency-lever", (it) => latencyMissed(it, "queueWaitMs"), /waiting in the queue/],
  ["latency-lever", (it) => latencyMissed(it, "swapWaitMs"), /waiting for the other model/],
  ["latency-lever", (it) => latencyMissed(it, "ttftMs"), /reading the prompt/],
  ["latency-lever", (it) => latencyMissed(it, null), /writing tokens/],
  [
    "latency-lever",
    (it) => {
      latencyMissed(it, "ttftMs");
      const { latencies } = firstRun(it, "A");
      latencies.queueWaitMs = {
        ...e2e(firstRun(it, "A")),
        p95: { ...e2e(firstRun(it, "A")).p95, value: e2e(firstRun(it, "A")).p95.value * 0.45 },
      };
    },
    /writing tokens/,
  ],
  ["speculation-off", (it) => speculated(it, 49, 1.5), /Leave speculation off/],
  ["speculation-gain", (it) => speculated(it, 50, 1.21), /Keep speculation/],
  ["speculation-gain", (it) => speculated(it, 90, 1.19), /gains too little/],
  ["swaps-frequent", (it) => Object.assign(firstRun(it, "G"), { swapsPer100Jobs: 25.5 }), /swaps often/],
  [
    "best-policy",
    (it) =>
      phaseOf(it, "G").runs.push({
        ...firstRun(it, "G"),
        id: "fifo",
        settings: { GPU_POLICY: "fifo" },
        throughput: { ...firstRun(it, "G").throughput!, goodputPerS: 0 },
      }),
    /GPU_POLICY=ge/,
  ],
  ["cache-misses", (it) => Object.assign(firstRun(it, "F"), { cacheHits: proportion(29, 100) }), /seldom/],
  ["out-of-memory", (it) => Object.assign(firstRun(it, "B"), { oomCount: 1 }), /MAX_NUM_SEQS/],
  ["answers-truncated", (it) => Object.assign(phaseOf(it, "A").runs[3]!, { truncation: proportion(6, 100) }), /cut off/],
  ["rate-to-offer", (it) => Object.assign(it.graphs, { latencyByRate: fixtureEvidence().graphs.latencyByRate }), /Offer at most/],
  [
    "rate-to-offer",
    (it) => Object.assign(it.graphs, { latencyByRate: { ...fixtureEvidence().graphs.latencyByRate!, kneeRatePerS: null } }),
    /No tried rate/,
  ],
  [
    "use-final-configuration",
    (it) => it.beforeAfter.rows.push(...fixtureEvidence().beforeAfter.rows.slice(0, 1)),
    /largest real gain is E2E p95/,
  ],
];

test("nothing is said about evidence without a flaw", () => {
  expect(applyRules(flawless())).toEqual({ risks: [], recommendations: [] });
});

test.each(CASES)("%s: %# is found, alone, with its condition", (rule, spoil, text) => {
  const evidence = flawless();
  spoil(evidence);
  const { risks, recommendations } = applyRules(evidence);
  const isRisk = RISKS.some(({ name }) => name === rule);
  const { condition } = (isRisk ? RISKS : RECOMMENDATIONS).find(({ name }) => name === rule)!;
  expect([...risks, ...recommendations].map((it) => it.rule)).toEqual([rule]);
  expect((isRisk ? risks : recommendations)[0]).toMatchObject({ condition, text: expect.stringMatching(text) });
});

test("every rule has a case", () => {
  expect([...new Set(CASES.map(([rule]) => rule))].sort()).toEqual([...RISKS, ...RECOMMENDATIONS].map(({ name }) => name).sort());
});

test.each<[points: number, level: string, unticked: string[], spoil: (evidence: Evidence) => void]>([
  [7, "ready", [], () => {}],
  [6, "incomplete", ["speculation-evaluated"], (it) => Object.assign(phaseOf(it, "C"), { status: "failed", reason: "it broke" })],
  [6, "reservations", [], (it) => miss(it, "D")],
  [6, "not-ready", [], (it) => miss(it, "A")],
  [6, "not-ready", ["guardrails-and-cache-verified"], (it) => miss(it, "E")],
  [6, "reservations", ["guardrails-and-cache-verified"], (it) => miss(it, "F")],
  [7, "not-ready", [], (it) => Object.assign(firstRun(it, "G"), { lostJobs: 1 })],
  [7, "ready", ["tuning-done"], (it) => Object.assign(phaseOf(it, "B"), { decision: null })],
  [7, "ready", ["baseline-documented"], (it) => Object.assign(phaseOf(it, "A"), { runs: [] })],
  [7, "ready", ["talker-deployed"], (it) => Object.assign(phaseOf(it, "D"), { runs: [] })],
  // Judged on figures that are not to be trusted.
  [6, "reservations", [], (it) => Object.assign(phaseOf(it, "G").runs[0]!, { validity: { ...firstRun(it, "G").validity!, valid: false } })],
])("grade %i, %s, not ticked %j", (points, level, unticked, spoil) => {
  const evidence = flawless();
  phaseOf(evidence, "C").runs.push({ ...firstRun(evidence, "C"), id: "on" });
  spoil(evidence);
  const { grade, verdict } = completeReport(evidence);
  expect(grade.points).toBe(points);
  expect(verdict.level).toBe(level);
  expect(verdict.reasons).toHaveLength(7 - points);
  expect(grade.ticks.filter(({ ticked }) => !ticked).map(({ id }) => id)).toEqual(unticked);
});

function miss(evidence: Evidence, id: PhaseId): void {
  phaseOf(evidence, id).targets.push(
    judged({ name: "one more", metric: "m", runId: null, comparison: "at-least", threshold: 1, observed: 0, unit: "count" }),
  );
}

test("a run with drafts is compared with the one without them of the same concurrency", () => {
  const evidence = flawless();
  const phase = phaseOf(evidence, "C");
  const [off] = phase.runs as [RunRow];
  const at = (concurrency: number, tokensOutPerS: number, drafts: boolean): RunRow => ({
    ...off,
    id: `${drafts}-${concurrency}`,
    settings: { concurrency },
    acceptance: drafts ? proportion(80, 100) : null,
    throughput: { ...off.throughput!, tokensOutPerS },
  });
  phase.runs = [at(1, 100, false), at(4, 300, false), at(1, 130, true), at(4, 303, true)];
  const gains = applyRules(evidence).recommendations.filter(({ rule }) => rule === "speculation-gain");
  expect(gains.map(({ figures }) => figures[1]!.value.toFixed(2))).toEqual(["0.30", "0.01"]);
});
