import { z } from "zod";
import { cacheStatsSchema } from "../queues/answer-cache.ts";
import type { JsonSchema } from "../queues/api-document.ts";
import { batchAcceptedSchema, batchLineErrorSchema, batchResultSchema, batchViewSchema } from "../queues/batch-contracts.ts";
import {
  acceptedSchema,
  jobViewSchema,
  readinessSchema,
  samplingSchema,
  solveRequestSchema,
  webhookViewSchema,
} from "../queues/contracts.ts";
import { GPU_EVENT_KINDS } from "../queues/gpu-events.ts";
import { gpuSampleSchema } from "../queues/gpu-samples.ts";
import { gpuViewSchema } from "../queues/gpu-view.ts";
import { ROLES } from "../queues/names.ts";
import { rateLimitSchema } from "../queues/rate-limits.ts";
import { createSchema } from "./openai/batches.ts";
import { chatRequestSchema } from "./openai/chat-request.ts";
import { bodySchema } from "./routes/batches.ts";
import { commandSchema, swapSchema } from "./routes/gpu.ts";

/** What a client sends. */
export const REQUESTS = {
  SolveRequest: solveRequestSchema,
  Sampling: samplingSchema,
  BatchRequest: bodySchema,
  GpuCommand: commandSchema,
  SwapCommand: swapSchema,
  RateLimit: rateLimitSchema,
  ChatCompletionRequest: chatRequestSchema,
  CreateBatch: createSchema,
} as const;

const listOf = <T extends z.ZodType>(item: T) =>
  z.object({
    object: z.literal("list"),
    data: z.array(item),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  });
const known = z.number().nullable();
const usage = z.object({ prompt_tokens: z.number(), completion_tokens: z.number(), total_tokens: z.number() }).loose();
const envelope = { id: z.string(), created: z.number(), model: z.enum(ROLES) };
const modelSchema = z.object({ id: z.enum(ROLES), object: z.literal("model"), created: z.number(), owned_by: z.string() });
const fileSchema = z.object({
  id: z.string(),
  object: z.literal("file"),
  bytes: z.number(),
  created_at: z.number(),
  expires_at: known,
  filename: z.string(),
  purpose: z.enum(["batch", "batch_output"]),
  status: z.literal("processed"),
});
const openaiBatchSchema = z.object({
  id: z.string(),
  object: z.literal("batch"),
  endpoint: z.literal("/v1/chat/completions"),
  errors: z
    .object({ object: z.literal("list"), data: z.array(z.object({ code: z.string(), line: z.number(), message: z.string() })) })
    .nullable(),
  input_file_id: z.string(),
  completion_window: z.string(),
  status: z.enum(["validating", "in_progress", "completed", "cancelling", "cancelled"]),
  output_file_id: z.string().nullable(),
  error_file_id: z.string().nullable(),
  created_at: z.number(),
  expires_at: z.number(),
  completed_at: known,
  cancelled_at: known,
  request_counts: z.object({ total: z.number(), completed: z.number(), failed: z.number() }),
  metadata: z.record(z.string(), z.string()),
});

/** What it is answered. Answers may gain fields. */
export const ANSWERS = {
  Accepted: acceptedSchema,
  JobView: jobViewSchema,
  WebhookView: webhookViewSchema,
  BatchView: batchViewSchema,
  BatchAccepted: batchAcceptedSchema,
  BatchList: z.object({ batches: z.array(batchViewSchema) }),
  BatchResult: batchResultSchema,
  BatchLineError: batchLineErrorSchema,
  GpuView: gpuViewSchema,
  GpuHistory: z.object({
    now: z.number(),
    samples: z.array(gpuSampleSchema.extend({ id: z.string() })),
    events: z.array(z.looseObject({ id: z.string(), kind: z.enum(GPU_EVENT_KINDS), ts: z.number(), gpuId: z.string() })),
  }),
  GpuCommandAccepted: z.object({ gpuIds: z.array(z.string()), links: z.object({ gpu: z.string(), events: z.string() }) }),
  Queues: gpuViewSchema.shape.queues,
  Queue: gpuViewSchema.shape.queues.valueType,
  CacheStats: cacheStatsSchema,
  CacheDropped: z.object({ dropped: z.number() }),
  Health: z.object({ status: z.literal("ok") }),
  Readiness: readinessSchema,
  Links: z.object({ name: z.literal("mathllm"), links: z.record(z.string(), z.string()) }),
  Problem: z.looseObject({
    type: z.string(),
    title: z.string(),
    status: z.number(),
    code: z.string(),
    detail: z.string(),
  }),
  ErrorEnvelope: z.object({
    error: z.object({ message: z.string(), type: z.string(), param: z.string().nullable(), code: z.string().nullable() }),
  }),
  ModelList: z.object({ object: z.literal("list"), data: z.array(modelSchema) }),
  Model: modelSchema,
  ChatCompletion: z.object({
    ...envelope,
    object: z.literal("chat.completion"),
    choices: z.array(
      z.object({
        index: z.number(),
        message: z.object({ role: z.literal("assistant"), content: z.string() }),
        finish_reason: z.enum(["stop", "length"]),
      }),
    ),
    usage,
  }),
  ChatCompletionChunk: z.object({
    ...envelope,
    object: z.literal("chat.completion.chunk"),
    choices: z.array(
      z.object({
        index: z.number(),
        delta: z.object({ role: z.literal("assistant").optional(), content: z.string().optional() }),
        finish_reason: z.enum(["stop", "length"]).nullable(),
      }),
    ),
    usage: usage.nullish(),
  }),
  File: fileSchema,
  FileList: listOf(fileSchema),
  FileDeleted: z.object({ id: z.string(), object: z.literal("file"), deleted: z.literal(true) }),
  Batch: openaiBatchSchema,
  BatchPage: listOf(openaiBatchSchema),
} as const;

