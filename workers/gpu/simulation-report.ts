import Table from "cli-table3";
import type { SimulationResult } from "./simulator.ts";

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
