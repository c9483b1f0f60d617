import { setTimeout as delay } from "node:timers/promises";
import { Pool } from "undici";
import { acceptedSchema, type JobView, jobViewSchema, TERMINAL_STATUSES } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { isClosedConnection, problemOfBody } from "./http-failure.ts";
import type { LoadPlan } from "./load-options.ts";
import type { PlannedRequest } from "./request-plan.ts";
import type { ServerSampler } from "./server-sampler.ts";
import { type Answer, failedAnswer, nowMs, type Target } from "./target.ts";

const CONNECT_TIMEOUT_MS = 10_000;
const CHECK_TIMEOUT_MS = 10_000;
const WAIT_SECONDS = 30;
const RETRY_MS = 250;
const CANCEL_TIMEOUT_MS = 2000;

/** Our API: a job is handed in and followed to its end by long polls. */
export class ApiTarget implements Target {
  readonly #base: string;
  readonly #pool: Pool;
  readonly #plan: LoadPlan;
  readonly #runKey: string;
  readonly #headers: Record<string, string>;
  readonly #sampler: ServerSampler | null;
  readonly #clock: ServerClock;
  readonly #cancels = new Set<Promise<unknown>>();

  /** `runKey` is new with each session: the same index of another session is another job. */
  constructor(url: string, plan: LoadPlan, options: { runKey: string; sampler: ServerSampler | null; apiKey?: string }) {
    const { origin, pathname, hostname } = new URL(url);
    this.#base = pathname.replace(/\/+$/, "");
    // Without a bound of its own: what waits for a connection here would look like the server's time. `maxInFlight` bounds it visibly.
    this.#pool = new Pool(origin, { connections: null, headersTimeout: 0, bodyTimeout: 0, connect: { timeout: CONNECT_TIMEOUT_MS } });
    this.#plan = plan;
    this.#runKey = options.runKey;
    this.#headers = {
      "content-type": "application/json",
      ...(options.apiKey === undefined ? {} : { authorization: `Bearer ${options.apiKey}` }),
    };
    this.#sampler = options.sampler;
    this.#clock = new ServerClock(isLoopback(hostname));
  }

  async check(): Promise<void> {
    try {
      const response = await this.#request("GET", "/readyz", { signal: AbortSignal.timeout(CHECK_TIMEOUT_MS) });
      // 503 says that it is not ready yet, which is for the requests to find out; 404 is somebody else.
      if (response.status !== 200 && response.status !== 503) throw new Error(`/readyz answered ${response.status}`);
    } catch (error) {
      const { message, code } = error as NodeJS.ErrnoException;
      throw new MathllmError("engine-failed", `Expected the API: ${message || code}. Start it with npm start, or name it with --url.`, {
        cause: error,
      });
    }
  }

  async send(request: PlannedRequest, signal: AbortSignal): Promise<Answer> {
    let jobId: string | undefined;
    try {
      const sentAt = nowMs();
      const response = await this.#submit(request, signal);
      const answeredAt = nowMs();
      if (response.status !== 200 && response.status !== 202) {
        const { code, detail } = problemOfBody(response.status, response.body);
        return failedAnswer(code, detail, response.status === 429 ? "refused" : "failed");
      }
      if (response.status === 200) return this.#answerOf(jobViewSchema.parse(JSON.parse(response.body)), answeredAt);
      ({ jobId } = acceptedSchema.parse(JSON.parse(response.body)));
      const view = await this.#finished(jobId, signal);
      const finishedAt = nowMs();
      this.#clock.see(sentAt, answeredAt, view.timestamps.acceptedAt);
      return this.#answerOf(view, finishedAt);
    } catch (error) {
      if (jobId !== undefined) this.#cancel(jobId);
      signal.throwIfAborted();
      const { message, code } = error as NodeJS.ErrnoException;
      return failedAnswer(error instanceof LostJob ? error.code : "connection", message || (code ?? "unknown"));
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.#cancels);
    await this.#pool.destroy();
  }

  async #request(
    method: "GET" | "POST" | "DELETE",
    path: string,
    options: { body?: string; headers?: Record<string, string>; signal: AbortSignal },
  ) {
    const response = await this.#pool.request({
      method,
      path: this.#base + path,
      ...options,
      headers: { ...this.#headers, ...options.headers },
    });
    return { status: response.statusCode, body: await response.body.text() };
  }

  async #submit({ index, kind, priorityClass, problem, seed }: PlannedRequest, signal: AbortSignal) {
    const { temperature, maxTokens, samples, cache } = this.#plan;
    const body = JSON.stringify({
      problem,
      model: kind === "talker" ? "talker" : "student",
      explain: kind === "explain",
      priority: priorityClass,
      sampling: { temperature, maxTokens, seed },
      cache,
      ...(samples > 1 && kind !== "talker" ? { samples } : {}),
    });
    const options = { body, headers: { "idempotency-key": `${this.#runKey}-${index}` }, signal };
    try {
      return await this.#request("POST", "/solve", options);
    } catch (error) {
      // The key makes sure that it is one job, whether or not the first one was read.
      if (!isClosedConnection(error)) throw error;
      return this.#request("POST", "/solve", options);
    }
  }

  /** An API that is being restarted is asked again: the job is in Redis. Ends by the request's own timeout. */
  async #finished(jobId: string, signal: AbortSignal): Promise<JobView> {
    for (;;) {
      let response: { status: number; body: string };
      try {
        response = await this.#request("GET", `/jobs/${jobId}?wait=${WAIT_SECONDS}`, { signal });
      } catch (error) {
        signal.throwIfAborted();
        if ((error as NodeJS.ErrnoException).code === undefined) throw error;
        response = { status: 503, body: "" };
      }
      if (response.status === 200) {
        const view = jobViewSchema.parse(JSON.parse(response.body));
        if (TERMINAL_STATUSES.includes(view.status)) return view;
      } else if (response.status < 500) {
        const { code, detail } = problemOfBody(response.status, response.body);
        throw new LostJob(code, detail);
      } else {
        await delay(RETRY_MS, undefined, { signal });
      }
    }
  }

  /** Nobody waits for the answer any more, so the model needn't compute it. */
  #cancel(jobId: string): void {
    const cancel = this.#request("DELETE", `/jobs/${jobId}`, { signal: AbortSignal.timeout(CANCEL_TIMEOUT_MS) })
      .catch(() => {})
      .finally(() => this.#cancels.delete(cancel));
    this.#cancels.add(cancel);
  }

  #answerOf(view: JobView, finishedAt: number): Answer {
    const { result, timestamps, stages, error } = view;
    const { offsetMs } = this.#clock;
    // What was computed for another request, or long ago, has no times of this one.
    const own = result === null || !(result.cached || result.coalesced);
    const here = (at: number | null) => (own && at !== null ? at - offsetMs : null);
    const stageError = stages.find((stage) => stage.error !== null)?.error ?? null;
    const completed = view.status === "completed" && stageError === null;
    const failure = error ?? stageError;
    const waits = own ? waitsOf(view) : null;
    return {
      status: completed ? "completed" : "failed",
      errorClass: completed ? null : (failure?.code ?? view.status),
      errorDetail: completed ? null : (failure?.detail.slice(0, 300) ?? null),
      acceptedAt: here(timestamps.acceptedAt),
      pickedAt: here(timestamps.pickedAt),
      firstTokenAt: here(timestamps.firstTokenAt),
      finishedAt,
      queueWaitMs: waits === null ? null : waits.reduce((sum, { from, to }) => sum + Math.max(to - from, 0), 0),
      swapWaitMs: waits === null || this.#sampler === null ? null : this.#sampler.swappingMs(waits),
      itlMs: null,
      // The tokens of several samples were not written one after the other.
      tpotMs: own && result !== null && this.#plan.samples === 1 ? tpotOf(view, result.usage.completionTokens) : null,
      tokensIn: result?.usage.promptTokens ?? null,
      tokensOut: result?.usage.completionTokens ?? null,
      truncated: result?.truncated ?? false,
      cached: result?.cached ?? false,
      coalesced: result?.coalesced ?? false,
      answer: result?.answer ?? null,
      model: view.model,
      clockOffsetMs: offsetMs,
    };
  }
}

