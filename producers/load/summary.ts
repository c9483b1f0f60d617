import { z } from "zod";
import { PRIORITY_CLASSES, ROLES } from "../../queues/names.ts";
import { PHASES, REQUEST_KINDS } from "./record.ts";

/** A value with its 95 % bootstrap interval (seeded, resampling requests); `low` and `high` are null for fewer than two requests. */
export const estimateSchema = z.object({ value: z.number(), low: z.number().nullable(), high: z.number().nullable() });
export type Estimate = z.infer<typeof estimateSchema>;

/** The percentiles of one metric over the steady, completed requests that have it. Nearest rank, exact. */
export const distributionSchema = z.object({
  /** Values; of ITL more than one a request. */
  count: z.number(),
  min: z.number(),
  mean: estimateSchema,
  p50: estimateSchema,
  p90: estimateSchema,
  p95: estimateSchema,
  p99: estimateSchema,
  p99_9: estimateSchema,
  max: z.number(),
});
export type Distribution = z.infer<typeof distributionSchema>;

const distributionOrNone = distributionSchema.nullable();

/** null: no request has it (ITL through our API, swap wait at another server …). */
export const latenciesSchema = z.object({
  e2eMs: distributionOrNone,
  ttftMs: distributionOrNone,
  itlMs: distributionOrNone,
  tpotMs: distributionOrNone,
  queueWaitMs: distributionOrNone,
  swapWaitMs: distributionOrNone,
});
export type Latencies = z.infer<typeof latenciesSchema>;

/** Steady requests, by how they ended. `sent = completed + failed + refused`; truncated, cached and coalesced are completed ones. */
export const requestCountsSchema = z.object({
  sent: z.number(),
  completed: z.number(),
  failed: z.number(),
  refused: z.number(),
  truncated: z.number(),
  cached: z.number(),
  coalesced: z.number(),
});
export type RequestCounts = z.infer<typeof requestCountsSchema>;

/** Per second of the steady window: what ended within it, whenever it was sent. */
export const throughputSchema = z.object({
  requestsPerS: z.number(),
  tokensInPerS: z.number(),
  tokensOutPerS: z.number(),
  /** Steady requests that met every per-request limit of the SLO: their share of all sent, and that share of the rate sent. */
  goodShare: z.number().nullable(),
  goodputPerS: z.number().nullable(),
});
export type Throughput = z.infer<typeof throughputSchema>;

/** Share of right answers among the graded, with Wilson's 95 % interval; null when nothing was graded. Undecided is not right. */
export const loadAccuracySchema = z
  .object({
    graded: z.number(),
    equal: z.number(),
    different: z.number(),
    undecided: z.number(),
    accuracy: z.number(),
    low: z.number(),
    high: z.number(),
  })
  .nullable();

export const sloResultSchema = z.object({
  met: z.boolean(),
  terms: z.array(
    z.object({
      /** As given, such as `e2e-p95<1500`. */
      term: z.string(),
      /** null: it can't be told, or so many requests failed that the percentile is one of them. Then it is missed. */
      observed: z.number().nullable(),
      unit: z.string(),
      met: z.boolean(),
      note: z.string().nullable(),
    }),
  ),
});
export type SloResult = z.infer<typeof sloResultSchema>;

/** Whether the generator kept to its plan. An invalid run measured the generator, not the server. */
export const validitySchema = z.object({
  valid: z.boolean(),
  /** What was wrong, in words; empty when valid. */
  reasons: z.array(z.string()),
  /** Of the steady requests; closed loop: all 0. */
  dispatchDelayMs: z.object({ p50: z.number(), p99: z.number(), max: z.number() }),
  /** Over the steady window; null in a closed loop. */
  requestedRatePerS: z.number().nullable(),
  achievedRatePerS: z.number().nullable(),
  /** How late the generator's own timers fired. */
  eventLoopDelayMs: z.object({ p50: z.number(), p99: z.number(), max: z.number() }),
  maxInFlight: z.number(),
});
export type Validity = z.infer<typeof validitySchema>;

