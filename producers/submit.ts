import { type Accepted, acceptedSchema, type JobView, jobViewSchema, type SolveRequest, TERMINAL_STATUSES } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";

const WAIT_SECONDS = 30;

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

  /** Follows a job to its end by long polls. Rejects when `signal` aborts. */
  async finished(jobId: string, signal?: AbortSignal): Promise<JobView> {
    for (;;) {
      const view = await this.job(jobId, WAIT_SECONDS, signal);
      if (TERMINAL_STATUSES.includes(view.status)) return view;
    }
  }

  /** The parsed body of a 2xx answer. Rejects with the problem's title and detail, or with how to start the API. */
  async json(path: string, init: RequestInit = {}): Promise<unknown> {
    const response = await this.request(path, init);
    const body = (await response.json()) as { detail?: string; title?: string };
    if (!response.ok) throw new MathllmError("invalid-request", `${body.title ?? response.statusText}: ${body.detail ?? ""}`);
    return body;
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
