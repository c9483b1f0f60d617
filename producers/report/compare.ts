import type { LoadRecord } from "../load/record.ts";
import { type ChangeEstimate, changeOf, type Statistic } from "./bootstrap.ts";
import type { ComparisonRow, Unit } from "./schema.ts";

/** A smaller change is no reason to do anything, however certain it is. */
const PRACTICAL_CHANGE = 0.05;
/** For all rows of a run together: a row's interval is wider (Bonferroni). */
const CONFIDENCE = 0.95;
/** Fewer values say nothing. */
const MIN_VALUES = 20;
/** A p99 needs some values above it. */
const MIN_VALUES_FOR_P99 = 500;
/** From so many common requests on, pairs are compared; a warm-up that is cut by time takes some of one run and not of the other. */
const MIN_COMMON_SHARE = 0.9;
/** Throughput is the mean over so many stretches of the steady time. */
const STRETCHES = 20;

export interface CompareOptions {
  /** Of the resampling; default 1. */
  seed?: number;
  /** The smallest change that counts as real; default 0.05. */
  threshold?: number;
}

interface Metric {
  name: string;
  unit: Unit;
  better: "lower" | "higher";
  /** Of one request; null: it has none. */
  value: (record: LoadRecord) => number | null;
  statistics: [label: string, statistic: Statistic][];
}

const completed = (value: (record: LoadRecord) => number | null) => (record: LoadRecord) =>
  record.status === "completed" ? value(record) : null;

const CENTRE_AND_TAIL: Metric["statistics"] = [
  ["p50", 0.5],
  ["p95", 0.95],
];

const METRICS: Metric[] = [
  {
    name: "E2E",
    unit: "ms",
    better: "lower",
    value: completed(({ e2eMs }) => e2eMs),
    statistics: [["mean", "mean"], ...CENTRE_AND_TAIL, ["p99", 0.99]],
  },
  { name: "queue wait", unit: "ms", better: "lower", value: completed(({ queueWaitMs }) => queueWaitMs), statistics: [["mean", "mean"]] },
  { name: "TTFT", unit: "ms", better: "lower", value: completed(({ ttftMs }) => ttftMs), statistics: CENTRE_AND_TAIL },
  { name: "TPOT", unit: "ms", better: "lower", value: completed(({ tpotMs }) => tpotMs), statistics: [["p50", 0.5]] },
  {
    name: "success rate",
    unit: "share",
    better: "higher",
    value: ({ status }) => (status === "completed" ? 1 : 0),
    statistics: [["", "mean"]],
  },
  {
    name: "accuracy",
    unit: "share",
    better: "higher",
    value: completed(({ verdict }) => (verdict === null ? null : verdict === "equal" ? 1 : 0)),
    statistics: [["", "mean"]],
  },
];

/**
 * What changed from run A to run B, from their recorded requests (steady ones only). When both sent the same problems, the requests
 * are compared in pairs.
 */
export function compareRecords(
  run: string,
  a: readonly LoadRecord[],
  b: readonly LoadRecord[],
  { seed = 1, threshold = PRACTICAL_CHANGE }: CompareOptions = {},
): ComparisonRow[] {
  const [steadyA, steadyB] = [steady(a), steady(b)];
  const pairs = commonRequests(steadyA, steadyB);
  const compared = METRICS.flatMap((metric) => {
    const values = pairs === null ? [valuesOf(steadyA, metric), valuesOf(steadyB, metric)] : pairedValues(pairs, metric);
    const fewest = Math.min(values[0]!.length, values[1]!.length);
    const statistics = metric.statistics.filter(([label]) => label !== "p99" || fewest >= MIN_VALUES_FOR_P99);
    return { metric, a: values[0]!, b: values[1]!, statistics, paired: pairs !== null };
  });
  compared.push({
    metric: { name: "tokens/s", unit: "tokensPerS", better: "higher", value: () => null, statistics: [] },
    a: tokenRates(steadyA),
    b: tokenRates(steadyB),
    statistics: [["", "mean"]],
    paired: false,
  });
  const usable = compared.filter((it) => Math.min(it.a.length, it.b.length) >= MIN_VALUES);
  const rowCount = usable.reduce((sum, { statistics }) => sum + statistics.length, 0);
  const confidence = 1 - (1 - CONFIDENCE) / Math.max(rowCount, 1);
  return usable.flatMap(({ metric, a: valuesA, b: valuesB, statistics, paired }) =>
    changeOf(
      valuesA,
      valuesB,
      statistics.map(([, statistic]) => statistic),
      { seed, confidence, paired },
    ).map(
      (estimate, nth): ComparisonRow => ({
        run,
        metric: `${metric.name} ${statistics[nth]![0]}`.trim(),
        unit: metric.unit,
        better: metric.better,
        samplesA: valuesA.length,
        samplesB: valuesB.length,
        ...estimate,
        verdict: isReal(estimate, threshold) ? "real" : "noise",
      }),
    ),
  );
}

function isReal({ change, interval }: ChangeEstimate, threshold: number): boolean {
  return change !== null && interval !== null && Math.abs(change) >= threshold && (interval.low > 0 || interval.high < 0);
}

/** A real change to the worse. */
export function isWorse({ verdict, better, a, b }: ComparisonRow): boolean {
  return verdict === "real" && b > a === (better === "lower");
}

/** A real change to the better. */
export function isBetter(row: ComparisonRow): boolean {
  return row.verdict === "real" && !isWorse(row);
}

const steady = (records: readonly LoadRecord[]) =>
  records.filter(({ phase }) => phase === "steady").sort((one, other) => one.index - other.index);

/** The same requests of both runs, in order; null when most of one run are not in the other. */
function commonRequests(a: readonly LoadRecord[], b: readonly LoadRecord[]): [LoadRecord, LoadRecord][] | null {
  const ofB = new Map(b.map((record) => [record.index, record]));
  const pairs = a.flatMap((record): [LoadRecord, LoadRecord][] => {
    const other = ofB.get(record.index);
    return other?.problemId === record.problemId ? [[record, other]] : [];
  });
  return pairs.length >= MIN_COMMON_SHARE * Math.max(a.length, b.length) ? pairs : null;
}

function valuesOf(records: readonly LoadRecord[], { value }: Metric): number[] {
  return records.map(value).filter((it) => it !== null);
}

function pairedValues(pairs: readonly [LoadRecord, LoadRecord][], { value }: Metric): [number[], number[]] {
  const both = pairs.map(([one, other]) => [value(one), value(other)]).filter((pair): pair is [number, number] => !pair.includes(null));
  return [both.map(([one]) => one), both.map(([, other]) => other)];
}

/** Tokens written a second in each stretch of the time in which the steady requests ended. */
function tokenRates(records: readonly LoadRecord[]): number[] {
  const ended = records.filter(({ status, tokensOut }) => status === "completed" && tokensOut !== null);
  if (ended.length < 5 * STRETCHES) return [];
  const from = records.reduce((earliest, { scheduledAt }) => Math.min(earliest, scheduledAt), Number.POSITIVE_INFINITY);
  const to = ended.reduce((latest, { finishedAt }) => Math.max(latest, finishedAt), from);
  const stretchMs = (to - from) / STRETCHES;
  const tokens = new Array<number>(STRETCHES).fill(0);
  for (const { finishedAt, tokensOut } of ended)
    tokens[Math.min(Math.floor((finishedAt - from) / stretchMs), STRETCHES - 1)]! += tokensOut!;
  return tokens.map((count) => (1000 * count) / stretchMs);
}