const groupSchema = z.object({
  /** `source`: computed, cached or coalesced. `step`: which rate of `--steps`, from 0. */
  by: z.enum(["kind", "class", "source", "step"]),
  value: z.string(),
  /** Of a step. */
  ratePerS: z.number().nullable(),
  requests: requestCountsSchema,
  latencies: latenciesSchema,
  /** Of a step. */
  slo: sloResultSchema.nullable(),
});
export type Group = z.infer<typeof groupSchema>;

const bucketSchema = z.object({
  /** Seconds from the beginning of the plan. */
  fromS: z.number(),
  sent: z.number(),
  completed: z.number(),
  failed: z.number(),
  /** At its end. */
  inFlight: z.number(),
  tokensOut: z.number(),
  /** Of the requests that ended in it. */
  e2eP50Ms: z.number().nullable(),
  e2eP95Ms: z.number().nullable(),
});

/** What `--json` prints and `summary.json` holds. Everything but `total`, `timeline` and `server` is about the steady requests. */
export const loadSummarySchema = z.object({
  schemaVersion: z.literal(1),
  runId: z.string(),
  /** Digest of the plan: runs with the same one sent the same requests at the same times. */
  fingerprint: z.string(),
  command: z.string().nullable(),
  url: z.string(),
  /** The plan with its defaults filled in, as load-options.ts describes it. */
  plan: z.record(z.string(), z.unknown()),
  startedAt: z.number(),
  finishedAt: z.number(),
  sessions: z.number(),
  /** Stopped before its end: the figures are of what was sent until then. */
  interrupted: z.boolean(),
  validity: validitySchema,
  /** null without an SLO. */
  slo: sloResultSchema.nullable(),
  window: z.object({ warmUpS: z.number(), steadyS: z.number(), coolDownS: z.number() }),
  /** All phases. `planned` is null where the duration alone ends the run (closed loop); `cutOff`: in flight at the interruption. */
  total: z.object({
    planned: z.number().nullable(),
    cutOff: z.number(),
    byPhase: z.record(z.enum(PHASES), z.number()),
    distinctProblems: z.number(),
  }),
  requests: requestCountsSchema,
  /** Failed and refused ones by class, the most frequent first. `example` is one's detail. */
  errors: z.array(z.object({ errorClass: z.string(), count: z.number(), example: z.string().nullable() })),
  latencies: latenciesSchema,
  throughput: throughputSchema,
  tokens: z.object({ inMean: z.number().nullable(), outMean: z.number().nullable() }),
  accuracy: loadAccuracySchema,
  groups: z.array(groupSchema),
  /** E2E by percentile, from the HDR histogram: for the graph. */
  spectrum: z.array(z.object({ percentile: z.number(), e2eMs: z.number() })),
  timeline: z.object({ bucketS: z.number(), buckets: z.array(bucketSchema) }),
  /** Our API only: `/gpu` once a second and the swaps it told of, in the last session; null elsewhere. `server.jsonl` has them all. */
  server: z
    .object({
      samples: z.number(),
      swaps: z.number(),
      swapMsTotal: z.number(),
      /** Share of the samples. */
      residentShare: z.object({ student: z.number(), talker: z.number(), none: z.number() }),
      maxDepth: z.record(z.enum(ROLES), z.number()),
      maxRunning: z.number(),
    })
    .nullable(),
  /** What the metrics mean. */
  formulas: z.array(z.object({ name: z.string(), unit: z.string(), formula: z.string() })),
  /** Names within the output folder; empty when nothing is written. */
  files: z.array(z.string()),
  kinds: z.array(z.enum(REQUEST_KINDS)),
  classes: z.array(z.enum(PRIORITY_CLASSES)),
});
export type LoadSummary = z.infer<typeof loadSummarySchema>;
