import { build, type Histogram } from "hdr-histogram-js";
import { seededRandom } from "../../maths/seeded-random.ts";
import type { Distribution, Estimate } from "./summary.ts";

const RESAMPLES = 1000;
const MIN_RESAMPLES = 50;
/** Bounds the work of a bootstrap: values × resamples. So many values have narrow intervals anyway. */
const MAX_STEPS = 2e7;
/** Both sides of a 95 % interval. */
const TAIL = 0.025;
const MAX_TRACKED_MS = 86_400_000;
const MICROSECONDS = 1000;

/** The smallest value that at least the share `p` of all values doesn't exceed. `sorted` is ascending and not empty. */
export function nearestRank(sorted: ArrayLike<number>, p: number): number {
  // 0.95 × 20 must not become rank 20 by a rounding of the product.
  const rank = Math.ceil(p * sorted.length - 1e-9);
  return sorted[Math.min(Math.max(rank, 1), sorted.length) - 1]!;
}

const SHARES = { p50: 0.5, p90: 0.9, p95: 0.95, p99: 0.99, p99_9: 0.999 } as const;
type PercentileName = keyof typeof SHARES;
const PERCENTILES = Object.entries(SHARES) as [PercentileName, number][];

/**
 * Percentiles and mean with 95 % percentile-bootstrap intervals. `groups` holds the values of each request; whole requests are
 * resampled, since the gaps within one answer are not independent of each other. null without values.
 */
export function distributionOf(groups: readonly (readonly number[])[], seed = 1): Distribution | null {
  const filled = groups.filter((group) => group.length > 0);
  if (filled.length === 0) return null;
  const unsorted = filled.flat();
  const ownerOf = Uint32Array.from(filled.flatMap((group, owner) => group.map(() => owner)));
  const order = Uint32Array.from(unsorted, (_, i) => i).sort((a, b) => unsorted[a]! - unsorted[b]!);
  const values = Float64Array.from(order, (i) => unsorted[i]!);
  const owners = Uint32Array.from(order, (i) => ownerOf[i]!);
  const intervals = filled.length < 2 ? null : bootstrap(values, owners, filled.length, seed);
  const estimate = (name: "mean" | PercentileName, value: number): Estimate => ({
    value,
    low: intervals?.[name].low ?? null,
    high: intervals?.[name].high ?? null,
  });
  const percentiles = PERCENTILES.map(([name, share]) => [name, estimate(name, nearestRank(values, share))]);
  return {
    count: values.length,
    min: values[0]!,
    max: values.at(-1)!,
    mean: estimate("mean", values.reduce((sum, value) => sum + value, 0) / values.length),
    ...(Object.fromEntries(percentiles) as Record<PercentileName, Estimate>),
  };
}

type Intervals = Record<"mean" | PercentileName, { low: number; high: number }>;

/** B. Efron's percentile bootstrap. A resample is how often each owner was drawn: one pass over the sorted values tells its percentiles. */
function bootstrap(values: Float64Array, owners: Uint32Array, ownerCount: number, seed: number): Intervals {
  const random = seededRandom(seed);
  const resamples = Math.max(Math.min(RESAMPLES, Math.floor(MAX_STEPS / values.length)), MIN_RESAMPLES);
  const drawn = new Uint32Array(ownerCount);
  const sizes = new Uint32Array(ownerCount);
  for (const owner of owners) sizes[owner]!++;
  const found = {
    mean: [] as number[],
    p50: [] as number[],
    p90: [] as number[],
    p95: [] as number[],
    p99: [] as number[],
    p99_9: [] as number[],
  };
  for (let i = 0; i < resamples; i++) {
    drawn.fill(0);
    let total = 0;
    for (let n = 0; n < ownerCount; n++) {
      const owner = Math.floor(random() * ownerCount);
      drawn[owner]!++;
      total += sizes[owner]!;
    }
    let seen = 0;
    let sum = 0;
    let next = 0;
    for (let n = 0; n < values.length; n++) {
      const times = drawn[owners[n]!]!;
      if (times === 0) continue;
      seen += times;
      sum += times * values[n]!;
      while (next < PERCENTILES.length && seen >= PERCENTILES[next]![1] * total - 1e-9) {
        found[PERCENTILES[next]![0]].push(values[n]!);
        next++;
      }
    }
    found.mean.push(sum / total);
  }
  const interval = (sample: number[]) => {
    sample.sort((a, b) => a - b);
    return { low: nearestRank(sample, TAIL), high: nearestRank(sample, 1 - TAIL) };
  };
  return Object.fromEntries(Object.entries(found).map(([name, sample]) => [name, interval(sample)])) as Intervals;
}

/** A high dynamic range histogram of milliseconds: constant memory, microseconds kept to three significant digits. */
export class LatencyHistogram {
  readonly #histogram: Histogram = build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: MAX_TRACKED_MS * MICROSECONDS,
    numberOfSignificantValueDigits: 3,
    bitBucketSize: 64,
    useWebAssembly: false,
  });

  record(ms: number): void {
    this.#histogram.recordValue(Math.round(Math.min(Math.max(ms, 0), MAX_TRACKED_MS) * MICROSECONDS));
  }

  get count(): number {
    return this.#histogram.totalCount;
  }

  /** 0 when empty. */
  percentileMs(percentile: number): number {
    return this.#histogram.getValueAtPercentile(percentile) / MICROSECONDS;
  }

  /** As ever finer steps towards 100 %, which is what a latency spectrum is drawn from. */
  spectrum(): { percentile: number; ms: number }[] {
    const points = new Set([0, 100]);
    for (let rest = 100; rest * this.count >= 100; rest /= 2) for (let k = 0; k < 5; k++) points.add(100 - rest + (k * rest) / 10);
    return [...points].sort((a, b) => a - b).map((percentile) => ({ percentile, ms: this.percentileMs(percentile) }));
  }
}
