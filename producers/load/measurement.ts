import { AccuracyCount } from "../../maths/accuracy.ts";
import { PRIORITY_CLASSES } from "../../queues/names.ts";
import type { LoadPlan } from "./load-options.ts";
import { FORMULAS, latenciesOf } from "./metrics.ts";
import { type LoadRecord, PHASES, REQUEST_KINDS } from "./record.ts";
import type { Session } from "./recorder.ts";
import type { Schedule } from "./schedule.ts";
import { isGood, judgeSlo, parseSlo, type SloTerm } from "./slo.ts";
import { LatencyHistogram } from "./statistics.ts";
import type { Group, LoadSummary, RequestCounts, SloResult, Throughput } from "./summary.ts";
import { validityOf } from "./validity.ts";

/** Everything that a run has left behind. */
export interface Measured {
  plan: LoadPlan;
  schedule: Schedule;
  records: readonly LoadRecord[];
  sessions: readonly Session[];
  cutOff: number;
  eventLoopDelayMs: { p50: number; p99: number; max: number };
  peakInFlight: number;
}

type Figures = Omit<
  LoadSummary,
  | "schemaVersion"
  | "runId"
  | "fingerprint"
  | "command"
  | "url"
  | "plan"
  | "startedAt"
  | "finishedAt"
  | "sessions"
  | "interrupted"
  | "server"
  | "files"
>;

const MAX_BUCKETS = 300;

/** The figures of a run, from its records alone. */
export function figuresOf(measured: Measured): Figures {
  const { plan, schedule, records } = measured;
  const steady = records.filter(({ phase }) => phase === "steady");
  const spans = steadySpans(measured);
  const steadyS = spans.reduce((sum, { from, to }) => sum + (to - from), 0) / 1000;
  const terms = plan.slo === undefined ? null : parseSlo(plan.slo);
  const within = (at: number) => spans.some(({ from, to }) => at >= from && at < to);
  const rateOf = (count: number) => (steadyS > 0 ? count / steadyS : 0);
  const rates =
    schedule.arrivals === null
      ? null
      : {
          requestedPerS: rateOf(steady.filter(({ scheduledAt }) => within(scheduledAt)).length),
          achievedPerS: rateOf(records.filter(({ sentAt }) => within(sentAt)).length),
        };
  const throughput = throughputOf(records, steady, { within, steadyS, terms, plan });
  const { eventLoopDelayMs, peakInFlight } = measured;
  return {
    validity: validityOf({
      records: steady,
      rates,
      eventLoopDelayMs,
      peakInFlight,
      maxInFlight: plan.maxInFlight,
      toleratedDelayMs: plan.toleratedDelayMs,
    }),
    slo: terms && sloOf(terms, steady, throughput, plan),
    window: { warmUpS: plan.warmUpS, steadyS, coolDownS: plan.coolDownS },
    total: {
      planned: schedule.count,
      cutOff: measured.cutOff,
      byPhase: Object.fromEntries(
        PHASES.map((name) => [name, records.filter(({ phase }) => phase === name).length]),
      ) as Figures["total"]["byPhase"],
      distinctProblems: new Set(records.map(({ problemId }) => problemId)).size,
    },
    requests: countsOf(steady),
    errors: errorsOf(steady),
    latencies: latenciesOf(steady, plan.seed),
    throughput,
    tokens: { inMean: meanOf(steady, "tokensIn"), outMean: meanOf(steady, "tokensOut") },
    accuracy: accuracyOf(steady),
    groups: groupsOf(steady, { ...measured, terms }),
    spectrum: spectrumOf(steady),
    timeline: timelineOf(records),
    formulas: FORMULAS,
    kinds: REQUEST_KINDS.filter((kind) => records.some((record) => record.kind === kind)),
    classes: PRIORITY_CLASSES.filter((name) => records.some((record) => record.priorityClass === name)),
  };
}

interface Span {
  from: number;
  to: number;
}

