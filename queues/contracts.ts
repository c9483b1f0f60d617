import { z } from "zod";
import { PRIORITY_CLASSES, ROLES } from "./names.ts";
import { problemText } from "./problem-text.ts";

/** What both sides of Redis and every HTTP client agree on. All types are inferred from these schemas. */

/** The longest problem that is accepted at all, in characters; the model's own context may be shorter (`problem-too-long`). */
export const MAX_PROBLEM_CHARS = 32_000;
export const MAX_SAMPLES = 32;
const MAX_EXPECTED_CHARS = 2_000;

export const samplingSchema = z.strictObject({
  temperature: z.number().min(0).max(2).default(0),
  topP: z.number().gt(0).max(1).optional(),
  topK: z.number().int().min(0).max(1000).optional(),
  minP: z.number().min(0).max(1).optional(),
  seed: z.number().int().min(0).max(4_294_967_295).optional(),
  maxTokens: z.number().int().min(1).max(131_072).optional(),
  stop: z.array(z.string().min(1).max(200)).max(4).optional(),
});
export type Sampling = z.infer<typeof samplingSchema>;

/** Zod drops a key of this name without a word. */
const withoutProto = (value: unknown, context: z.RefinementCtx): unknown => {
  if (value !== null && typeof value === "object" && Object.hasOwn(value, "__proto__")) {
    context.addIssue({ code: "custom", message: "expected no entry named __proto__" });
  }
  return value;
};

export const solveRequestSchema = z
  .strictObject({
    problem: z
      .string()
      .max(MAX_PROBLEM_CHARS)
      .overwrite(problemText)
      .refine((text) => text.trim() !== "", "expected a problem that is not blank"),
    explain: z.boolean().default(false),
    model: z.enum(ROLES).default("student"),
    priority: z.enum(PRIORITY_CLASSES).default("normal"),
    sampling: samplingSchema.default({ temperature: 0 }),
    /** So many solutions are drawn, and the answer is what most of them say. */
    samples: z.number().int().min(1).max(MAX_SAMPLES).default(1),
    /** The right answer: the result then says whether its own is equal. */
    expected: z
      .string()
      .max(MAX_EXPECTED_CHARS)
      .refine((text) => text.trim() !== "", "expected an answer that is not blank")
      .optional(),
    /** `auto`: an answer at temperature 0 may come from the cache and is kept there; `on`: any; `off`: none; `refresh`: computed anew, then kept. */
    cache: z.enum(["auto", "on", "off", "refresh"]).default("auto"),
    /** From acceptance to the end, queueing included. */
    timeoutMs: z.number().int().min(1).max(86_400_000).optional(),
    /** When the job has ended its view is posted there, signed. */
    webhook: z.strictObject({ url: z.string().max(2000) }).optional(),
    metadata: z
      .preprocess(
        withoutProto,
        z.record(z.string().max(64), z.string().max(512)).refine((value) => Object.keys(value).length <= 16, "expected at most 16 entries"),
      )
      .optional(),
  })
  .refine((value) => !(value.explain && value.model === "talker"), {
    path: ["explain"],
    message: "expected model student: explain lets the Talker explain what the Student solved",
  })
  .refine((value) => value.samples === 1 || value.model === "student", {
    path: ["samples"],
    message: "expected model student: a Talker's text has no answer to vote on",
  })
  .refine((value) => value.samples === 1 || value.sampling.temperature > 0, {
    path: ["samples"],
    message: "expected 1, or sampling.temperature above 0: at 0 all samples are the same",
  })
  .refine((value) => value.expected === undefined || value.model === "student", {
    path: ["expected"],
    message: "expected model student: a Talker's text has no answer to judge",
  });
export type SolveRequest = z.infer<typeof solveRequestSchema>;

/** A conversation that goes to the model as it is, instead of a problem in the model's own prompt. */
export const chatMessageSchema = z.object({ role: z.enum(["system", "user", "assistant"]), content: z.string() });
export type ChatMessage = z.infer<typeof chatMessageSchema>;

/** A request as it is handed in: with `messages`, `problem` is empty. */
export type JobRequest = SolveRequest & { messages?: ChatMessage[] };

/** Raised when the form changes; a worker reads every version up to its own. */
export const JOB_DATA_VERSION = 2;

