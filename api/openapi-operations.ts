import type { Content } from "../queues/api-document.ts";
import { BATCH_STATUSES } from "../queues/batch-contracts.ts";
import type { ErrorCode } from "../queues/errors.ts";
import { KEPT_MINUTES } from "../queues/gpu-samples.ts";
import { PRIORITY_CLASSES, ROLES } from "../queues/names.ts";
import { BOARD_PATH } from "./access.ts";
import * as examples from "./openapi-examples.ts";
import type { AnswerName, RequestName } from "./openapi-schemas.ts";

/** What stands in the OpenAPI document for each address and method of `ACCESS`; what a key needs comes from there. */
export interface Parameter {
  about: string;
  schema: Record<string, unknown>;
  example?: unknown;
}

export interface Answer {
  about: string;
  /** Default: `application/json`. */
  type?: string;
  /** A component, or what is not described further; absent without a body. */
  schema?: AnswerName | "text" | "object";
  example?: unknown;
  headers?: Record<string, string>;
}

export interface Operation {
  tag: (typeof TAGS)[number]["name"];
  summary: string;
  about?: string;
  path?: Record<string, Parameter>;
  query?: Record<string, Parameter>;
  headers?: Record<string, Parameter>;
  body?: { schema: RequestName; example: unknown; optional?: boolean } | { types: Record<string, Content> };
  answers: Record<number, Answer>;
  /** Beside those that every address may answer with. */
  problems?: ErrorCode[];
}

export const TAGS = [
  { name: "Problems", description: "Hand a problem in, follow it, cancel it." },
  { name: "Batches", description: "Many problems at once, as JSON or JSONL of any size." },
  {
    name: "OpenAI",
    description: "The forms of the OpenAI API, for its clients: chat, models, files and batches. Errors come in its envelope.",
  },
  { name: "GPU", description: "What is resident, what was decided and why, and an operator's commands." },
  { name: "Queues and cache", description: "Depths, rate limits, cached answers." },
  { name: "System", description: "Health, metrics, pages and this document." },
] as const;

const text = { type: "string" };
const whole = (minimum: number, maximum: number, fallback: number) => ({ type: "integer", minimum, maximum, default: fallback });
const jobId = { about: "As POST /solve told it.", schema: text, example: examples.JOB_ID };
const batchId = { about: "As POST /batches told it.", schema: text, example: examples.BATCH_ID };
const idempotencyKey = {
  about: "The same body under the same key makes one job or batch; another body is refused.",
  schema: { type: "string", pattern: "^[\\x21-\\x7e]{1,255}$" },
  example: "order-4711",
};
const lastEventId = { about: "The id of the last event that was heard: the stream goes on after it.", schema: text };
const from = { about: "The first line, from 0.", schema: whole(0, 1e7, 0) };
const page = {
  limit: { about: "The most that are listed.", schema: whole(1, 100, 20) },
  after: { about: "List what comes after this id.", schema: text },
};
const REFUSED: ErrorCode[] = ["queue-full", "deadline-unmeetable", "too-many-jobs"];
const eventStream = (about: string): Answer => ({ about, type: "text/event-stream", schema: "text" });

const command = (summary: string): { POST: Operation } => ({
  POST: {
    tag: "GPU",
    summary,
    body: { schema: "GpuCommand", example: { gpuId: "cpu-5d1e" }, optional: true },
    answers: { 202: { about: "Told; GET /gpu and its events show when it is done.", schema: "GpuCommandAccepted" } },
    problems: ["unknown-gpu"],
  },
});