/** The steady window in wall-clock time: a part of each session. A crashed session reached as far as its last record. */
function steadySpans({ sessions, records, schedule }: Measured): Span[] {
  return sessions.flatMap(({ baseAt, fromMs, toMs }, session) => {
    const own = toMs === null || schedule.endMs === null ? records.filter((record) => record.session === session) : [];
    const reachedMs = toMs ?? own.reduce((latest, { offsetMs }) => Math.max(latest, offsetMs), fromMs);
    // A closed loop with a number of requests ends when the last one has ended.
    const endMs =
      schedule.endMs === null ? own.reduce((latest, { finishedAt }) => Math.max(latest, finishedAt - baseAt), reachedMs) : reachedMs;
    const from = baseAt + Math.max(fromMs, schedule.steadyFromMs);
    const to = baseAt + Math.min(endMs, schedule.steadyToMs);
    return to > from ? [{ from, to }] : [];
  });
}

function countsOf(records: readonly LoadRecord[]): RequestCounts {
  const count = (of: (record: LoadRecord) => boolean) => records.filter(of).length;
  return {
    sent: records.length,
    completed: count(({ status }) => status === "completed"),
    failed: count(({ status }) => status === "failed"),
    refused: count(({ status }) => status === "refused"),
    truncated: count(({ truncated }) => truncated),
    cached: count(({ cached }) => cached),
    coalesced: count(({ coalesced }) => coalesced),
  };
}

function throughputOf(
  records: readonly LoadRecord[],
  steady: readonly LoadRecord[],
  { within, steadyS, terms, plan }: { within: (at: number) => boolean; steadyS: number; terms: SloTerm[] | null; plan: LoadPlan },
): Throughput {
  const ended = records.filter(({ status, finishedAt }) => status === "completed" && within(finishedAt));
  const perS = (sum: number) => (steadyS > 0 ? sum / steadyS : 0);
  const limits = terms?.some(({ of }) => of === "latency") ? terms : null;
  const good = limits === null ? null : steady.filter((record) => isGood(record, limits, plan.allowTruncated)).length;
  return {
    requestsPerS: perS(ended.length),
    tokensInPerS: perS(ended.reduce((sum, { tokensIn }) => sum + (tokensIn ?? 0), 0)),
    tokensOutPerS: perS(ended.reduce((sum, { tokensOut }) => sum + (tokensOut ?? 0), 0)),
    goodShare: good === null || steady.length === 0 ? null : good / steady.length,
    goodputPerS: good === null ? null : perS(good),
  };
}

function sloOf(terms: SloTerm[], records: readonly LoadRecord[], throughput: Throughput, plan: LoadPlan): SloResult {
  const rates = { throughput: throughput.requestsPerS, "tokens-out": throughput.tokensOutPerS, goodput: throughput.goodputPerS };
  return judgeSlo(terms, { records, rates, allowTruncated: plan.allowTruncated });
}

function errorsOf(records: readonly LoadRecord[]): LoadSummary["errors"] {
  const classes = Map.groupBy(
    records.filter(({ errorClass }) => errorClass !== null),
    ({ errorClass }) => errorClass!,
  );
  return [...classes]
    .map(([errorClass, members]) => ({ errorClass, count: members.length, example: members[0]!.errorDetail }))
    .sort((a, b) => b.count - a.count);
}

function meanOf(records: readonly LoadRecord[], key: "tokensIn" | "tokensOut"): number | null {
  // An answer from the cache took no tokens.
  const values = records
    .filter(({ status, cached, coalesced }) => status === "completed" && !cached && !coalesced)
    .flatMap((record) => record[key] ?? []);
  return values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
}

function accuracyOf(records: readonly LoadRecord[]): LoadSummary["accuracy"] {
  const count = new AccuracyCount();
  for (const { verdict } of records) if (verdict !== null) count.add(verdict);
  const { accuracy, ...rest } = count.summary();
  return accuracy === null ? null : { ...rest, accuracy };
}

