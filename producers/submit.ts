import { type Accepted, acceptedSchema, type JobView, jobViewSchema, type SolveRequest, TERMINAL_STATUSES } from "../queues/contracts.ts";
import { ERRORS, type ErrorCode, MathllmError } from "../queues/errors.ts";
import { JOB_EVENTS, type JobEvent, type JobEventName } from "../queues/job-events.ts";
import { type SentEvent, sentEvents } from "./event-stream.ts";

const WAIT_SECONDS = 30;
/** A reason to wait may change meanwhile. */
const REASON_WAIT_SECONDS = 2;

/** A problem document as an error of the table. */
async function problemOf(response: Response): Promise<MathllmError> {
  const body = (await response.json()) as { code?: string; title?: string; detail?: string };
  const code = Object.hasOwn(ERRORS, body.code ?? "") ? (body.code as ErrorCode) : "invalid-request";
  return new MathllmError(code, `${body.title ?? response.statusText}: ${body.detail ?? ""}`, { extra: body });
}

/** What a caller may send: everything but the problem has a default. */
export type Submission = Pick<SolveRequest, "problem"> & Partial<SolveRequest>;

/** A client of the HTTP API at `baseUrl`. Errors carry the API's own detail; an API that isn't there says how to start it. */
export class ApiClient {
  readonly baseUrl: string;
  readonly #apiKey: string | undefined;

  constructor(baseUrl: string, apiKey?: string) {
    this.baseUrl = baseUrl.replace(/\/+$/, "");
    this.#apiKey = apiKey;
  }

  /** Hands a problem in; resolves when it is accepted. */
  async submit(submission: Submission, idempotencyKey?: string): Promise<Accepted> {
    const headers: Record<string, string> = { "content-type": "application/json" };
    if (idempotencyKey !== undefined) headers["idempotency-key"] = idempotencyKey;
    return acceptedSchema.parse(await this.json("/solve", { method: "POST", headers, body: JSON.stringify(submission) }));
  }

  async job(jobId: string, waitSeconds = 0, signal?: AbortSignal): Promise<JobView> {
    return jobViewSchema.parse(await this.json(`/jobs/${jobId}?wait=${waitSeconds}`, { signal }));
  }

  /** Follows a job to its end by long polls. `onReason` hears why it does not go on, whenever that changes. Rejects when `signal` aborts. */
  async finished(jobId: string, signal?: AbortSignal, onReason?: (reason: string) => void): Promise<JobView> {
    let told: string | null = null;
    for (;;) {
      const view = await this.job(jobId, onReason === undefined ? WAIT_SECONDS : REASON_WAIT_SECONDS, signal);
      if (TERMINAL_STATUSES.includes(view.status)) return view;
      if (view.reason !== null && view.reason !== told) onReason?.(view.reason);
      told = view.reason;
    }
  }

  /** Hands a problem in and waits for its end. */
  async solve(submission: Submission, signal?: AbortSignal): Promise<JobView> {
    return this.finished((await this.submit(submission)).jobId, signal);
  }

  /** The job's story as it happens, to its `result`; a connection that breaks off is taken up again. */
  async *events(jobId: string, signal?: AbortSignal): AsyncGenerator<JobEvent> {
    for await (const { id, event, data } of this.follow(`/jobs/${jobId}/events`, signal)) {
      if (!Object.hasOwn(JOB_EVENTS, event)) continue;
      const name = event as JobEventName;
      yield { event: name, id, data: JOB_EVENTS[name].parse(JSON.parse(data)) } as JobEvent;
      if (name === "result") return;
    }
  }

  /** Asks for the job to be cancelled. It may have ended before. */
  async cancel(jobId: string): Promise<JobView> {
    return jobViewSchema.parse(await this.json(`/jobs/${jobId}`, { method: "DELETE" }));
  }

  /** Server-sent events, see `sentEvents`. Rejects with the problem that the API answers with. */
  follow(path: string, signal?: AbortSignal): AsyncGenerator<SentEvent> {
    const open = async (headers: Record<string, string>) => {
      const response = await this.request(path, { headers, signal });
      if (!response.ok) throw await problemOf(response);
      return response;
    };
    return sentEvents(open, { signal, isFinal: (error) => error instanceof MathllmError && !error.retryable });
  }

  /** The parsed body of a 2xx answer. Rejects with the problem's code, title and detail, or with how to start the API. */
  async json(path: string, init: RequestInit = {}): Promise<unknown> {
    const response = await this.request(path, init);
    if (!response.ok) throw await problemOf(response);
    return response.json();
  }

  /** Any answer. Rejects with how to start the API when there is none. */
  async request(path: string, init: RequestInit = {}): Promise<Response> {
    try {
      const headers = new Headers(init.headers);
      if (this.#apiKey !== undefined) headers.set("authorization", `Bearer ${this.#apiKey}`);
      return await fetch(this.baseUrl + path, { ...init, headers });
    } catch (error) {
      init.signal?.throwIfAborted();
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause.message : String(error);
      throw new MathllmError(
        "engine-failed",
        `Expected the API at ${this.baseUrl}: ${cause}. Start it with npm start, or name it with --url.`,
      );
    }
  }
}
