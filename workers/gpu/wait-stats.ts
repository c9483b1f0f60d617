/** Waits are from arrival to pick, `meanEndToEndMs` from arrival to the job's end, milliseconds; percentiles by nearest rank. */
export interface WaitStats {
  jobs: number;
  meanWaitMs: number;
  p50WaitMs: number;
  p95WaitMs: number;
  p99WaitMs: number;
  maxWaitMs: number;
  meanEndToEndMs: number;
}

/** The wait estimated on arrival less the actual one, of the accepted jobs that had an estimate; percentiles by nearest rank. */
export interface EstimateError {
  jobs: number;
  meanAbsMs: number;
  p50AbsMs: number;
  p95AbsMs: number;
  /** Above 0: waits were estimated too long. */
  meanMs: number;
}

/** Of jobs in any order: `waits` and `endToEnds` in the same. */
export function waitStats(waits: Float64Array, endToEnds: Float64Array): WaitStats {
  const sorted = waits.toSorted();
  const rank = (p: number) => nearestRank(sorted, p);
  return {
    jobs: sorted.length,
    meanWaitMs: meanOf(sorted),
    p50WaitMs: rank(0.5),
    p95WaitMs: rank(0.95),
    p99WaitMs: rank(0.99),
    maxWaitMs: rank(1),
    meanEndToEndMs: meanOf(endToEnds),
  };
}

/** null without any error. */
export function estimateError(errors: Float64Array): EstimateError | null {
  if (errors.length === 0) return null;
  const sizes = errors.map(Math.abs).sort();
  return {
    jobs: errors.length,
    meanAbsMs: meanOf(sizes),
    p50AbsMs: nearestRank(sizes, 0.5),
    p95AbsMs: nearestRank(sizes, 0.95),
    meanMs: meanOf(errors),
  };
}

function nearestRank(sorted: Float64Array, p: number): number {
  return sorted[Math.max(Math.ceil(p * sorted.length) - 1, 0)] ?? 0;
}

function meanOf(values: Float64Array): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
