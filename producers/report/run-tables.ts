import type { Estimate } from "../load/summary.ts";
import { type Block, code, type Field, type Inline, list, mark, table } from "./document.ts";
import { bareFigure, durationText, figure, MISSING } from "./figure.ts";
import type { Proportion, RunRow, Unit } from "./schema.ts";

/** A phase's measured runs: how they were set, their latencies, what the latencies consist of, and what came out. */
export function runTables(runs: readonly RunRow[]): Block[] {
  const latencies = runs.filter(({ latencies: { e2eMs } }) => e2eMs !== null);
  const parts = PARTS.filter(([key]) => runs.some((run) => run.latencies[key] !== null));
  const faults = runs.filter(({ errors, validity }) => errors.length > 0 || validity?.valid === false);
  return [
    ...table("Runs", runs, [
      RUN,
      text("model", ({ role }) => role ?? "both"),
      text("shape", ({ shape }) => shape ?? ""),
      ...settingNames(runs).map((name) => text(name, ({ settings }) => (settings[name] == null ? "" : code(String(settings[name]))))),
      number("requests", ({ requests }) => bareFigure(requests.sent, "count")),
      number("lasted", ({ durationMs }) => durationText(durationMs)),
    ]),
    ...table("End-to-end latency (ms), with 95 % intervals", latencies, [
      RUN,
      ...(["p50", "p90", "p95", "p99"] as const).map((name) =>
        number(name, ({ latencies: { e2eMs } }) => bareFigure(e2eMs![name].value, "ms")),
      ),
      number("p95 interval", ({ latencies: { e2eMs } }) => intervalText(e2eMs!.p95)),
      number("max", ({ latencies: { e2eMs } }) => bareFigure(e2eMs!.max, "ms")),
      number("mean", ({ latencies: { e2eMs } }) => bareFigure(e2eMs!.mean.value, "ms")),
      number("mean interval", ({ latencies: { e2eMs } }) => intervalText(e2eMs!.mean)),
    ]),
    ...(parts.length === 0
      ? []
      : table("Parts of the latency (ms), p50 / p95", latencies, [
          RUN,
          ...parts.map(([key, label]) =>
            number(label, ({ latencies: { [key]: found } }) =>
              found === null ? "" : `${bareFigure(found.p50.value, "ms")} / ${bareFigure(found.p95.value, "ms")}`,
            ),
          ),
        ])),
    ...table("Throughput and outcome", runs, [
      RUN,
      optional("requests/s", "perS", ({ throughput }) => throughput?.requestsPerS),
      optional("goodput/s", "perS", ({ throughput }) => throughput?.goodputPerS),
      optional("tokens/s out", "tokensPerS", ({ throughput }) => throughput?.tokensOutPerS),
      optional("tokens/s in", "tokensPerS", ({ throughput }) => throughput?.tokensInPerS),
      optional("success", "share", ({ successRate }) => successRate),
      number("OOM", ({ oomCount }) => bareFigure(oomCount, "count")),
      optional("lost", "count", ({ lostJobs }) => lostJobs),
      optional("swaps", "count", ({ swaps }) => swaps),
      optional("swaps/100 jobs", "count", ({ swapsPer100Jobs }) => swapsPer100Jobs),
    ]),
    ...(runs.some((run) => SHARES.some(([, of]) => of(run) !== null))
      ? table("Shares, with 95 % Wilson intervals", runs, [
          RUN,
          ...SHARES.map(([label, of]) => number(label, (run) => proportionText(of(run)))),
        ])
      : []),
    ...(faults.length === 0 ? [] : [list(faults.map((run) => [`${run.label}: `, ...faultText(run)]))]),
  ];
}

const RUN: Field<RunRow> = {
  label: "run",
  cell: ({ label, validity }) => (validity?.valid === false ? [label, " ", mark("bad", "INVALID")] : label),
};

const PARTS = [
  ["queueWaitMs", "queue wait"],
  ["swapWaitMs", "swap wait"],
  ["ttftMs", "TTFT"],
  ["itlMs", "ITL"],
  ["tpotMs", "TPOT"],
] as const satisfies [keyof RunRow["latencies"], string][];

const SHARES: [string, (run: RunRow) => Proportion | null][] = [
  [
    "accuracy",
    ({ accuracy }) =>
      accuracy && {
        hits: accuracy.equal,
        total: accuracy.graded,
        share: accuracy.accuracy,
        interval: { low: accuracy.low, high: accuracy.high },
      },
  ],
  ["truncated", ({ truncation }) => truncation],
  ["drafts accepted", ({ acceptance }) => acceptance],
  ["cache hits", ({ cacheHits }) => cacheHits],
];

const text = (label: string, cell: Field<RunRow>["cell"]): Field<RunRow> => ({ label, cell });
const number = (label: string, cell: Field<RunRow>["cell"]): Field<RunRow> => ({ label, cell, isNumber: true });

/** Without its unit where the heading names it. */
function optional(label: string, unit: Unit, value: (run: RunRow) => number | null | undefined): Field<RunRow> {
  return number(label, (run) => {
    const found = value(run) ?? null;
    return found === null ? "" : unit === "share" ? figure(found, unit) : bareFigure(found, unit);
  });
}

function settingNames(runs: readonly RunRow[]): string[] {
  return [...new Set(runs.flatMap(({ settings }) => Object.keys(settings)))];
}

function intervalText({ low, high }: Estimate): string {
  return low === null || high === null ? MISSING : `${bareFigure(low, "ms")} to ${bareFigure(high, "ms")}`;
}

function proportionText(of: Proportion | null): string {
  if (of === null) return "";
  const { hits, total, share, interval } = of;
  return `${figure(share, "share")} (${bareFigure(hits, "count")} of ${bareFigure(total, "count")}; ${figure(interval.low, "share")} to ${figure(interval.high, "share")})`;
}

function faultText({ errors, validity }: RunRow): Inline[] {
  const failures = errors.map(({ errorClass, count }) => `${errorClass} ${bareFigure(count, "count")}`).join(", ");
  return [
    ...(errors.length === 0 ? [] : [`failed with ${failures}. `]),
    ...(validity?.valid === false ? [mark("bad", "INVALID"), `: ${validity.reasons.join("; ")}`] : []),
  ];
}
