import { MathllmError } from "../../queues/errors.ts";
import type { LoadRecord } from "./record.ts";
import { nearestRank } from "./statistics.ts";
import type { SloResult } from "./summary.ts";

/**
 * Limits with commas between, such as `e2e-p95<1500,ttft-p95<500,errors<1%,accuracy>90%,throughput>=20`:
 *
 * - a latency (`e2e`, `ttft`, `itl`, `tpot`, `queue-wait`, `swap-wait`) with `p50 … p99.9`, `max` or `mean`, in milliseconds, or with a
 *   unit (`1500ms`, `1.5s`);
 * - a share (`errors`, `refused`, `truncated`, `accuracy`, `cached`) in percent or as a fraction (`1%`, `0.01`);
 * - a rate a second: `throughput` (requests), `tokens-out`, `goodput`.
 *
 * A percentile of a latency is over all requests that were sent: one that failed was never answered, so its latency is infinite.
 * Truncated ones count the same, unless they are allowed. A request answered from the cache has no first token of its own: its limit on
 * `ttft` is held to its E2E.
 */
const LATENCIES = {
  e2e: (record: LoadRecord) => record.e2eMs,
  ttft: (record: LoadRecord) => record.ttftMs ?? (hasOwnTimes(record) ? null : record.e2eMs),
  itl: (record: LoadRecord) => mean(record.itlMs),
  tpot: (record: LoadRecord) => record.tpotMs,
  "queue-wait": (record: LoadRecord) => record.queueWaitMs,
  "swap-wait": (record: LoadRecord) => record.swapWaitMs,
};
const SHARES = ["errors", "refused", "truncated", "accuracy", "cached"] as const;
const RATES = ["throughput", "tokens-out", "goodput"] as const;
type Latency = keyof typeof LATENCIES;
type Share = (typeof SHARES)[number];
type Rate = (typeof RATES)[number];
type Comparison = "<" | "<=" | ">" | ">=";

export type SloTerm = { text: string; comparison: Comparison; limit: number } & (
  | { of: "latency"; name: Latency; statistic: number | "max" | "mean" }
  | { of: "share"; name: Share }
  | { of: "rate"; name: Rate }
);

const hasOwnTimes = ({ cached, coalesced }: LoadRecord) => !cached && !coalesced;
const mean = (values: readonly number[] | null) =>
  values === null || values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;

const TERM = /^([a-z0-9-]+?)(?:-(p\d{1,2}(?:\.\d{1,3})?|max|mean))?\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)\s*(ms|s|%)?$/;

/** @throws MathllmError `invalid-configuration` that names the term. */
export function parseSlo(text: string): SloTerm[] {
  return text.split(",").map((part) => parseTerm(part.trim()));
}

function parseTerm(text: string): SloTerm {
  const wrong = (expected: string) => new MathllmError("invalid-configuration", `SLO: expected ${expected}; came "${text}".`);
  const [, name = "", statistic, comparison, digits, unit = ""] = TERM.exec(text) ?? [];
  const limit = Number(digits);
  const base = { text, comparison: comparison as Comparison };
  if (Object.hasOwn(LATENCIES, name)) {
    if (statistic === undefined) throw wrong(`a statistic such as ${name}-p95`);
    if (unit === "%") throw wrong("milliseconds or seconds for a latency");
    const parsed = statistic === "max" || statistic === "mean" ? statistic : Number(statistic.slice(1));
    return { ...base, of: "latency", name: name as Latency, statistic: parsed, limit: unit === "s" ? limit * 1000 : limit };
  }
  const isShare = SHARES.includes(name as Share);
  if (!(isShare || RATES.includes(name as Rate)) || statistic !== undefined) {
    throw wrong(
      `limits like e2e-p95<1500,errors<1% of ${[...Object.keys(LATENCIES).map((each) => `${each}-p95`), ...SHARES, ...RATES].join(", ")}`,
    );
  }
  if (unit === "ms" || unit === "s") throw wrong(`no time for ${name}`);
  if (!isShare) {
    if (unit === "%") throw wrong(`a number a second for ${name}`);
    return { ...base, of: "rate", name: name as Rate, limit };
  }
  const share = unit === "%" ? limit / 100 : limit;
  if (share > 1) throw wrong(`a share up to 1 or 100 % for ${name}`);
  return { ...base, of: "share", name: name as Share, limit: share };
}

