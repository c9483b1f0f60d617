import { z } from "zod";
import { FAMILIES } from "../../maths/generator.ts";
import { PRIORITY_CLASSES } from "../../queues/names.ts";
import { REQUEST_KINDS } from "./record.ts";

const ratePerS = z.number().gt(0).max(100_000);
const shares = <T extends string>(names: readonly T[]) =>
  z
    .partialRecord(z.enum(names), z.number().min(0).max(1))
    .refine((mix) => Math.abs(Object.values<number | undefined>(mix).reduce<number>((sum, share) => sum + (share ?? 0), 0) - 1) < 0.001, {
      message: "expected shares that add up to 1",
    });

/** When requests are sent. All but `closed` are an open loop: the time of a request doesn't depend on the answers before it. */
export const arrivalsSchema = z.discriminatedUnion("pattern", [
  z.strictObject({ pattern: z.literal("constant"), ratePerS }),
  z.strictObject({ pattern: z.literal("poisson"), ratePerS }),
  /** Gamma-distributed gaps. `burstiness` is the gamma's shape k: 1 is Poisson, below 1 comes in bursts; the gaps' CV is 1/√k. */
  z.strictObject({ pattern: z.literal("gamma"), ratePerS, burstiness: z.number().min(0.01).max(1000) }),
  /** Evenly from one rate to the other over the duration. */
  z.strictObject({ pattern: z.literal("ramp"), fromPerS: z.number().min(0).max(100_000), toPerS: z.number().min(0).max(100_000) }),
  /** Rates one after the other, each for the same share of the duration, evenly spaced. */
  z.strictObject({ pattern: z.literal("steps"), ratesPerS: z.array(ratePerS).min(1).max(100) }),
  /** The times, kinds and classes of a telemetry file's `job` records, or of a `requests.jsonl`. */
  z.strictObject({ pattern: z.literal("replay"), file: z.string() }),
  /** Closed loop: so many requests at once, the next when one ends. */
  z.strictObject({ pattern: z.literal("closed"), concurrency: z.number().int().min(1).max(10_000) }),
]);
export type ArrivalOptions = z.infer<typeof arrivalsSchema>;

/** What defines a run: the same values give the same requests at the same times. Kept in `run.json` and compared by `--resume`. */
export const loadPlanSchema = z
  .strictObject({
    target: z.enum(["api", "openai"]).default("api"),
    arrivals: arrivalsSchema,
    /** Of the whole schedule, warm-up and cool-down included. One of `durationS` and `requests` is given; a replay may do without. */
    durationS: z.number().gt(0).max(86_400).optional(),
    requests: z.number().int().min(1).max(10_000_000).optional(),
    /** Requests scheduled in the first seconds are sent and left out of every figure. */
    warmUpS: z.number().min(0).default(0),
    /** The same for the last seconds. */
    coolDownS: z.number().min(0).default(0),
    /** Shares of kinds; together 1. A server that isn't our API has no `explain`. */
    mix: shares(REQUEST_KINDS).default({ student: 1 }),
    /** Shares of priority classes; together 1. */
    classes: shares(PRIORITY_CLASSES).default({ normal: 1 }),
    /** Made problems, or those of a bank (JSONL or CSV, maths/banks.ts); a bank is repeated when it is used up. */
    problems: z
      .discriminatedUnion("source", [
        z.strictObject({
          source: z.literal("generator"),
          families: z.array(z.enum(FAMILIES as [string, ...string[]])).optional(),
          hard: z.boolean().default(false),
        }),
        z.strictObject({ source: z.literal("bank"), file: z.string() }),
      ])
      .default({ source: "generator", hard: false }),
    /** Repeat over so many problems instead of sending each once: for runs about the cache. A problem keeps its kind. */
    distinct: z.number().int().min(1).max(1_000_000).optional(),
    /** Problems are filled up to about so many prompt tokens; the server is asked twice beforehand how it counts. */
    promptTokens: z.number().int().min(16).max(131_072).optional(),
    maxTokens: z.number().int().min(1).max(131_072).optional(),
    temperature: z.number().min(0).max(2).default(0),
    /** Self-consistency (our API only): solutions drawn for each problem, not for the Talker's texts. */
    samples: z.number().int().min(1).max(32).default(1),
    cache: z.enum(["auto", "on", "off", "refresh"]).default("off"),
    /** The model's name at an OpenAI-compatible server. Default: the kind's name where the server lists it, else its first. */
    model: z.string().optional(),
    /** A request without an answer after so long, from when it was sent, has failed as `timeout` and is cancelled. */
    timeoutS: z.number().gt(0).max(3600).default(300),
    /** More requests are not in flight at once; the schedule then falls behind, and the run is INVALID. */
    maxInFlight: z.number().int().min(1).max(100_000).default(4096),
    /** The generator may be so late, or by 5 % of the p99 that it measures, if that is more, before the run is INVALID. */
    toleratedDelayMs: z.number().gt(0).max(60_000).default(25),
    seed: z.number().int().min(0).max(4_294_967_295).default(1),
    /** Like `e2e-p95<1500,errors<1%`: see slo.ts. */
    slo: z.string().optional(),
    /** By default an answer that the token limit cut misses the SLO, like an error; not so where the limit itself is the subject. */
    allowTruncated: z.boolean().default(false),
  })
  .superRefine((plan, context) => {
    const refuse = (path: string, message: string) => context.addIssue({ code: "custom", path: [path], message });
    const { arrivals, durationS, requests, warmUpS, coolDownS, target, mix } = plan;
    if (durationS !== undefined && requests !== undefined) refuse("requests", "expected a duration or a number of requests, not both");
    const bounded = (durationS ?? requests) !== undefined;
    if (!bounded && arrivals.pattern !== "replay") refuse("durationS", "expected a duration or a number of requests");
    if (durationS === undefined && (arrivals.pattern === "ramp" || arrivals.pattern === "steps"))
      refuse("durationS", `expected a duration with arrivals ${arrivals.pattern}`);
    if (arrivals.pattern === "ramp" && arrivals.fromPerS + arrivals.toPerS === 0) refuse("arrivals", "expected a ramp with a rate above 0");
    if (durationS !== undefined && warmUpS + coolDownS >= durationS)
      refuse("durationS", "expected a duration longer than warm-up and cool-down together");
    if (arrivals.pattern === "closed" && durationS === undefined && coolDownS > 0)
      refuse("coolDownS", "expected a duration: a closed loop with a number of requests doesn't know its end");
    if (target === "openai" && (mix.explain ?? 0) > 0) refuse("mix", "expected no explain: only our API chains two models");
    if (plan.samples > 1 && plan.temperature === 0)
      refuse("samples", "expected 1, or a temperature above 0: at 0 all samples are the same");
    if (target === "openai" && plan.samples > 1) refuse("samples", "expected 1: only our API draws several solutions");
  });
export type LoadPlan = z.infer<typeof loadPlanSchema>;

/** A plan and where it runs. */
export type LoadOptions = z.input<typeof loadPlanSchema> & {
  /** The API's address, or the OpenAI-compatible server's, with or without `/v1`. */
  url: string;
  /** Bearer token; never recorded. */
  apiKey?: string;
  /** Where run.json, requests.jsonl, server.jsonl and summary.json go; null: nothing is written. */
  outDir: string | null;
  /** Go on with the run of `outDir`: what it has recorded is kept, the rest is sent. Needs the same plan. */
  resume?: boolean;
  /** For the record: the command line. */
  command?: string;
};
