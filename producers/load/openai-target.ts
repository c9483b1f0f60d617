import { createParser } from "eventsource-parser";
import { type Dispatcher, Pool } from "undici";
import { z } from "zod";
import { lastBoxed } from "../../maths/answers.ts";
import { MathllmError } from "../../queues/errors.ts";
import { isClosedConnection, problemOfBody } from "./http-failure.ts";
import type { LoadPlan } from "./load-options.ts";
import { chatMessages, type PlannedRequest } from "./request-plan.ts";
import { type Answer, failedAnswer, nowMs, type Target } from "./target.ts";

const CONNECT_TIMEOUT_MS = 10_000;
const CHECK_TIMEOUT_MS = 30_000;

const chunkSchema = z.object({
  choices: z
    .array(
      z.object({
        delta: z.object({ content: z.string().nullish(), reasoning_content: z.string().nullish() }).nullish(),
        finish_reason: z.string().nullish(),
      }),
    )
    .default([]),
  usage: z.object({ prompt_tokens: z.number(), completion_tokens: z.number() }).nullish(),
  error: z.object({ message: z.string() }).nullish(),
});

/** Any server of the OpenAI chat form, always streamed: a model server alone, or a peer. */
export class OpenAiTarget implements Target {
  readonly #base: string;
  readonly #pool: Pool;
  readonly #plan: LoadPlan;
  readonly #apiKey: string | undefined;
  #models: string[] = [];

  constructor(url: string, plan: LoadPlan, apiKey?: string) {
    const { origin, pathname } = new URL(url);
    this.#base = `${pathname.replace(/\/+$/, "").replace(/\/v1$/, "")}/v1`;
    // Without a bound of its own: what waits for a connection here would look like the server's time. `maxInFlight` bounds it visibly.
    this.#pool = new Pool(origin, { connections: null, headersTimeout: 0, bodyTimeout: 0, connect: { timeout: CONNECT_TIMEOUT_MS } });
    this.#plan = plan;
    this.#apiKey = apiKey;
  }

  async check(): Promise<void> {
    const at = `${this.#base}/models`;
    try {
      const response = await this.#pool.request({
        method: "GET",
        path: at,
        headers: this.#headers(),
        signal: AbortSignal.timeout(CHECK_TIMEOUT_MS),
      });
      const text = await response.body.text();
      // A server without the list is measured all the same when it is told what to ask for.
      if (response.statusCode !== 200 && this.#plan.model === undefined)
        throw new Error(`${at} answered ${response.statusCode}: ${text.slice(0, 200)}`);
      if (response.statusCode === 200)
        this.#models = z
          .object({ data: z.array(z.object({ id: z.string() })) })
          .parse(JSON.parse(text))
          .data.map(({ id }) => id);
    } catch (error) {
      throw new MathllmError(
        "engine-failed",
        `Expected an OpenAI-compatible server; ${(error as Error).message || (error as { code?: string }).code}.`,
        { cause: error },
      );
    }
  }

  async send(request: PlannedRequest, signal: AbortSignal): Promise<Answer> {
    try {
      return await this.#stream(request, signal);
    } catch (error) {
      signal.throwIfAborted();
      const { message, code } = error as NodeJS.ErrnoException;
      return failedAnswer(error instanceof BrokenStream ? "broken-stream" : "connection", message || (code ?? "unknown"));
    }
  }

  async close(): Promise<void> {
    await this.#pool.destroy();
  }

  #headers(): Record<string, string> {
    return { "content-type": "application/json", ...(this.#apiKey === undefined ? {} : { authorization: `Bearer ${this.#apiKey}` }) };
  }

  #modelFor({ kind }: PlannedRequest): string | undefined {
    return this.#plan.model ?? this.#models.find((name) => name === kind) ?? this.#models[0];
  }

  /** A server may close a kept-alive connection just as it is used again: nothing was answered, so it is asked once more. */
  async #post(body: string, signal: AbortSignal): Promise<Dispatcher.ResponseData> {
    const options = { method: "POST", path: `${this.#base}/chat/completions`, headers: this.#headers(), body, signal } as const;
    try {
      return await this.#pool.request(options);
    } catch (error) {
      if (!isClosedConnection(error)) throw error;
      return this.#pool.request(options);
    }
  }

  async #stream(request: PlannedRequest, signal: AbortSignal): Promise<Answer> {
    const model = this.#modelFor(request);
    const { maxTokens, temperature } = this.#plan;
    const body = {
      model,
      messages: chatMessages(request),
      max_tokens: maxTokens,
      temperature,
      seed: request.seed,
      stream: true,
      stream_options: { include_usage: true },
    };
    const response = await this.#post(JSON.stringify(body), signal);
    if (response.statusCode !== 200) {
      const { code, detail } = problemOfBody(response.statusCode, await response.body.text());
      return { ...failedAnswer(code, detail, response.statusCode === 429 ? "refused" : "failed"), model: model ?? null };
    }
    const arrivals: number[] = [];
    let text = "";
    let finishReason: string | undefined;
    let usage: { prompt_tokens: number; completion_tokens: number } | undefined;
    let done = false;
    const parser = createParser({
      onEvent: ({ data }) => {
        if (data === "[DONE]") {
          done = true;
          return;
        }
        const chunk = chunkSchema.parse(JSON.parse(data));
        if (chunk.error) throw new BrokenStream(chunk.error.message);
        const choice = chunk.choices[0];
        if (choice?.delta?.content || choice?.delta?.reasoning_content) arrivals.push(nowMs());
        text += choice?.delta?.content ?? "";
        finishReason = choice?.finish_reason ?? finishReason;
        usage = chunk.usage ?? usage;
      },
    });
    const decoder = new TextDecoder();
    try {
      for await (const bytes of response.body) parser.feed(decoder.decode(bytes as Buffer, { stream: true }));
    } catch (error) {
      signal.throwIfAborted();
      throw new BrokenStream((error as Error).message);
    }
    const finishedAt = nowMs();
    if (!done || finishReason === undefined) throw new BrokenStream("the stream ended before the answer did");
    const tokensOut = usage?.completion_tokens ?? null;
    // An answer that came in one piece doesn't tell when its tokens were written.
    const generationMs = arrivals.length < 2 ? null : arrivals.at(-1)! - arrivals[0]!;
    return {
      ...failedAnswer("", ""),
      status: "completed",
      errorClass: null,
      errorDetail: null,
      firstTokenAt: arrivals[0] ?? null,
      finishedAt,
      itlMs: arrivals.slice(1).map((at, i) => Number((at - arrivals[i]!).toFixed(3))),
      tpotMs: generationMs !== null && tokensOut !== null && tokensOut > 1 ? generationMs / (tokensOut - 1) : null,
      tokensIn: usage?.prompt_tokens ?? null,
      tokensOut,
      truncated: finishReason === "length",
      answer: request.kind === "student" ? lastBoxed(text) : null,
      model: model ?? null,
    };
  }
}

class BrokenStream extends Error {}