function groupsOf(steady: readonly LoadRecord[], { plan, terms, schedule }: Measured & { terms: SloTerm[] | null }): Group[] {
  const bys: Record<Group["by"], (record: LoadRecord) => string | null> = {
    kind: ({ kind }) => kind,
    class: (record) => record.priorityClass,
    source: ({ status, cached, coalesced }) => (status !== "completed" ? null : cached ? "cached" : coalesced ? "coalesced" : "computed"),
    step: ({ step }) => (step === null ? null : String(step)),
  };
  return (Object.keys(bys) as Group["by"][]).flatMap((by): Group[] => {
    const groups = Map.groupBy(
      steady.filter((record) => bys[by](record) !== null),
      (record) => bys[by](record)!,
    );
    // One group is the whole, which stands there already; but a single step has a rate.
    if (groups.size < 2 && by !== "step") return [];
    return [...groups]
      .sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }))
      .map(([value, records]) => {
        const { arrivals } = plan;
        const isStep = by === "step" && arrivals.pattern === "steps";
        const stepMs = isStep ? schedule.endMs! / arrivals.ratesPerS.length : 0;
        // Of the first and the last step warm-up and cool-down may take a part.
        const stepFromMs = Math.max(Number(value) * stepMs, schedule.steadyFromMs);
        const stepS = (Math.min((Number(value) + 1) * stepMs, schedule.steadyToMs) - stepFromMs) / 1000;
        return {
          by,
          value,
          ratePerS: isStep ? arrivals.ratesPerS[Number(value)]! : null,
          requests: countsOf(records),
          latencies: latenciesOf(records, plan.seed),
          slo: isStep && terms !== null ? sloOf(terms, records, stepThroughput(records, stepS, terms, plan), plan) : null,
        };
      });
  });
}

/** Of the step's own requests: those of the one before may still be ending in it. */
function stepThroughput(records: readonly LoadRecord[], stepS: number, terms: SloTerm[], plan: LoadPlan): Throughput {
  const from = records.reduce((earliest, { scheduledAt }) => Math.min(earliest, scheduledAt), Number.POSITIVE_INFINITY);
  return throughputOf(records, records, { within: (at) => at >= from && at < from + stepS * 1000, steadyS: stepS, terms, plan });
}

function spectrumOf(steady: readonly LoadRecord[]): LoadSummary["spectrum"] {
  const histogram = new LatencyHistogram();
  for (const { status, e2eMs } of steady) if (status === "completed") histogram.record(e2eMs);
  return histogram.count === 0 ? [] : histogram.spectrum().map(({ percentile, ms }) => ({ percentile, e2eMs: ms }));
}

/** By the plan's time, so that the pauses between sessions don't show. */
function timelineOf(records: readonly LoadRecord[]): LoadSummary["timeline"] {
  const endOf = (record: LoadRecord) => record.offsetMs + record.e2eMs;
  const lastMs = records.reduce((latest, record) => Math.max(latest, endOf(record)), 0);
  const bucketS = Math.max(Math.ceil(lastMs / 1000 / MAX_BUCKETS), 1);
  const buckets = Array.from({ length: Math.floor(lastMs / 1000 / bucketS) + 1 }, () => ({
    sent: 0,
    completed: 0,
    failed: 0,
    tokensOut: 0,
    e2e: new LatencyHistogram(),
  }));
  for (const record of records) {
    const at = (ms: number) => buckets[Math.floor(ms / 1000 / bucketS)]!;
    at(record.offsetMs).sent++;
    const bucket = at(endOf(record));
    if (record.status !== "completed") bucket.failed++;
    else {
      bucket.completed++;
      bucket.tokensOut += record.tokensOut ?? 0;
      bucket.e2e.record(record.e2eMs);
    }
  }
  let inFlight = 0;
  return {
    bucketS,
    buckets: buckets.map(({ sent, completed, failed, tokensOut, e2e }, i) => {
      inFlight += sent - completed - failed;
      const at = (percentile: number) => (e2e.count === 0 ? null : e2e.percentileMs(percentile));
      return { fromS: i * bucketS, sent, completed, failed, inFlight, tokensOut, e2eP50Ms: at(50), e2eP95Ms: at(95) };
    }),
  };
}
