import { randomUUID } from "node:crypto";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { Counter, Gauge, Registry } from "prom-client";
import { MathllmError } from "../../queues/errors.ts";
import type { TextPiece } from "./answer-text.ts";
import { type CompletionRequest, completionRequestSchema, RequestError } from "./completion-request.ts";
import type { EmbeddedProfile, FromChild, ToChild } from "./embedded-messages.ts";
import { createRequestGuard } from "./request-guard.ts";
import { type Completion, SequencePool } from "./sequence-pool.ts";

/**
 * The embedded engine's child process: an OpenAI-compatible server around one model.
 *
 *   spawned ──listen──► listening (health 503, nothing allocated) ──load──► ready (health 200)
 *
 * It ends with its parent: when the channel breaks there is nobody left to serve.
 */
const BODY_LIMIT_BYTES = 4 * 1024 * 1024;

const registry = new Registry();
const running = new Gauge({ name: "mathllm_engine_requests_running", help: "Requests on a sequence", registers: [registry] });
const waiting = new Gauge({ name: "mathllm_engine_requests_waiting", help: "Requests waiting for a sequence", registers: [registry] });
const counter = (name: string, help: string) => new Counter({ name: `mathllm_engine_${name}`, help, registers: [registry] });
const requests = new Counter({
  name: "mathllm_engine_requests_total",
  help: "Requests by how they ended: completed, refused (4xx), left (the client went away), failed",
  labelNames: ["outcome"],
  registers: [registry],
});
const promptTokens = counter("prompt_tokens_total", "Tokens read");
const completionTokens = counter("completion_tokens_total", "Tokens generated");
const draftTokens = counter("draft_tokens_total", "Tokens drafted");
const draftAcceptedTokens = counter("draft_accepted_tokens_total", "Drafted tokens that the model accepted");
const rounds = counter("rounds_total", "Rounds in which every running request took a step");
const decodes = counter("decodes_total", "Decodes of the model: one a round unless something falls out of step");

let profile: EmbeddedProfile;
let pool: SequencePool | undefined;

function tell(message: FromChild): void {
  process.send?.(message);
}

function fail(error: unknown): void {
  const known = error instanceof MathllmError ? error : new MathllmError("engine-failed", String((error as Error).message ?? error));
  console.error(known.message);
  process.send?.({ type: "failed", code: known.code, detail: known.message } satisfies FromChild, () => process.exit(1));
}

async function route(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
  const { pathname } = new URL(request.url ?? "/", "http://localhost");
  const address = `${request.method} ${pathname}`;
  if (address === "GET /health") return json(response, pool ? 200 : 503, { status: pool ? "ok" : "loading" });
  if (address === "GET /metrics") {
    running.set(pool?.running ?? 0);
    waiting.set(pool?.waiting ?? 0);
    rounds.reset();
    rounds.inc(pool?.rounds ?? 0);
    decodes.reset();
    decodes.inc(pool?.decodes ?? 0);
    response.setHeader("content-type", registry.contentType).end(await registry.metrics());
    return;
  }
  if (pool === undefined) throw new RequestError(503, "loading", "The model is still loading.");
  if (address === "GET /v1/models") {
    const meta = { context_tokens: pool.contextTokens, digest: profile.digest };
    return json(response, 200, { object: "list", data: [{ id: profile.modelId, object: "model", owned_by: "mathllm", meta }] });
  }
  if (address === "POST /v1/chat/completions") {
    try {
      await complete(pool, await readRequest(request), response);
      requests.inc({ outcome: "completed" });
    } catch (error) {
      requests.inc({ outcome: response.destroyed ? "left" : error instanceof RequestError && error.status < 500 ? "refused" : "failed" });
      throw error;
    }
    return;
  }
  throw new RequestError(404, null, `There is nothing at ${address}.`);
}

