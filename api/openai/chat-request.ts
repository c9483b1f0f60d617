import { z } from "zod";
import { type ChatMessage, type JobRequest, samplingSchema, solveRequestSchema } from "../../queues/contracts.ts";
import { PRIORITY_CLASSES, type PriorityClass, ROLES } from "../../queues/names.ts";
import { RequestRefused } from "./errors.ts";

/** The body of `POST /v1/chat/completions`. Fields that don't bear on the answer are ignored, those that would and can't be served are refused. */
const contentSchema = z.union([
  z.string(),
  z
    .array(z.object({ type: z.literal("text", "expected text: images, audio and files are not understood"), text: z.string() }))
    .transform((parts) => parts.map(({ text }) => text).join("")),
]);

const messageSchema = z
  .object({
    role: z.enum(["system", "developer", "user", "assistant"], "expected system, developer, user or assistant: tools are not supported"),
    content: contentSchema,
  })
  .transform(({ role, content }): ChatMessage => ({ role: role === "developer" ? "system" : role, content }));

/** A field that is understood only at the value that changes nothing. */
const only = (expected: string, isNeutral: (value: unknown) => boolean) =>
  z
    .unknown()
    .refine((value) => value === undefined || value === null || isNeutral(value), `expected ${expected}`)
    .optional();
const isEmpty = (value: unknown) => typeof value === "object" && value !== null && Object.keys(value).length === 0;
const isTextOnly = (value: unknown) => Array.isArray(value) && value.every((each) => each === "text");
const { topK, minP, seed, maxTokens, stop, topP } = samplingSchema.shape;

const SERVICE_TIERS: Record<string, PriorityClass> = { auto: "normal", default: "normal", priority: "interactive", flex: "batch" };

export const chatRequestSchema = z.object({
  model: z.string("expected a model's name"),
  messages: z.array(messageSchema).min(1, "expected at least one message"),
  max_tokens: maxTokens.nullish(),
  max_completion_tokens: maxTokens.nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: topP.nullish(),
  top_k: topK.nullish(),
  min_p: minP.nullish(),
  seed: seed.nullish(),
  stop: z.preprocess((value) => (typeof value === "string" ? [value] : value), stop.nullish()),
  stream: z.boolean().nullish(),
  stream_options: z.object({ include_usage: z.boolean().nullish() }).nullish(),
  service_tier: z.enum(["auto", "default", "flex", "priority"]).nullish(),
  metadata: solveRequestSchema.shape.metadata.nullable(),
  n: only("1: send the request several times for several answers", (value) => value === 1),
  logprobs: only("false: log probabilities are not kept", (value) => value === false),
  top_logprobs: only("none: log probabilities are not kept", (value) => value === 0),
  presence_penalty: only("0", (value) => value === 0),
  frequency_penalty: only("0", (value) => value === 0),
  logit_bias: only("none", isEmpty),
  response_format: only('{"type": "text"}', (value) => (value as { type?: unknown }).type === "text"),
  modalities: only('["text"]', isTextOnly),
  audio: only("none", () => false),
  tools: only("none: the models call no tools", isEmpty),
  tool_choice: only("none: the models call no tools", (value) => value === "none" || value === "auto"),
  functions: only("none: the models call no functions", isEmpty),
  function_call: only("none: the models call no functions", (value) => value === "none" || value === "auto"),
  web_search_options: only("none", () => false),
  reasoning_effort: only("none", (value) => value === "none"),
});

export interface ChatRequest {
  job: JobRequest;
  stream: boolean;
  includeUsage: boolean;
}

/** What a request of the OpenAI form asks for besides: in headers, where those clients can put it. */
const headersSchema = z.object({
  "x-mathllm-priority": z.enum(PRIORITY_CLASSES).optional(),
  "x-mathllm-cache": solveRequestSchema.shape.cache.unwrap().optional(),
  "x-mathllm-timeout-ms": z.coerce.number().int().min(1).max(86_400_000).optional(),
});

/** Throws `RequestRefused` that names the first wrong field. */
export function parseChatRequest(body: unknown, headers: Record<string, unknown>): ChatRequest {
  const request = parse(chatRequestSchema, body);
  const asked = parse(headersSchema, headers);
  const model = modelNamed(request.model);
  return {
    job: {
      problem: "",
      messages: request.messages,
      explain: false,
      model,
      priority: asked["x-mathllm-priority"] ?? SERVICE_TIERS[request.service_tier ?? "auto"]!,
      samples: 1,
      sampling: {
        temperature: request.temperature ?? 0,
        topP: request.top_p ?? undefined,
        topK: request.top_k ?? undefined,
        minP: request.min_p ?? undefined,
        seed: request.seed ?? undefined,
        maxTokens: request.max_completion_tokens ?? request.max_tokens ?? undefined,
        stop: request.stop ?? undefined,
      },
      cache: asked["x-mathllm-cache"] ?? "auto",
      ...(asked["x-mathllm-timeout-ms"] === undefined ? {} : { timeoutMs: asked["x-mathllm-timeout-ms"] }),
      ...(request.metadata == null ? {} : { metadata: request.metadata }),
    },
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
  };
}

/** Throws `model_not_found`. */
export function modelNamed(name: string): (typeof ROLES)[number] {
  const role = ROLES.find((each) => each === name);
  if (role !== undefined) return role;
  throw new RequestRefused(
    404,
    `The model ${JSON.stringify(name.slice(0, 100))} does not exist here; there are ${ROLES.join(" and ")}.`,
    "model",
    "model_not_found",
  );
}

export function parse<T extends z.ZodType>(schema: T, value: unknown): z.infer<T> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const { path, message } = deepest(parsed.error.issues[0]!);
  const param = path.join(".");
  throw new RequestRefused(400, `${param || "the body"}: ${message}.`, param || null);
}

/** Of a union, what is wrong with the form that came furthest. */
function deepest(issue: z.core.$ZodIssue): z.core.$ZodIssue {
  if (issue.code !== "invalid_union") return issue;
  const [first] = issue.errors.map(([each]) => each!).toSorted((a, b) => b.path.length - a.path.length);
  return first === undefined ? issue : deepest({ ...first, path: [...issue.path, ...first.path] });
}
