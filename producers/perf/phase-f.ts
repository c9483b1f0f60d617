import type { LoadRecord } from "../load/record.ts";
import { nearestRank } from "../load/statistics.ts";
import type { Phase } from "../report/schema.ts";
import { judged } from "../report/schema.ts";
import type { Measured, PhaseRunner, RunSpec } from "./phase.ts";
import { profileSettings } from "./shapes.ts";
import { CACHE_HIT_SHARE, CACHED_P95_MS, CACHED_RATE_PER_S, successTarget } from "./targets.ts";
import { cacheProgressOf } from "./traces.ts";

const REQUESTS = 100;
const DISTINCT = 40;
/** Slow enough that the answers of earlier ones are there, fast enough that some are still in flight. */
const REPEATS_RATE_PER_S = 10;
const CACHED_RATE_SENT_PER_S = 25;

/** F, cache and throughput: F1 repeats 40 problems over 100 requests; F2 sends cached ones in an open loop. */
export const runPhaseF: PhaseRunner = async (context) => {
  const { config, sizes, say } = context;
  const { repeats, cached } = await context.withSystem("cache", {}, async (system) => {
    const spec = (id: string, label: string, plan: RunSpec["plan"]): RunSpec => ({
      id,
      label,
      role: "student",
      shape: "natural",
      // The same problems in both runs: those of F1 are in the cache when F2 asks for them.
      seed: context.seed,
      plan: { ...plan, distinct: DISTINCT, cache: "auto", mix: { student: 1 } },
    });
    const f1 = spec("repeats", `F1: ${REQUESTS} requests over ${DISTINCT} problems`, {
      arrivals: { pattern: "poisson", ratePerS: REPEATS_RATE_PER_S },
      requests: REQUESTS,
    });
    const f2 = spec("cached", `F2: cached requests, ${CACHED_RATE_SENT_PER_S} a second for ${sizes.cachedS} s`, {
      arrivals: { pattern: "constant", ratePerS: CACHED_RATE_SENT_PER_S },
      durationS: sizes.cachedS,
    });
    return { repeats: await context.measure(system, f1), cached: await context.measure(system, f2) };
  });
  const cachedE2es = repeats.records.filter(isCached).map(({ e2eMs }) => e2eMs);
  const cachedP95 =
    cachedE2es.length === 0
      ? null
      : nearestRank(
          cachedE2es.sort((a, b) => a - b),
          0.95,
        );
  const rows = [repeats.row, cached.row];
  const hitShare = repeats.row.cacheHits?.share ?? null;
  say(
    `cache: ${((hitShare ?? 0) * 100).toFixed(0)} % hits, ${cached.row.throughput?.requestsPerS.toFixed(1) ?? "?"} cached answers a second`,
  );
  const phase: Phase = {
    id: "F",
    title: "Cache and throughput",
    status: "measured",
    reason: null,
    startedAt: null,
    finishedAt: null,
    configuration: {
      ...profileSettings(config.profiles.student),
      CACHE_TTL_SECONDS: config.cacheTtlSeconds,
      CACHE_MAX_BYTES: config.cacheMaxBytes,
    },
    targets: [
      judged({
        name: "F1: answered without the GPU",
        metric: "cached and coalesced of completed",
        runId: repeats.row.id,
        comparison: "at-least",
        threshold: CACHE_HIT_SHARE,
        observed: hitShare,
        unit: "share",
      }),
      judged({
        name: "F1: p95 of cached answers",
        metric: "E2E p95, cached answers",
        runId: repeats.row.id,
        comparison: "at-most",
        threshold: CACHED_P95_MS,
        observed: cachedP95,
        unit: "ms",
      }),
      judged({
        name: "F2: cached answers a second",
        metric: "completed a second",
        runId: cached.row.id,
        comparison: "at-least",
        threshold: CACHED_RATE_PER_S,
        observed: cached.row.throughput?.requestsPerS ?? null,
        unit: "perS",
      }),
      successTarget(rows),
    ],
    runs: rows,
    decision: null,
    notes: [
      `100 requests, 5 minutes and 20 requests a second can't be one run: 100 requests at 20 a second take 5 s, and 5 minutes at 20 a second are 6,000. So F1 has the 100 requests and F2 the rate and the time.`,
      composition(repeats),
    ],
    evidence: rows.flatMap(({ records }) => records ?? []),
  };
  return {
    phase,
    settings: {},
    reasons: {},
    capacities: {},
    graphs: { cacheHits: [cacheProgressOf("F1", repeats)] },
    limits: [],
  };
};

const isCached = (record: LoadRecord) => record.cached && record.status === "completed";

function composition({ records }: Measured): string {
  const count = (which: (record: LoadRecord) => boolean) => records.filter(which).length;
  const cached = count(({ cached }) => cached);
  const coalesced = count(({ coalesced }) => coalesced);
  return `Of the ${records.length} requests of F1, ${cached} came from the cache, ${coalesced} followed an identical one in flight, ${records.length - cached - coalesced} were computed.`;
}
