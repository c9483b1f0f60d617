import type { Role } from "../../queues/names.ts";
import { ROLES } from "../../queues/names.ts";
import type { LoadRecord } from "../load/record.ts";
import { nearestRank } from "../load/statistics.ts";
import type { Evidence, Graphs, PhaseId } from "../report/schema.ts";
import { boundedSeries, type Point } from "../report/series.ts";
import type { Measured } from "./phase.ts";
import type { TelemetrySample, TelemetrySwap } from "./telemetry-file.ts";

/** What the graphs of a report are drawn from, made of a run's records and the worker's telemetry: one clock, epoch milliseconds. */

type Residency = Graphs["residency"][number];

/** `[percentile, ms]` of a run's E2E. */
export function spectrumOf(label: string, { summary }: Measured): Graphs["latencySpectrum"][number] {
  return { label, points: boundedSeries(summary.spectrum.map(({ percentile: at, e2eMs }): Point => [at, e2eMs])) };
}

export function throughputOf(phase: PhaseId, { summary }: Measured): Graphs["throughput"] {
  const { bucketS, buckets } = summary.timeline;
  const series = (value: (bucket: (typeof buckets)[number]) => number) =>
    boundedSeries(buckets.map((bucket): Point => [bucket.fromS * 1000, value(bucket) / bucketS]));
  return {
    phase,
    originAt: Math.round(summary.startedAt),
    requestsPerS: series(({ completed }) => completed),
    tokensPerS: series(({ tokensOut }) => tokensOut),
  };
}

/** VRAM where there is a card, and the processes' resident memory. */
export function memoryOf(phase: PhaseId, { summary, telemetry, apiMemory }: Measured): Graphs["memory"] {
  const originAt = Math.round(summary.startedAt);
  const series = (label: string, value: (sample: TelemetrySample) => number | null | undefined) => ({
    label,
    points: boundedSeries(
      telemetry.samples.flatMap((sample): Point[] => (value(sample) == null ? [] : [[sample.ts - originAt, value(sample)!]])),
    ),
  });
  const all = [
    series("VRAM", ({ vramUsedBytes }) => vramUsedBytes),
    series("model server", ({ modelServerRssBytes }) => modelServerRssBytes),
    series("worker", ({ rssBytes }) => rssBytes),
    { label: "API", points: boundedSeries(apiMemory.map(({ ts, rssBytes }): Point => [ts - originAt, rssBytes])) },
  ].filter(({ points }) => points.length > 0);
  if (all.length === 0) return null;
  const total = telemetry.samples.find(({ vramTotalBytes }) => vramTotalBytes != null)?.vramTotalBytes ?? null;
  return { phase, originAt, capacityBytes: total, series: all };
}

/** Who was resident when, from the swaps as the worker recorded them, with the depths of both queues. */
export function residencyOf(label: string, phase: PhaseId, { summary, telemetry }: Measured): Residency {
  const originAt = Math.round(summary.startedAt);
  const durationMs = summary.finishedAt - summary.startedAt;
  const at = (ts: number) => Math.min(Math.max(ts - originAt, 0), durationMs);
  const intervals: Residency["intervals"] = [];
  const add = (model: Role, state: Residency["intervals"][number]["state"], fromMs: number, toMs: number) => {
    if (toMs > fromMs) intervals.push({ model, state, fromMs, toMs });
  };
  const first = telemetry.samples.find(({ residentModel }) => residentModel != null)?.residentModel;
  let resident = ROLES.find((role) => role === (telemetry.swaps.length > 0 ? telemetry.swaps[0]!.from : first)) ?? null;
  let since = 0;
  for (const swap of telemetry.swaps) {
    const begun = swap.ts - swap.totalMs;
    const emptied = begun + swap.drainMs;
    if (resident !== null) {
      add(resident, "resident", since, at(begun));
      add(resident, "draining", at(begun), at(emptied));
    }
    add(swap.to, "loading", at(emptied), at(swap.ts));
    resident = swap.to;
    since = at(swap.ts);
  }
  if (resident !== null) add(resident, "resident", since, durationMs);
  const depth = (role: Role) =>
    boundedSeries(telemetry.samples.flatMap(({ ts, depths }): Point[] => (depths[role] == null ? [] : [[at(ts), depths[role]]])));
  return {
    label,
    phase,
    originAt,
    durationMs,
    intervals,
    swaps: telemetry.swaps.map((swap: TelemetrySwap) => ({
      atMs: at(swap.ts),
      from: swap.from,
      to: swap.to,
      durationMs: swap.totalMs,
      reason: swap.reason,
    })),
    studentDepth: depth("student"),
    talkerDepth: depth("talker"),
  };
}