export const OPERATIONS: Record<string, Partial<Record<string, Operation>>> = {
  "/solve": {
    POST: {
      tag: "Problems",
      summary: "Hand a problem in",
      about: "202 means that the job is in Redis: it will end exactly once. A known answer comes at once, with 200 and the finished view.",
      headers: { "Idempotency-Key": idempotencyKey },
      body: { schema: "SolveRequest", example: examples.SOLVE },
      answers: {
        200: {
          about: "The answer was in the cache.",
          schema: "JobView",
          example: examples.CACHED_VIEW,
          headers: { Location: "Where the view is." },
        },
        202: {
          about: "Accepted.",
          schema: "Accepted",
          example: examples.ACCEPTED,
          headers: { Location: "Where the job's view is.", "Idempotent-Replayed": "true: an earlier request with this key made the job." },
        },
      },
      problems: [...REFUSED, "idempotency-conflict", "problem-too-long"],
    },
  },
  "/jobs/:id": {
    GET: {
      tag: "Problems",
      summary: "Look at a job, or wait for its end",
      path: { id: jobId },
      query: {
        wait: {
          about: "Seconds: answer when the job has ended, at the latest after so long.",
          schema: { type: "number", minimum: 0, maximum: 60, default: 0 },
        },
      },
      answers: { 200: { about: "As it stands.", schema: "JobView", example: examples.JOB_VIEW } },
      problems: ["unknown-job"],
    },
    DELETE: {
      tag: "Problems",
      summary: "Cancel a job",
      path: { id: jobId },
      answers: { 200: { about: "It had ended before.", schema: "JobView" }, 202: { about: "It is being cancelled.", schema: "JobView" } },
      problems: ["unknown-job"],
    },
  },
  "/jobs/:id/events": {
    GET: {
      tag: "Problems",
      summary: "Follow a job as it happens",
      about:
        "Server-sent events: state, position, model, token, result. A late listener gets the whole story; after result the stream ends.",
      path: { id: jobId },
      headers: { "Last-Event-ID": lastEventId },
      answers: { 200: { ...eventStream("The job's story."), example: examples.EVENTS }, 204: { about: "Last-Event-ID was the end." } },
      problems: ["unknown-job"],
    },
  },
  "/jobs/:id/webhook": {
    GET: {
      tag: "Problems",
      summary: "See what became of a job's webhook",
      path: { id: jobId },
      answers: { 200: { about: "With its latest attempts.", schema: "WebhookView" } },
      problems: ["unknown-job"],
    },
  },
  "/batches": {
    POST: {
      tag: "Batches",
      summary: "Hand many problems in",
      about: "A line that is wrong is reported with its number, and the others are taken.",
      headers: { "Idempotency-Key": idempotencyKey },
      query: {
        defaults: { about: "With JSONL: a JSON object that every line is given.", schema: text, example: '{"explain":true}' },
        metadata: { about: "With JSONL: a JSON object of texts.", schema: text },
      },
      body: {
        types: {
          "application/json": { schema: { $ref: "#/components/schemas/BatchRequest" }, example: examples.BATCH },
          "application/jsonl": { schema: text, example: examples.BATCH_LINES },
        },
      },
      answers: {
        202: { about: "All lines are in Redis, or reported.", schema: "BatchAccepted", headers: { Location: "Where the batch is." } },
      },
      problems: [...REFUSED, "idempotency-conflict"],
    },
    GET: {
      tag: "Batches",
      summary: "List batches",
      query: { limit: page.limit },
      answers: { 200: { about: "The newest first.", schema: "BatchList" } },
    },
  },
  "/batches/:id": {
    GET: {
      tag: "Batches",
      summary: "Look at a batch",
      about: `Counts, accuracy and expected end. Its status is one of ${BATCH_STATUSES.join(", ")}.`,
      path: { id: batchId },
      answers: { 200: { about: "As it stands.", schema: "BatchView" } },
      problems: ["unknown-batch"],
    },
    DELETE: {
      tag: "Batches",
      summary: "Cancel a batch; what is done stays",
      path: { id: batchId },
      answers: {
        200: { about: "It had ended before.", schema: "BatchView" },
        202: { about: "It is being cancelled.", schema: "BatchView" },
      },
      problems: ["unknown-batch"],
    },
  },
  "/batches/:id/results": {
    GET: {
      tag: "Batches",
      summary: "Read a batch's results as JSONL, in the order of its lines",
      path: { id: batchId },
      query: {
        from,
        ended: { about: "1: leave out lines that have not ended.", schema: whole(0, 1, 0) },
        wait: { about: "Seconds: write lines as they end, in order, for so long.", schema: { type: "integer", minimum: 0, maximum: 60 } },
      },
      answers: { 200: { about: "One BatchResult a line.", type: "application/jsonl", schema: "text" } },
      problems: ["unknown-batch"],
    },
  },
  "/batches/:id/errors": {
    GET: {
      tag: "Batches",
      summary: "Read the lines that were not accepted",
      path: { id: batchId },
      query: { from, limit: { about: "The most lines.", schema: { type: "integer", minimum: 1 } } },
      answers: { 200: { about: "One BatchLineError a line.", type: "application/jsonl", schema: "text" } },
      problems: ["unknown-batch"],
    },
  },
  "/v1/chat/completions": {
    POST: {
      tag: "OpenAI",
      summary: "Complete a conversation",
      about:
        "Through the same queues, cache and limits; a client that leaves cancels its job. service_tier names the class: priority is interactive, flex is batch.",
      headers: {
        "X-Mathllm-Priority": { about: "The class.", schema: { type: "string", enum: PRIORITY_CLASSES } },
        "X-Mathllm-Cache": { about: "As cache of POST /solve.", schema: { type: "string", enum: ["auto", "on", "off", "refresh"] } },
        "X-Mathllm-Timeout-Ms": { about: "From the request to the end.", schema: { type: "integer", minimum: 1, maximum: 86_400_000 } },
      },
      body: { schema: "ChatCompletionRequest", example: examples.CHAT },
      answers: {
        200: {
          about: "The answer; with stream, server-sent events of ChatCompletionChunk and [DONE].",
          schema: "ChatCompletion",
          headers: {
            "X-Mathllm-Job-Id": "The job behind it.",
            "X-Mathllm-Queue-Wait-Ms": "From acceptance to the pick.",
            "X-Mathllm-Cache": "hit, miss or coalesced.",
          },
        },
      },
      problems: [
        ...REFUSED,
        "problem-too-long",
        "cancelled",
        "engine-failed",
        "engine-refused",
        "out-of-memory",
        "memory-taken",
        "job-crashes-model",
        "deadline-exceeded",
        "job-timeout",
        "shutting-down",
      ],
    },
  },
  "/v1/models": {
    GET: { tag: "OpenAI", summary: "List the two models", answers: { 200: { about: "Whichever is resident.", schema: "ModelList" } } },
  },
  "/v1/models/:id": {
    GET: {
      tag: "OpenAI",
      summary: "Look at a model",
      path: { id: { about: "Its name.", schema: { type: "string", enum: ROLES }, example: "student" } },
      answers: { 200: { about: "The model.", schema: "Model" } },
      problems: ["not-found"],
    },
  },
  "/v1/files": {
    POST: {
      tag: "OpenAI",
      summary: "Upload a file for a batch",
      body: {
        types: {
          "multipart/form-data": {
            schema: {
              type: "object",
              required: ["file", "purpose"],
              properties: { file: { type: "string", format: "binary" }, purpose: { type: "string", const: "batch" } },
            },
          },
        },
      },
      answers: { 200: { about: "Kept for JOB_RETENTION_SECONDS.", schema: "File" } },
      problems: ["files-full"],
    },
    GET: {
      tag: "OpenAI",
      summary: "List files",
      query: {
        purpose: { about: "Only these.", schema: text },
        limit: { about: "The most that are listed.", schema: whole(1, 10_000, 10_000) },
        order: { about: "By age.", schema: { type: "string", enum: ["asc", "desc"], default: "desc" } },
        after: page.after,
      },
      answers: { 200: { about: "A page.", schema: "FileList" } },
    },
  },
  "/v1/files/:id": {
    GET: {
      tag: "OpenAI",
      summary: "Look at a file",
      path: { id: fileId() },
      answers: { 200: { about: "The file.", schema: "File" } },
      problems: ["not-found"],
    },
    DELETE: {
      tag: "OpenAI",
      summary: "Delete a file",
      path: { id: fileId() },
      answers: { 200: { about: "Deleted.", schema: "FileDeleted" } },
      problems: ["not-found"],
    },
  },
  "/v1/files/:id/content": {
    GET: {
      tag: "OpenAI",
      summary: "Download a file, or a batch's output or errors",
      path: { id: fileId() },
      answers: { 200: { about: "Its lines.", type: "application/jsonl", schema: "text" } },
      problems: ["not-found"],
    },
  },
  "/v1/batches": {
    POST: {
      tag: "OpenAI",
      summary: "Begin a batch of an uploaded file",
      body: { schema: "CreateBatch", example: examples.OPENAI_BATCH },
      answers: { 200: { about: "All lines are in Redis, or in the error file.", schema: "Batch" } },
      problems: [...REFUSED, "not-found"],
    },
    GET: { tag: "OpenAI", summary: "List batches of this form", query: page, answers: { 200: { about: "A page.", schema: "BatchPage" } } },
  },
  "/v1/batches/:id": {
    GET: {
      tag: "OpenAI",
      summary: "Look at a batch",
      path: { id: batchId },
      answers: { 200: { about: "As it stands.", schema: "Batch" } },
      problems: ["not-found"],
    },
  },
  "/v1/batches/:id/cancel": {
    POST: {
      tag: "OpenAI",
      summary: "Cancel a batch; what is done stays",
      path: { id: batchId },
      answers: { 200: { about: "As it stands.", schema: "Batch" } },
      problems: ["not-found"],
    },
  },
  "/gpu": {
    GET: {
      tag: "GPU",
      summary: "What is resident, what was decided and why, and what waits",
      answers: { 200: { about: "Of every GPU, and of both queues.", schema: "GpuView" } },
    },
  },
  "/gpu/history": {
    GET: {
      tag: "GPU",
      summary: "The last minutes, second by second",
      query: { minutes: { about: "How many.", schema: whole(1, KEPT_MINUTES, 10) } },
      answers: { 200: { about: "Samples and events, the oldest first.", schema: "GpuHistory" } },
    },
  },
  "/gpu/events": {
    GET: {
      tag: "GPU",
      summary: "The same as it happens",
      about: "Server-sent events: state (as GET /gpu), and what happened: decision, server, swap, oom, guardrail, control.",
      query: { samples: { about: "Also every second's sample.", schema: { type: "boolean", default: false } } },
      headers: { "Last-Event-ID": lastEventId },
      answers: { 200: eventStream("Without end.") },
    },
  },
  "/gpu/drain": command("Take no more jobs until resumed; running ones end"),
  "/gpu/resume": command("Take jobs again"),
  "/gpu/swap": {
    POST: {
      ...command("Load this model next, whatever the policy says").POST,
      body: { schema: "SwapCommand", example: { model: "talker" } },
    },
  },
  "/gpu/release": command("Unload the model; the next job loads one again"),
  "/gpu/reset": command("Forget the answers to out-of-memory and close the circuits"),
  "/queues": {
    GET: {
      tag: "Queues and cache",
      summary: "Depths, expected waits and rate limits",
      answers: { 200: { about: "Of both queues.", schema: "Queues" } },
    },
  },
  "/queues/:model/rate-limit": {
    PUT: {
      tag: "Queues and cache",
      summary: "Limit how many jobs of a queue are begun",
      path: { model: queueName() },
      body: { schema: "RateLimit", example: { max: 10, durationMs: 1000 } },
      answers: { 200: { about: "From the next pick on, and through restarts.", schema: "Queue" } },
      problems: ["not-found"],
    },
    DELETE: {
      tag: "Queues and cache",
      summary: "Lift the limit",
      path: { model: queueName() },
      answers: { 200: { about: "Lifted.", schema: "Queue" } },
      problems: ["not-found"],
    },
  },
  "/cache": {
    GET: {
      tag: "Queues and cache",
      summary: "What the cache holds and how it served",
      answers: { 200: { about: "Since the beginning.", schema: "CacheStats" } },
    },
    DELETE: { tag: "Queues and cache", summary: "Clear the cache", answers: { 200: { about: "Cleared.", schema: "CacheDropped" } } },
  },
  "/cache/:id": {
    DELETE: {
      tag: "Queues and cache",
      summary: "Drop one answer",
      path: { id: { about: "The jobId of a cached answer.", schema: text } },
      answers: { 200: { about: "Dropped.", schema: "CacheDropped" } },
      problems: ["unknown-job"],
    },
  },
  "/healthz": { GET: { tag: "System", summary: "Whether this process lives", answers: { 200: { about: "It does.", schema: "Health" } } } },
  "/readyz": {
    GET: {
      tag: "System",
      summary: "Whether jobs are being worked on",
      answers: {
        200: { about: "With Redis and a live worker.", schema: "Readiness" },
        503: { about: "Without; reason says which is missing.", schema: "Readiness" },
      },
    },
  },
  "/metrics": {
    GET: {
      tag: "System",
      summary: "Metrics for Prometheus",
      answers: { 200: { about: "Every API process tells the same.", type: "text/plain", schema: "text" } },
    },
  },
  "/": {
    GET: {
      tag: "System",
      summary: "The live page, or this API's addresses",
      answers: { 200: { about: "HTML for browsers, JSON for everybody else.", schema: "Links" } },
    },
  },
  "/live/:name": {
    GET: {
      tag: "System",
      summary: "Files of the live page",
      path: { name: fileName("main.js") },
      answers: { 200: { about: "The file.", type: "text/plain", schema: "text" } },
      problems: ["not-found"],
    },
  },
  "/openapi.json": { GET: { tag: "System", summary: "This document", answers: { 200: { about: "OpenAPI 3.1.", schema: "object" } } } },
  "/docs": {
    GET: { tag: "System", summary: "This document as a page", answers: { 200: { about: "A page.", type: "text/html", schema: "text" } } },
  },
  "/docs/:name": {
    GET: {
      tag: "System",
      summary: "More pages: errors (every problem type), metrics; and their style",
      path: { name: fileName("errors") },
      answers: { 200: { about: "The page or file.", type: "text/html", schema: "text" } },
      problems: ["not-found"],
    },
  },
  [BOARD_PATH]: {
    GET: {
      tag: "System",
      summary: "Bull Board, both queues; what an admin may change there goes through its own addresses below",
      answers: { 200: { about: "A page.", type: "text/html", schema: "text" } },
    },
  },
};

function fileId(): Parameter {
  return { about: "As the upload or the batch told it.", schema: text, example: "file-5d0c1e" };
}

function queueName(): Parameter {
  return { about: "The queue.", schema: { type: "string", enum: ROLES }, example: "student" };
}

function fileName(example: string): Parameter {
  return { about: "Its name.", schema: text, example };
}
