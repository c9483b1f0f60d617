import Table from "cli-table3";
import type { SettingResult } from "./optimum-table.ts";
import type { SimulationResult } from "./simulator.ts";
import { perModel } from "./synthetic-traffic.ts";

/** A simulation for people: totals, the estimates' error and a table of waits, in seconds. */
export function simulationReport(policy: string, result: SimulationResult): string {
  const seconds = (ms: number) => (ms / 1000).toFixed(1);
  const table = new Table({
    head: ["waits, s", "jobs", "mean", "p50", "p95", "p99", "max", "to the end, mean"],
    style: { head: [], border: [] },
  });
  for (const [name, waits] of Object.entries({ all: result, ...result.models, ...result.classes })) {
    table.push([
      name,
      waits.jobs,
      ...[waits.meanWaitMs, waits.p50WaitMs, waits.p95WaitMs, waits.p99WaitMs, waits.maxWaitMs, waits.meanEndToEndMs].map(seconds),
    ]);
  }
  const { shed, estimateError: error } = result;
  const estimates =
    error === null
      ? "no job had an estimate of its wait"
      : `waits estimated on arrival: off by ${seconds(error.meanAbsMs)} s in the mean (p50 ${seconds(error.p50AbsMs)}, p95 ${seconds(error.p95AbsMs)}), ` +
        `${seconds(Math.abs(error.meanMs))} s too ${error.meanMs < 0 ? "short" : "long"} over all`;
  return (
    `${policy}: ${result.swaps} swaps (${result.swapsPer100Jobs.toFixed(1)} per 100 jobs), GPU busy ${(100 * result.gpuBusyShare).toFixed(1)} %, ` +
    `${result.jobsPerSecond.toFixed(3)} jobs/s, makespan ${seconds(result.makespanMs)} s (at least ${seconds(result.lowerBoundMs)} s)\n${shed} shed; ${estimates}\n${table.toString()}\n`
  );
}

export interface SettingsSummary {
  policy: string;
  /** Of each seed. */
  jobs: number;
  seeds: number;
  meanRatio: number | null;
  maxRatio: number | null;
}

/** Settings for people: one line each, the ratio that counts last. */
export function settingsReport({ policy, jobs, seeds, meanRatio, maxRatio }: SettingsSummary, results: SettingResult[]): string {
  const head = [
    "slots",
    "load",
    "mix",
    "service, s",
    "swap, s",
    "exponent",
    "wait, s",
    "to the end, s",
    "longest wait, s",
    "swaps / 100",
    "ratio",
  ];
  const table = new Table({ head, style: { head: [], border: [] } });
  const both = (value: Parameters<typeof perModel>[0], unit: number) => {
    const { student, talker } = perModel(value);
    return student === talker ? `${student / unit}` : `${student / unit} / ${talker / unit}`;
  };
  const seconds = (ms: number) => (ms / 1000).toFixed(1);
  const ratioText = (ratio: number | null) => ratio?.toFixed(3) ?? "unknown";
  for (const { setting, meanWaitMs, meanEndToEndMs, maxWaitMs, swapsPer100Jobs, ratio, endToEndRatio } of results) {
    const { slots, load, mix, serviceMs, swapMs, batchExponent } = setting;
    const waits = [meanWaitMs, meanEndToEndMs, maxWaitMs].map(seconds);
    const counts = endToEndRatio === null ? "" : " to the end";
    table.push([
      ...[slots, load, mix, both(serviceMs, 1000), both(swapMs, 1000), both(batchExponent, 1), ...waits],
      ...[swapsPer100Jobs.toFixed(1), `${ratioText(ratio)}${counts}`],
    ]);
  }
  return (
    `${policy}, ${seeds} x ${jobs} jobs a setting: mean ${ratioText(meanRatio)} times the least possible, at most ${ratioText(maxRatio)} times\n` +
    `${table.toString()}\n`
  );
}
