import { createParser } from "eventsource-parser";
import { type Dispatcher, Pool } from "undici";
import { z } from "zod";
import { MathllmError } from "../../queues/errors.ts";
import { traced, traceHeaders } from "../../queues/tracing.ts";
import { bearer } from "./authorization.ts";

export interface ChatRequest {
  messages: { role: string; content: string }[];
  /** undefined: what the context leaves. */
  maxTokens?: number;
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  seed?: number;
  stop?: string[];
}

export interface ChatReply {
  text: string;
  finishReason: "stop" | "length";
  promptTokens: number;
  completionTokens: number;
}

const chunkSchema = z.object({
  choices: z
    .array(z.object({ delta: z.object({ content: z.string().nullish() }).nullish(), finish_reason: z.string().nullish() }))
    .default([]),
  usage: z.object({ prompt_tokens: z.number(), completion_tokens: z.number() }).nullish(),
  error: z.object({ message: z.string() }).nullish(),
});

const errorSchema = z.object({ error: z.object({ message: z.string(), code: z.union([z.string(), z.number()]).nullish() }) });

const REFUSES_TOKEN_LIMIT = /max_(completion_)?tokens|in the completion/;
const CLOSED_CONNECTION = new Set(["UND_ERR_SOCKET", "ECONNRESET", "EPIPE"]);
const CONNECTION_TRIES = 3;
const MAX_CONNECTIONS = 256;

export interface ChatClientOptions {
  /** The name the server knows the model by, where it serves more than one. */
  model?: string;
  apiKey?: string;
}

/** Talks to one model server in the OpenAI chat form, always streamed. Works with any server of that form. */
export class ChatClient {
  readonly #pool: Pool;
  readonly #options: ChatClientOptions;

  constructor(baseUrl: string, options: ChatClientOptions = {}) {
    this.#options = options;
    // A queued request may get its first byte only after the ones before it: the job's own clock bounds the time, not the pool.
    this.#pool = new Pool(baseUrl, { connections: MAX_CONNECTIONS, headersTimeout: 0, bodyTimeout: 0, connectTimeout: 5000 });
  }

  /**
   * One answer. `onText` gets each piece as it comes. Throws the signal's reason when aborted, `problem-too-long` when the prompt
   * exceeds the context, `engine-refused` for another 4xx, and `engine-failed` (retryable) when the server is gone or breaks off.
   */
  async chat(request: ChatRequest, options: { signal: AbortSignal; onText?: (text: string) => void }): Promise<ChatReply> {
    try {
      return await traced("chat", { kind: "client" }, () => this.#chat(request, options)).catch((error) => {
        // vLLM also refuses a prompt that fits when the token limit does not. Without one the context is the limit.
        if (!(error instanceof MathllmError && REFUSES_TOKEN_LIMIT.test(error.message))) throw error;
        return this.#chat({ ...request, maxTokens: undefined }, options);
      });
    } catch (error) {
      options.signal.throwIfAborted();
      if (error instanceof MathllmError) throw error;
      throw new MathllmError("engine-failed", `The model server broke off: ${(error as Error).message}.`, { cause: error });
    }
  }

  async close(): Promise<void> {
    await this.#pool.destroy();
  }

  /** A server may close a kept-alive connection just as it is used again: nothing was answered, so it is asked once more. */
  async #post(body: string, signal: AbortSignal, triesLeft = CONNECTION_TRIES): Promise<Dispatcher.ResponseData> {
    const { apiKey } = this.#options;
    try {
      return await this.#pool.request({
        method: "POST",
        path: "/v1/chat/completions",
        headers: {
          "content-type": "application/json",
          ...traceHeaders(),
          ...bearer(apiKey),
        },
        body,
        signal,
      });
    } catch (error) {
      const broke = CLOSED_CONNECTION.has((error as NodeJS.ErrnoException).code ?? "");
      if (!broke || triesLeft <= 1) throw error;
      return this.#post(body, signal, triesLeft - 1);
    }
  }

  async #chat(request: ChatRequest, { signal, onText }: { signal: AbortSignal; onText?: (text: string) => void }): Promise<ChatReply> {
    const { messages, maxTokens, temperature, topP, topK, minP, seed, stop } = request;
    const body = {
      model: this.#options.model,
      messages,
      max_tokens: maxTokens,
      temperature,
      top_p: topP,
      top_k: topK,
      min_p: minP,
      seed,
      stop,
    };
    const response = await this.#post(JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }), signal);
    if (response.statusCode !== 200) throw refusal(response.statusCode, await response.body.text());

    let text = "";
    let finishReason: string | undefined;
    let usage = { prompt_tokens: 0, completion_tokens: 0 };
    let done = false;
    const parser = createParser({
      onEvent: ({ data }) => {
        if (data === "[DONE]") {
          done = true;
          return;
        }
        const chunk = chunkSchema.parse(JSON.parse(data));
        if (chunk.error) throw new MathllmError("engine-failed", `The model server reported: ${chunk.error.message}`);
        const choice = chunk.choices[0];
        const piece = choice?.delta?.content;
        if (piece) {
          text += piece;
          onText?.(piece);
        }
        finishReason = choice?.finish_reason ?? finishReason;
        usage = chunk.usage ?? usage;
      },
    });
    const decoder = new TextDecoder();
    for await (const bytes of response.body) parser.feed(decoder.decode(bytes as Buffer, { stream: true }));
    if (!done || finishReason === undefined) throw new Error("the stream ended before the answer did");
    return {
      text,
      finishReason: finishReason === "length" ? "length" : "stop",
      promptTokens: usage.prompt_tokens,
      completionTokens: usage.completion_tokens,
    };
  }
}

function refusal(status: number, body: string): MathllmError {
  let message = body.slice(0, 500);
  let code: string | number | null | undefined;
  try {
    const parsed = errorSchema.safeParse(JSON.parse(body));
    if (parsed.success) ({ message, code } = parsed.data.error);
  } catch {
    // Not JSON: the text itself says what is wrong.
  }
  if (status >= 500 || status === 408 || status === 429)
    return new MathllmError("engine-failed", `The model server answered ${status}: ${message}`);
  const tooLong = code === "context_length_exceeded" || /context (length|size|window)|maximum context/i.test(message);
  return new MathllmError(tooLong ? "problem-too-long" : "engine-refused", `The model server answered ${status}: ${message}`);
}