/** What stands in Redis for one stage. Unknown fields are dropped: a newer API may have written them. */
export const jobDataSchema = z.object({
  version: z.number().int().min(1).max(JOB_DATA_VERSION),
  /** `solve`: the Student. `talk`: a text straight to the Talker. `explain`: the Talker, on the solution of its Student child. */
  kind: z.enum(["solve", "talk", "explain"]),
  problem: z.string(),
  messages: z.array(chatMessageSchema).optional(),
  sampling: samplingSchema,
  /** Above 1 the Student's stage is a vote: the parent job of so many samples. */
  samples: z.number().optional(),
  /** This job is one sample of a vote: its place in the order in which they are drawn, from 0. */
  sample: z.number().optional(),
  /** What the requester takes to be right. */
  expected: z.string().optional(),
  /** Digest of the Idempotency-Key, whose record lives as long as the job. */
  idempotencyDigest: z.string().optional(),
  priority: z.enum(PRIORITY_CLASSES),
  cache: z.enum(["auto", "on", "off", "refresh"]).optional(),
  /** Identical requests meanwhile follow this job. */
  flightKey: z.string().optional(),
  /** The Student's stage came from the cache: this job needs the Talker only. */
  solved: z.lazy(() => stageResultSchema).optional(),
  acceptedAt: z.number(),
  /** The API key that handed it in. */
  owner: z.string().optional(),
  deadlineAt: z.number().optional(),
  /** How long the job was expected to wait when it was accepted, milliseconds; absent when nothing had been measured. */
  estimatedWaitMs: z.number().optional(),
  /** How often the model server died by itself while it ran this job. From `ALONE_AFTER_CRASHES` on the job runs alone. */
  crashes: z.number().optional(),
  metadata: z.record(z.string(), z.string()).optional(),
  /** W3C trace context of the request that handed it in, while traces are on. */
  traceparent: z.string().optional(),
  tracestate: z.string().optional(),
});
export type JobData = z.infer<typeof jobDataSchema>;
export const ALONE_AFTER_CRASHES = 2;

export const usageSchema = z.object({ promptTokens: z.number(), completionTokens: z.number() });
export type Usage = z.infer<typeof usageSchema>;

/** What decides an answer beside the request: any change of it makes another cache key, so an old answer is never served. */
export const publishedModelSchema = z.object({
  modelId: z.string(),
  /** SHA-256 of the weight file, or what the engine has in its place. */
  digest: z.string(),
  /** Digest of every prompt's wording. */
  promptVersion: z.string(),
  /** The most tokens of an answer. */
  maxTokens: z.number(),
});
export type PublishedModel = z.infer<typeof publishedModelSchema>;

/** How the samples of a request voted. */
export const voteSchema = z.object({
  /** Share of the finished samples that gave the answer, 0 to 1; 0 when none gave any. */
  agreement: z.number(),
  /** Answers that are equal count as one; the most frequent first, and of equally frequent ones the one that was drawn first. */
  votes: z.array(z.object({ answer: z.string(), count: z.number() })),
  /** `cancelled`: not run, or not to the end, since the majority was settled. The rest, if any, failed. */
  samples: z.object({ asked: z.number(), finished: z.number(), cancelled: z.number() }),
});
export type Vote = z.infer<typeof voteSchema>;

/** What a stage leaves in BullMQ's `returnvalue`. */
export const stageResultSchema = z.object({
  role: z.enum(ROLES),
  /** The whole text the model wrote. */
  text: z.string(),
  /** Student only: what stands in the last `\boxed{}`; null when there is none or the answer was cut. */
  answer: z.string().nullable(),
  truncated: z.boolean(),
  usage: usageSchema,
  modelId: z.string(),
  firstTokenAt: z.number().nullable(),
  /** Of a vote, whose own time on a worker is none: when its first sample was picked, and the most attempts that one took. */
  vote: voteSchema.extend({ pickedAt: z.number().nullable(), attempts: z.number() }).optional(),
  /** Of a sample that may be cached: what drew it. */
  drawnBy: publishedModelSchema.optional(),
});
export type StageResult = z.infer<typeof stageResultSchema>;

/** What a stage reports while it runs (BullMQ's `progress`). */
export const stageProgressSchema = z.object({ firstTokenAt: z.number().nullable().default(null) });

export const JOB_STATUSES = ["waiting", "delayed", "active", "completed", "failed", "cancelled"] as const;
export type JobStatus = (typeof JOB_STATUSES)[number];
export const TERMINAL_STATUSES: readonly JobStatus[] = ["completed", "failed", "cancelled"];

/** Whether the answer is the one the requester expected; `undecided` is never counted as right. */
export const gradeSchema = z.object({ verdict: z.enum(["equal", "different", "undecided"]), reason: z.string() });

const jobErrorSchema = z.object({ code: z.string(), title: z.string(), detail: z.string() });
export type JobError = z.infer<typeof jobErrorSchema>;