const compare: Record<Comparison, (value: number, limit: number) => boolean> = {
  "<": (value, limit) => value < limit,
  "<=": (value, limit) => value <= limit,
  ">": (value, limit) => value > limit,
  ">=": (value, limit) => value >= limit,
};

/** Answered, and whole unless truncation is allowed. */
const isAnswered = (record: LoadRecord, allowTruncated: boolean) => record.status === "completed" && (allowTruncated || !record.truncated);

/** What a single request has to do to count as good: be answered and keep every latency limit of the SLO. */
export function isGood(record: LoadRecord, terms: readonly SloTerm[], allowTruncated: boolean): boolean {
  if (!isAnswered(record, allowTruncated)) return false;
  return terms.every((term) => {
    if (term.of !== "latency") return true;
    const value = LATENCIES[term.name](record);
    return value === null || compare[term.comparison](value, term.limit);
  });
}

export interface SloInput {
  /** The steady requests. */
  records: readonly LoadRecord[];
  rates: Record<Rate, number | null>;
  allowTruncated: boolean;
}

export function judgeSlo(terms: readonly SloTerm[], input: SloInput): SloResult {
  const judged = terms.map((term) => {
    const { observed, unit, note } = observe(term, input);
    const met = observed !== null && Number.isFinite(observed) && compare[term.comparison](observed, term.limit);
    return { term: term.text, observed: observed !== null && Number.isFinite(observed) ? observed : null, unit, met, note };
  });
  return { met: judged.every(({ met }) => met), terms: judged };
}

function observe(term: SloTerm, input: SloInput): { observed: number | null; unit: string; note: string | null } {
  switch (term.of) {
    case "latency":
      return observeLatency(term, input);
    case "share": {
      const observed = shareOf(term.name, input.records);
      return { observed, unit: "share", note: observed === null ? "no request to tell it from" : null };
    }
    case "rate": {
      const observed = input.rates[term.name];
      return { observed, unit: "1/s", note: observed === null ? "needs a limit on a latency" : null };
    }
  }
}

function observeLatency(term: SloTerm & { of: "latency" }, { records, allowTruncated }: SloInput) {
  const values: number[] = [];
  let unanswered = 0;
  for (const record of records) {
    const value = isAnswered(record, allowTruncated) ? LATENCIES[term.name](record) : Number.POSITIVE_INFINITY;
    if (value === Number.POSITIVE_INFINITY) unanswered++;
    if (value !== null) values.push(value);
  }
  const share = `${unanswered} of ${records.length} requests failed${allowTruncated ? "" : " or were cut"}`;
  if (values.length === unanswered) return { observed: null, unit: "ms", note: unanswered > 0 ? share : "no request has it" };
  values.sort((a, b) => a - b);
  const { statistic } = term;
  // A mean has no place for what never came: it is of the answered, and the errors have a limit of their own.
  if (statistic === "mean") return { observed: mean(values.filter(Number.isFinite)), unit: "ms", note: null };
  const observed = statistic === "max" ? values.at(-1)! : nearestRank(values, statistic / 100);
  return { observed, unit: "ms", note: Number.isFinite(observed) ? null : `${share}: they never came` };
}

function shareOf(name: Share, records: readonly LoadRecord[]): number | null {
  const answered = records.filter(({ status }) => status === "completed");
  const [of, among]: [(record: LoadRecord) => boolean, readonly LoadRecord[]] = (
    {
      errors: [({ status }) => status !== "completed", records],
      refused: [({ status }) => status === "refused", records],
      truncated: [({ truncated }) => truncated, answered],
      cached: [({ cached, coalesced }) => cached || coalesced, answered],
      accuracy: [({ verdict }) => verdict === "equal", answered.filter(({ verdict }) => verdict !== null)],
    } satisfies Record<Share, [(record: LoadRecord) => boolean, readonly LoadRecord[]]>
  )[name];
  return among.length === 0 ? null : among.filter(of).length / among.length;
}