export type RequestName = keyof typeof REQUESTS;
export type AnswerName = keyof typeof ANSWERS;

/** What the types don't say, by schema and property. */
export const FIELD_NOTES: Partial<Record<RequestName | AnswerName, Record<string, string>>> = {
  SolveRequest: {
    problem: "The problem's text. The model's own context may allow less (problem-too-long).",
    explain: "Let the Talker explain the Student's solution.",
    model: "student solves; talker gets the text as it is.",
    priority: "The class: what waits before what, and how long it may.",
    sampling: "How the text is drawn. The default is the same text every time.",
    samples: "So many solutions are drawn, and the answer is what most of them say. Needs a temperature above 0.",
    expected: "The right answer: the result then says whether its own is equal.",
    cache:
      "auto: an answer at temperature 0 may come from the cache and is kept there; on: any; off: none; refresh: computed anew, then kept.",
    timeoutMs: "From acceptance to the end, queueing included.",
    webhook: "When the job has ended its view is posted there, signed.",
    metadata: "Up to 16 texts that come back in the view.",
  },
  JobView: {
    jobId: "Names the job, for as long as JOB_RETENTION_SECONDS after its end.",
    status: "Waiting until its first stage is picked, then active until it has ended.",
    model: "The model that was asked.",
    priority: "Its class.",
    stages: "One for each model, in order, each with a status and an error of its own, and whether the token limit cut its text.",
    position: "Jobs of the same queue that are picked before it; null once picked.",
    estimatedStartMs: "Milliseconds from now, as expected; null when unknown or picked.",
    reason: "Why it does not run, where there is more to say than that its turn has not come.",
    timestamps: "Epoch milliseconds.",
    result: "Null until it has completed.",
    error: "What it failed with: a code of the problem types.",
    metadata: "As it was sent.",
    links: "Where it is found.",
  },
  Accepted: {
    jobId: "Ask for it at /jobs/{id}.",
    status: "waiting, or how a job that was repeated by its Idempotency-Key stands.",
    estimatedStartMs: "Milliseconds until a model begins with it, as expected now; null while nothing has been measured.",
    links: "Where it is found.",
  },
};

/** `components.schemas`: every schema under its name, in JSON Schema 2020-12. */
export function componentSchemas(): Record<string, JsonSchema> {
  const schemas = { ...named(REQUESTS, "input"), ...named(ANSWERS, "output") };
  for (const [name, notes] of Object.entries(FIELD_NOTES)) {
    for (const [property, description] of Object.entries(notes)) schemas[name]!.properties![property]!.description = description;
  }
  for (const property of Object.values(schemas.ChatCompletionRequest!.properties!)) {
    if (Object.keys(property).length === 0) property.description = "Taken only at the value that changes nothing; else refused.";
  }
  return schemas;
}

function named(schemas: Record<string, z.ZodType>, io: "input" | "output"): Record<string, JsonSchema> {
  const registry = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(schemas)) registry.add(schema, { id });
  const made = z.toJSONSchema(registry, {
    io,
    unrepresentable: "any",
    uri: (id) => `#/components/schemas/${id}`,
    override: ({ jsonSchema }) => {
      if (io === "output" && jsonSchema.additionalProperties === false) delete jsonSchema.additionalProperties;
    },
  });
  return Object.fromEntries(Object.entries(made.schemas).map(([id, { $schema, $id, ...schema }]) => [id, schema as JsonSchema]));
}
