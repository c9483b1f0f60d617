import { seededRandom } from "../../maths/seeded-random.ts";
import { nearestRank } from "../load/statistics.ts";
import type { Interval } from "./schema.ts";

const RESAMPLES = 4000;
/** Bounds the work: values × resamples. */
const MAX_STEPS = 2e8;
const MIN_RESAMPLES = 500;
/** A lag whose autocorrelation is below this ends the sum: what remains is noise. */
const NEGLIGIBLE_CORRELATION = 0.1;

/** What is computed from a sample: its mean, or the nearest-rank percentile of a share. */
export type Statistic = "mean" | number;

export interface ChangeEstimate {
  a: number;
  b: number;
  /** (b − a) / a; null when a is 0. */
  change: number | null;
  interval: Interval | null;
}

/**
 * How each statistic changes from sample A to sample B, with percentile bootstrap intervals of the given confidence. Values stand in the
 * order of time. Requests that follow each other wait for the same things, so blocks of neighbours are resampled instead of single values (the
 * moving-block bootstrap of Künsch, 1989), as long as the values are correlated. `paired`: value i of both is the same request, and
 * the same blocks are drawn from both, so that what differs between requests doesn't blur what differs between runs.
 */
export function changeOf(
  a: readonly number[],
  b: readonly number[],
  statistics: readonly Statistic[],
  { seed, confidence, paired }: { seed: number; confidence: number; paired: boolean },
): ChangeEstimate[] {
  const sampleA = new Sample(a);
  const sampleB = new Sample(b);
  const random = seededRandom(seed);
  const resamples = Math.max(Math.min(RESAMPLES, Math.floor(MAX_STEPS / (a.length + b.length))), MIN_RESAMPLES);
  const changes: number[][] = statistics.map(() => []);
  const blockA = blockLength(a);
  const blockB = blockLength(b);
  for (let i = 0; i < resamples; i++) {
    if (paired) {
      drawBlocks(sampleA.drawn, Math.max(blockA, blockB), random);
      sampleB.drawn.set(sampleA.drawn);
    } else {
      drawBlocks(sampleA.drawn, blockA, random);
      drawBlocks(sampleB.drawn, blockB, random);
    }
    const ofA = sampleA.statistics(statistics);
    const ofB = sampleB.statistics(statistics);
    for (const [at, value] of ofA.entries()) if (value !== 0) changes[at]!.push((ofB[at]! - value) / value);
  }
  sampleA.drawn.fill(1);
  sampleB.drawn.fill(1);
  const ofB = sampleB.statistics(statistics);
  const tail = (1 - confidence) / 2;
  return sampleA.statistics(statistics).map((value, at) => {
    const found = changes[at]!.sort((one, other) => one - other);
    return {
      a: value,
      b: ofB[at]!,
      change: value === 0 ? null : (ofB[at]! - value) / value,
      interval: value === 0 || found.length === 0 ? null : { low: nearestRank(found, tail), high: nearestRank(found, 1 - tail) },
    };
  });
}

/** A sample and how often each of its values was drawn; one pass over the sorted values gives every statistic. */
class Sample {
  readonly drawn: Uint32Array;
  readonly #values: Float64Array;
  readonly #order: Uint32Array;

  constructor(values: readonly number[]) {
    this.#values = Float64Array.from(values);
    this.#order = Uint32Array.from(values.keys()).sort((one, other) => values[one]! - values[other]!);
    this.drawn = new Uint32Array(values.length);
  }

  statistics(statistics: readonly Statistic[]): number[] {
    const count = this.#values.length;
    let sum = 0;
    let seen = 0;
    const shares = statistics.filter((it) => it !== "mean").sort((one, other) => one - other);
    const quantiles = new Map<Statistic, number>();
    let next = 0;
    for (const at of this.#order) {
      const times = this.drawn[at]!;
      if (times === 0) continue;
      seen += times;
      sum += times * this.#values[at]!;
      while (next < shares.length && seen >= shares[next]! * count - 1e-9) quantiles.set(shares[next++]!, this.#values[at]!);
    }
    return statistics.map((it) => (it === "mean" ? sum / count : quantiles.get(it)!));
  }
}

/** Fills `drawn` with how often each value comes in a resample of the same size, made of circular blocks. */
function drawBlocks(drawn: Uint32Array, length: number, random: () => number): void {
  const count = drawn.length;
  drawn.fill(0);
  for (let taken = 0; taken < count; ) {
    const start = Math.floor(random() * count);
    for (let at = 0; at < length && taken < count; at++, taken++) drawn[(start + at) % count]!++;
  }
}

/** Twice the integrated autocorrelation time, at least 1, at most a tenth of the sample. */
export function blockLength(values: readonly number[]): number {
  const count = values.length;
  const longest = Math.max(1, Math.floor(count / 10));
  const mean = values.reduce((sum, value) => sum + value, 0) / count;
  const centred = values.map((value) => value - mean);
  const variance = centred.reduce((sum, value) => sum + value * value, 0);
  if (variance === 0) return 1;
  let time = 1;
  for (let lag = 1; lag < longest; lag++) {
    let product = 0;
    for (let at = lag; at < count; at++) product += centred[at]! * centred[at - lag]!;
    const correlation = product / variance;
    if (correlation < NEGLIGIBLE_CORRELATION) break;
    time += 2 * correlation;
  }
  return Math.min(longest, Math.max(1, Math.round(time === 1 ? 1 : 2 * time)));
}