/** Share of answers that came from the cache or a twin, request by request in the order they were scheduled. */
export function cacheProgressOf(label: string, { records }: Measured): Graphs["cacheHits"][number] {
  let hits = 0;
  const points = [...records]
    .sort((a, b) => a.index - b.index)
    .map((record, i): Point => {
      if (record.cached || record.coalesced) hits++;
      return [i + 1, hits / (i + 1)];
    });
  return { label, points: boundedSeries(points) };
}

const WATERFALL: [name: string, from: (record: LoadRecord) => number | null, to: (record: LoadRecord) => number | null][] = [
  ["sent and stored", ({ scheduledAt }) => scheduledAt, ({ acceptedAt }) => acceptedAt],
  ["waited in the queue", ({ acceptedAt }) => acceptedAt, ({ pickedAt }) => pickedAt],
  ["to the first token", ({ pickedAt }) => pickedAt, ({ firstTokenAt }) => firstTokenAt],
  ["to the answer", ({ firstTokenAt }) => firstTokenAt, ({ finishedAt }) => finishedAt],
];

/** Where the time of a run's steady, computed requests went; null when none has all time stamps. */
export function waterfallOf(label: string, { records }: Measured): Graphs["waterfall"][number] | null {
  const whole = records.filter(
    (record) =>
      record.phase === "steady" &&
      record.status === "completed" &&
      WATERFALL.every(([, from, to]) => from(record) !== null && to(record) !== null),
  );
  if (whole.length === 0) return null;
  const stages = WATERFALL.map(([name, from, to]) => {
    const spans = whole.map((record) => Math.max(to(record)! - from(record)!, 0)).sort((a, b) => a - b);
    return { name, p50Ms: nearestRank(spans, 0.5), p95Ms: nearestRank(spans, 0.95) };
  });
  return { label, stages };
}

const TENTHS = Array.from({ length: 10 }, (_, i) => i);

/** Seconds of a run by the share of drafted tokens that the model accepted in them; null where nothing drafted. */
export function acceptanceOf(label: string, { telemetry: { samples } }: Measured): Graphs["acceptance"][number] | null {
  const shares: number[] = [];
  for (const [i, { draftTokensTotal, draftAcceptedTokensTotal }] of samples.entries()) {
    const before = samples[i - 1];
    if (draftTokensTotal == null || draftAcceptedTokensTotal == null) continue;
    if (before?.draftTokensTotal == null || before.draftAcceptedTokensTotal == null || before.draftTokensTotal >= draftTokensTotal)
      continue;
    shares.push((draftAcceptedTokensTotal - before.draftAcceptedTokensTotal) / (draftTokensTotal - before.draftTokensTotal));
  }
  if (shares.length === 0) return null;
  const bins = TENTHS.map((tenth) => ({
    label: `${tenth * 10}–${tenth * 10 + 10} %`,
    count: shares.filter((share) => Math.min(Math.floor(share * 10), 9) === tenth).length,
  }));
  return { label, axis: "share of drafted tokens accepted, within a second", bins };
}

/** Average and peak of what a phase's runs used. */
export function resourcesOf(phase: PhaseId, runs: readonly Measured[]): Evidence["resources"] {
  const samples = runs.flatMap(({ telemetry }) => telemetry.samples);
  const use = (name: string, unit: Evidence["resources"][number]["unit"], values: (number | null | undefined)[]) => {
    const known = values.filter((value) => value != null);
    if (known.length === 0) return [];
    const average = known.reduce((sum, value) => sum + value, 0) / known.length;
    return [{ phase, name, unit, average, peak: known.reduce((a, b) => Math.max(a, b), 0) }];
  };
  const percent = (value: number | null | undefined) => (value == null ? null : value / 100);
  return [
    ...use(
      "VRAM used",
      "bytes",
      samples.map(({ vramUsedBytes }) => vramUsedBytes),
    ),
    ...use(
      "GPU busy",
      "share",
      samples.map(({ gpuPercent }) => percent(gpuPercent)),
    ),
    ...use(
      "CPU busy",
      "share",
      samples.map(({ cpuPercent }) => percent(cpuPercent)),
    ),
    ...use(
      "model server, resident memory",
      "bytes",
      samples.map(({ modelServerRssBytes }) => modelServerRssBytes),
    ),
    ...use(
      "worker, resident memory",
      "bytes",
      samples.map(({ rssBytes }) => rssBytes),
    ),
    ...use(
      "API, resident memory",
      "bytes",
      runs.flatMap(({ apiMemory }) => apiMemory.map(({ rssBytes }) => rssBytes)),
    ),
  ];
}