async function readRequest(request: http.IncomingMessage): Promise<CompletionRequest> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += (chunk as Buffer).length;
    if (size > BODY_LIMIT_BYTES) throw new RequestError(413, null, `Expected a body of at most ${BODY_LIMIT_BYTES} bytes.`);
    chunks.push(chunk as Buffer);
  }
  let body: unknown;
  try {
    body = JSON.parse(Buffer.concat(chunks).toString("utf8"));
  } catch (error) {
    throw new RequestError(400, null, `Expected JSON: ${(error as Error).message}`);
  }
  const parsed = completionRequestSchema.safeParse(body);
  if (parsed.success) return parsed.data;
  throw new RequestError(400, null, parsed.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`).join("; "));
}

async function complete(pool: SequencePool, request: CompletionRequest, response: http.ServerResponse): Promise<void> {
  const gone = new AbortController();
  response.on("close", () => gone.abort(new Error("the client left")));
  const id = `chatcmpl-${randomUUID()}`;
  const created = Math.floor(Date.now() / 1000);
  const envelope = (object: string) => ({ id, object, created, model: profile.modelId });
  const chunk = (choices: unknown[], usage?: unknown) =>
    response.write(
      `data: ${JSON.stringify({ ...envelope("chat.completion.chunk"), choices, ...(usage === undefined ? {} : { usage }) })}\n\n`,
    );
  const stream = request.stream === true;
  const whole = { content: "", reasoning: "" };
  const onPiece = ({ kind, text }: TextPiece) => {
    if (!stream) {
      whole[kind] += text;
      return;
    }
    if (!response.headersSent) response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    chunk([{ index: 0, delta: kind === "content" ? { content: text } : { reasoning_content: text }, finish_reason: null }]);
  };
  const done = await pool.complete(request, gone.signal, onPiece);
  count(done);
  const usage = {
    prompt_tokens: done.promptTokens,
    completion_tokens: done.completionTokens,
    total_tokens: done.promptTokens + done.completionTokens,
  };
  if (!stream) {
    const reasoning = whole.reasoning === "" ? {} : { reasoning_content: whole.reasoning };
    const choices = [{ index: 0, message: { role: "assistant", content: whole.content, ...reasoning }, finish_reason: done.finishReason }];
    return json(response, 200, { ...envelope("chat.completion"), choices, usage });
  }
  if (!response.headersSent) response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
  chunk([{ index: 0, delta: {}, finish_reason: done.finishReason }]);
  if (request.stream_options?.include_usage === true) chunk([], usage);
  response.end("data: [DONE]\n\n");
}

function count(done: Completion): void {
  promptTokens.inc(done.promptTokens);
  completionTokens.inc(done.completionTokens);
  draftTokens.inc(done.draftTokens);
  draftAcceptedTokens.inc(done.draftAcceptedTokens);
}

function json(response: http.ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}

function refuse(response: http.ServerResponse, error: unknown): void {
  if (response.destroyed) return;
  const known = error instanceof RequestError ? error : new RequestError(500, null, String((error as Error).message ?? error));
  if (known.status === 500) console.error(known.message);
  if (!response.headersSent) json(response, known.status, known.body);
  else response.end(`data: ${JSON.stringify(known.body)}\n\n`);
}

function listen(given: EmbeddedProfile): void {
  profile = given;
  const guard = createRequestGuard(given.apiKey);
  const server = http.createServer(async (request, response) => {
    try {
      guard(request);
      await route(request, response);
    } catch (error) {
      refuse(response, error);
    }
  });
  server.once("error", (error: NodeJS.ErrnoException) => {
    const taken = error.code === "EADDRINUSE";
    fail(
      taken
        ? new MathllmError(
            "port-in-use",
            `Port ${given.port} is taken by another program. Stop it, or set STUDENT_PORT or TALKER_PORT to a free one (0 finds one).`,
          )
        : error,
    );
  });
  server.listen(given.port, "127.0.0.1", () => tell({ type: "listening", port: (server.address() as AddressInfo).port }));
}

process.on("message", (message: ToChild) => {
  if (message.type === "listen") return listen(message.profile);
  SequencePool.load(profile).then((loaded) => {
    pool = loaded;
    tell({ type: "ready", contextTokens: loaded.contextTokens });
  }, fail);
});
process.on("disconnect", () => process.exit(0));
process.on("SIGTERM", () => process.exit(0));
