import type { Graphs, PhaseId } from "../schema.ts";
import { acceptance } from "./acceptance.ts";
import { cacheHits } from "./cache-hits.ts";
import type { Chart } from "./chart.ts";
import { latencyByRate } from "./latency-by-rate.ts";
import { latencySpectrum } from "./latency-spectrum.ts";
import { memory } from "./memory.ts";
import { residency } from "./residency.ts";
import { throughput } from "./throughput.ts";
import { waterfall } from "./waterfall.ts";

/** The graphs that have data, each with the phase it stands in. */
export function chartsOf(graphs: Graphs): { phase: PhaseId; chart: Chart }[] {
  const charts: { phase: PhaseId; chart: Chart }[] = [];
  const add = (phase: PhaseId, chart: Chart) => charts.push({ phase, chart });
  const withPoints = <T extends { points: unknown[] }>(runs: T[]) => runs.filter(({ points }) => points.length > 0);
  const spectra = withPoints(graphs.latencySpectrum);
  if (spectra.length > 0) add("A", latencySpectrum(spectra));
  for (const [nth, run] of graphs.acceptance.filter(({ bins }) => bins.length > 0).entries())
    add("C", acceptance(run, `acceptance-${nth + 1}`));
  const { throughput: flow, memory: used, latencyByRate: byRate } = graphs;
  if (flow !== null && flow.requestsPerS.length + flow.tokensPerS.length > 0) add(flow.phase, throughput(flow));
  if (used !== null && withPoints(used.series).length > 0) add(used.phase, memory({ ...used, series: withPoints(used.series) }));
  const hits = withPoints(graphs.cacheHits);
  if (hits.length > 0) add("F", cacheHits(hits));
  if (byRate !== null && byRate.points.length > 0) add("B", latencyByRate(byRate));
  const jobs = graphs.waterfall.filter(({ stages }) => stages.length > 0);
  if (jobs.length > 0) add("A", waterfall(jobs));
  for (const [nth, run] of graphs.residency.entries()) add(run.phase, residency(run, `residency-${nth + 1}`));
  return charts;
}