const timestampsSchema = z.object({
  acceptedAt: z.number(),
  pickedAt: z.number().nullable(),
  firstTokenAt: z.number().nullable(),
  finishedAt: z.number().nullable(),
});

/** The public view of a job. Time stamps are epoch milliseconds. */
export const jobViewSchema = z.object({
  jobId: z.string(),
  status: z.enum(JOB_STATUSES),
  model: z.enum(ROLES),
  priority: z.enum(PRIORITY_CLASSES),
  stages: z.array(
    z.object({
      model: z.enum(ROLES),
      status: z.enum(JOB_STATUSES),
      /** How often the stage was begun; above 1 after a retry. */
      attempts: z.number(),
      pickedAt: z.number().nullable(),
      firstTokenAt: z.number().nullable(),
      finishedAt: z.number().nullable(),
      /** Whether the token limit cut its text; null without one. */
      truncated: z.boolean().nullable(),
      error: jobErrorSchema.nullable(),
    }),
  ),
  /** Jobs of the same queue that are picked before this one; null once picked. */
  position: z.number().nullable(),
  /** Milliseconds from now; null when unknown (no worker, nothing measured) or already picked. */
  estimatedStartMs: z.number().nullable(),
  /** Why the job is not running, where there is more to say than "its turn has not come". */
  reason: z.string().nullable(),
  timestamps: timestampsSchema,
  result: z
    .object({
      answer: z.string().nullable(),
      solution: z.string().nullable(),
      explanation: z.string().nullable(),
      /** Any stage was cut; `stages` tell which. A cut solution has no answer and no explanation. */
      truncated: z.boolean(),
      /** It came from the cache. */
      cached: z.boolean(),
      /** It was computed for an identical request that was in flight. */
      coalesced: z.boolean(),
      /** All samples together. */
      usage: usageSchema,
      /** These three are null without `samples`. */
      agreement: voteSchema.shape.agreement.nullable(),
      votes: voteSchema.shape.votes.nullable(),
      samples: voteSchema.shape.samples.nullable(),
      /** Null without `expected`. */
      grade: gradeSchema.nullable(),
    })
    .nullable(),
  error: jobErrorSchema.nullable(),
  metadata: z.record(z.string(), z.string()),
  links: z.object({ self: z.string() }),
});
export type JobView = z.infer<typeof jobViewSchema>;

/** The answer to an accepted `POST /solve`. */
export const acceptedSchema = z.object({
  jobId: z.string(),
  status: z.enum(JOB_STATUSES),
  /** Milliseconds until a model begins with it, as expected now; null while nothing has been measured. */
  estimatedStartMs: z.number().nullable(),
  links: z.object({ self: z.string() }),
});
export type Accepted = z.infer<typeof acceptedSchema>;

/** What became of a job's webhook. */
export const webhookViewSchema = z.object({
  jobId: z.string(),
  url: z.string(),
  /** `waiting`: the job has not ended; `delivering`: it is tried, or will be again; `failed`: it was tried as often as it is. */
  status: z.enum(["waiting", "delivering", "delivered", "failed"]),
  /** The latest 20, oldest first. `status` is that of the answer; null when there was none. */
  attempts: z.array(z.object({ at: z.number(), durationMs: z.number(), status: z.number().nullable(), error: z.string().nullable() })),
  nextAttemptAt: z.number().nullable(),
});
export type WebhookView = z.infer<typeof webhookViewSchema>;

export const SERVER_STATES = ["stopped", "starting", "warming", "ready", "draining", "stopping", "failed"] as const;
export type ServerState = (typeof SERVER_STATES)[number];

/** How a model's server is run: as configured, or smaller after it ran out of memory. */
const capacitySchema = z.object({
  maxNumSeqs: z.number(),
  maxModelLen: z.number(),
  kvCacheBits: z.union([z.literal(16), z.literal(8)]),
});
export type Capacity = z.infer<typeof capacitySchema>;

const preparationSchema = z.object({
  /** `ready`: all that a start reads is on the worker's machine and whole. `failed`: it is tried again at `retryAt`. */
  state: z.enum(["preparing", "ready", "failed"]),
  /** What is being done, how far, or why it failed; null when ready. */
  reason: z.string().nullable(),
  doneBytes: z.number().nullable(),
  totalBytes: z.number().nullable(),
  retryAt: z.number().nullable(),
});

const byLoadState = z.object({ first: z.number().nullable(), again: z.number().nullable(), woken: z.number().nullable() });

