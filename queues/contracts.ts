import { z } from "zod";
import { PRIORITY_CLASSES, ROLES } from "./names.ts";

/** What both sides of Redis and every HTTP client agree on. All types are inferred from these schemas. */

/** The longest problem that is accepted at all, in characters; the model's own context may be shorter (`problem-too-long`). */
export const MAX_PROBLEM_CHARS = 32_000;

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

export const solveRequestSchema = z
  .strictObject({
    problem: z
      .string()
      .max(MAX_PROBLEM_CHARS)
      .refine((text) => text.trim() !== "", "expected a problem that is not blank"),
    explain: z.boolean().default(false),
    model: z.enum(ROLES).default("student"),
    priority: z.enum(PRIORITY_CLASSES).default("normal"),
    sampling: samplingSchema.default({ temperature: 0 }),
    /** From acceptance to the end, queueing included. */
    timeoutMs: z.number().int().min(1).max(86_400_000).optional(),
    metadata: z
      .record(z.string().max(64), z.string().max(512))
      .refine((value) => Object.keys(value).length <= 16, "expected at most 16 entries")
      .optional(),
  })
  .refine((value) => !(value.explain && value.model === "talker"), {
    path: ["explain"],
    message: "expected model student: explain lets the Talker explain what the Student solved",
  });
export type SolveRequest = z.infer<typeof solveRequestSchema>;

/** Raised when the form changes; a worker reads every version up to its own. */
export const JOB_DATA_VERSION = 1;

/** What stands in Redis for one stage. Unknown fields are dropped: a newer API may have written them. */
export const jobDataSchema = z.object({
  version: z.number().int().min(1).max(JOB_DATA_VERSION),
  /** `solve`: the Student. `talk`: a text straight to the Talker. `explain`: the Talker, on the solution of its Student child. */
  kind: z.enum(["solve", "talk", "explain"]),
  problem: z.string(),
  sampling: samplingSchema,
  priority: z.enum(PRIORITY_CLASSES),
  acceptedAt: z.number(),
  deadlineAt: z.number().optional(),
  metadata: z.record(z.string(), z.string()).optional(),
});
export type JobData = z.infer<typeof jobDataSchema>;

export const usageSchema = z.object({ promptTokens: z.number(), completionTokens: z.number() });
export type Usage = z.infer<typeof usageSchema>;

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
});
export type StageResult = z.infer<typeof stageResultSchema>;

/** What a stage reports while it runs (BullMQ's `progress`). */
export const stageProgressSchema = z.object({ firstTokenAt: z.number().nullable().default(null) });

export const JOB_STATUSES = ["waiting", "delayed", "active", "completed", "failed", "cancelled"] as const;
export type JobStatus = (typeof JOB_STATUSES)[number];
export const TERMINAL_STATUSES: readonly JobStatus[] = ["completed", "failed", "cancelled"];

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
      truncated: z.boolean(),
      cached: z.boolean(),
      usage: usageSchema,
    })
    .nullable(),
  error: jobErrorSchema.nullable(),
  metadata: z.record(z.string(), z.string()),
  links: z.object({ self: z.string() }),
});
export type JobView = z.infer<typeof jobViewSchema>;

/** The answer to an accepted `POST /solve`. */
export const acceptedSchema = z.object({ jobId: z.string(), status: z.enum(JOB_STATUSES), links: z.object({ self: z.string() }) });
export type Accepted = z.infer<typeof acceptedSchema>;

const modelStatusSchema = z.object({
  model: z.string(),
  maxNumSeqs: z.number(),
  /** Mean time of a job on the model, an exponential average over about the last 20 jobs; null before the first. */
  serviceMs: z.number().nullable(),
  /** From the last pick of the other model to ready, likewise averaged; null before the first load. */
  swapMs: z.number().nullable(),
  contextTokens: z.number().nullable(),
  digest: z.string().nullable(),
  /** Why the model can't be loaded at the moment; its jobs wait. */
  error: z.string().nullable(),
});

/** A worker's heartbeat, renewed every second. Older than `WORKER_STALE_MS` means dead. */
export const workerStatusSchema = z.object({
  workerId: z.string(),
  gpuId: z.string(),
  host: z.string(),
  pid: z.number(),
  beatAt: z.number(),
  startedAt: z.number(),
  phase: z.enum(["standby", "idle", "serving", "draining", "loading", "stopping"]),
  residentModel: z.enum(ROLES).nullable(),
  residentSince: z.number().nullable(),
  running: z.number(),
  swaps: z.number(),
  policy: z.string(),
  lastDecision: z.object({ action: z.string(), reason: z.string(), at: z.number() }).nullable(),
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