/** The API forgot the job, or refused to tell of it. */
class LostJob extends Error {
  readonly code: string;

  constructor(code: string, detail: string) {
    super(detail);
    this.code = code;
  }
}

export interface Span {
  from: number;
  to: number;
}

/** When the job stood in a queue, by the server's clock: before its first stage, and between the two. null before it was picked. */
function waitsOf({ timestamps, stages }: JobView): Span[] | null {
  const spans: Span[] = [];
  let from: number | null = timestamps.acceptedAt;
  for (const { pickedAt, finishedAt } of stages) {
    // A stage from the cache was never picked.
    if (pickedAt !== null && from !== null) spans.push({ from, to: pickedAt });
    from = finishedAt;
  }
  return spans.length === 0 ? null : spans;
}

function tpotOf({ stages }: JobView, tokens: number): number | null {
  const computed = stages.filter(({ firstTokenAt, finishedAt }) => firstTokenAt !== null && finishedAt !== null);
  const gaps = tokens - computed.length;
  if (computed.length === 0 || gaps < 1) return null;
  return computed.reduce((sum, { firstTokenAt, finishedAt }) => sum + (finishedAt! - firstTokenAt!), 0) / gaps;
}

/**
 * The server's clock against ours. Its `acceptedAt` lies between a request's sending and its answer: the exchange with the shortest round
 * trip tells the offset best, to within half that trip (F. Cristian, "Probabilistic clock synchronization", 1989). On the same host
 * there is one clock and nothing to correct.
 */
export class ServerClock {
  readonly #sameHost: boolean;
  #roundTripMs = Number.POSITIVE_INFINITY;
  offsetMs = 0;

  constructor(sameHost: boolean) {
    this.#sameHost = sameHost;
  }

  see(sentAt: number, answeredAt: number, acceptedAt: number): void {
    const roundTripMs = answeredAt - sentAt;
    if (this.#sameHost || roundTripMs >= this.#roundTripMs) return;
    this.#roundTripMs = roundTripMs;
    this.offsetMs = acceptedAt - (sentAt + answeredAt) / 2;
  }
}

export const isLoopback = (hostname: string): boolean => hostname === "localhost" || hostname === "[::1]" || /^127\./.test(hostname);