/** Standard errors are null while there is nothing to tell them from. */
const measuredSchema = z.object({
  arrivalsPerMsError: z.number(),
  serviceMsError: z.number().nullable(),
  /** What a job would take with the model to itself, averaged like `serviceMs`; null before the first. */
  aloneMs: z.number().nullable(),
  aloneMsError: z.number().nullable(),
  /** a: r jobs at once are together r^a times as fast as one, fitted with a half-life of 100 jobs; 1 until known. */
  batchExponent: z.number(),
  batchExponentError: z.number().nullable(),
  /** From the last job's end to ready, a half-life of 3 swaps: the model started the first time, again, or woken from sleep; null before the first. */
  loadMs: byLoadState,
  loadMsError: byLoadState,
});

const modelStatusSchema = z.object({
  model: z.string(),
  /** Until it is ready the model is not loaded and its jobs wait. */
  preparation: preparationSchema,
  /** What it runs with. */
  capacity: capacitySchema,
  /** Out-of-memory answers so far, oldest first; empty when it runs as configured. */
  ladder: z.array(z.object({ at: z.number(), step: z.string(), reason: z.string() })),
  circuit: z.object({
    /** `open`: it is not loaded before `until`; `half-open`: the next load or job decides. */
    state: z.enum(["closed", "half-open", "open"]),
    failures: z.number(),
    until: z.number().nullable(),
  }),
  /** λ̂: acceptances a millisecond, an exponential average with a half-life of five minutes, less where traffic changes. */
  arrivalsPerMs: z.number(),
  /** Mean time of a job on the model, an exponential average over about the last 20 jobs; null before the first. */
  serviceMs: z.number().nullable(),
  /** From the last pick of the other model to ready, likewise averaged; null before the first load. */
  swapMs: z.number().nullable(),
  /** How sure these are, and what else is measured; absent from a worker of an older version. */
  measured: measuredSchema.optional(),
  contextTokens: z.number().nullable(),
  digest: z.string().nullable(),
  /** Why the model can't be loaded at the moment, a preparation that failed included; its jobs wait. */
  error: z.string().nullable(),
});

const decisionSchema = z.object({ at: z.number(), action: z.string(), reason: z.string() });

/** A worker's heartbeat, renewed every second. Older than `WORKER_STALE_MS` means dead. */
export const workerStatusSchema = z.object({
  workerId: z.string(),
  gpuId: z.string(),
  host: z.string(),
  pid: z.number(),
  beatAt: z.number(),
  startedAt: z.number(),
  phase: z.enum(["standby", "idle", "serving", "draining", "loading", "stopping"]),
  /** Why it stands by or takes nothing, where there is more to say than the phase. */
  waitsFor: z.string().nullable(),
  /** The number of its lease; 0 before the first. */
  fence: z.number(),
  /** An operator's drain: it takes no jobs until it is resumed. */
  drained: z.boolean(),
  residentModel: z.enum(ROLES).nullable(),
  residentSince: z.number().nullable(),
  /** The model being loaded. */
  loadingModel: z.enum(ROLES).nullable(),
  /** A Talker that needs no VRAM and stays up beside. */
  coresidentModel: z.enum(ROLES).nullable(),
  server: z.object({ state: z.enum(SERVER_STATES), pid: z.number().nullable(), since: z.number(), lastError: z.string().nullable() }),
  running: z.number(),
  swaps: z.number(),
  policy: z.string(),
  lastDecision: decisionSchema.nullable(),
  /** The latest, newest first. */
  decisions: z.array(decisionSchema),
  lastSwap: z
    .object({ at: z.number(), from: z.enum(ROLES).nullable(), to: z.enum(ROLES), totalMs: z.number(), overheadMs: z.number() })
    .nullable(),
  /** D of each class as it is held: raised where swaps alone take too long. */
  deadlinesMs: z.record(z.enum(PRIORITY_CLASSES), z.number()),
  /** Expected against actual waits of the jobs picked here; an exponential average over about the last 50. */
  waitEstimate: z.object({ jobs: z.number(), meanAbsErrorMs: z.number().nullable(), meanErrorMs: z.number().nullable() }),
  vram: z.object({ usedBytes: z.number(), totalBytes: z.number() }).nullable(),
  models: z.object({ student: modelStatusSchema, talker: modelStatusSchema }),
});
export type WorkerStatus = z.infer<typeof workerStatusSchema>;
export const WORKER_STALE_MS = 5000;

export const readinessSchema = z.object({
  ready: z.boolean(),
  redis: z.boolean(),
  workers: z.number(),
  residentModel: z.enum(ROLES).nullable(),
  reason: z.string().nullable(),
});
