/**
 * The one table of errors: what can go wrong, its HTTP status, and whether another attempt may help.
 * Problem documents (RFC 9457), job errors and exit messages are all made from it.
 */

interface ErrorKind {
  status: number;
  title: string;
  /** A job that failed with it is tried again. */
  retryable: boolean;
}

export const ERRORS = {
  "malformed-json": { status: 400, title: "The body is not JSON", retryable: false },
  "invalid-request": { status: 400, title: "The request does not have the expected form", retryable: false },
  "body-too-large": { status: 413, title: "The body is larger than allowed", retryable: false },
  "unsupported-media-type": { status: 415, title: "The body's content type is not application/json", retryable: false },
  "not-found": { status: 404, title: "There is nothing at this address", retryable: false },
  "unknown-job": { status: 404, title: "No such job, or it has expired", retryable: false },
  "unknown-batch": { status: 404, title: "No such batch, or it has expired", retryable: false },
  "method-not-allowed": { status: 405, title: "The address does not take this method", retryable: false },
  "forbidden-origin": { status: 403, title: "The request comes from a web page or name that is not this machine's", retryable: false },
  unauthorized: { status: 401, title: "An API key is needed", retryable: false },
  forbidden: { status: 403, title: "The API key's role does not allow this", retryable: false },
  "rate-limited": { status: 429, title: "The API key's rate is used up", retryable: true },
  "too-many-jobs": { status: 429, title: "The API key has as many unfinished jobs as it may", retryable: true },
  "idempotency-conflict": { status: 409, title: "The Idempotency-Key was used with another body", retryable: false },
  "queue-full": { status: 429, title: "The queue is full", retryable: true },
  "deadline-unmeetable": { status: 429, title: "The job could not start in time", retryable: true },
  "unknown-gpu": { status: 404, title: "No live worker has this GPU", retryable: false },
  "files-full": { status: 507, title: "The space for files is used up", retryable: false },
  "shutting-down": { status: 503, title: "The server is being stopped", retryable: true },
  "redis-unavailable": { status: 503, title: "Redis can't be reached", retryable: true },
  "internal-error": { status: 500, title: "Something unexpected went wrong", retryable: false },
  cancelled: { status: 409, title: "The job was cancelled", retryable: false },
  "deadline-exceeded": { status: 504, title: "The job's time ran out", retryable: false },
  "job-timeout": { status: 504, title: "The job took too long on the model", retryable: false },
  "problem-too-long": { status: 422, title: "The problem does not fit into the model's context", retryable: false },
  "solution-unfinished": { status: 422, title: "The solution was cut, so it was not explained", retryable: false },
  "engine-failed": { status: 502, title: "The model server failed", retryable: true },
  "engine-refused": { status: 502, title: "The model server refused the request", retryable: false },
  "out-of-memory": { status: 503, title: "The model does not fit into the memory", retryable: true },
  "memory-taken": { status: 503, title: "Other programs hold the memory that the model needs", retryable: true },
  "job-crashes-model": { status: 500, title: "The model server died each time it ran this job", retryable: false },
  "gpu-in-use": { status: 409, title: "Another process holds the GPU", retryable: true },
  "gpu-unreadable": { status: 503, title: "The GPU can't be asked", retryable: true },
  "engine-missing": { status: 500, title: "The engine's program is not there", retryable: false },
  "model-missing": { status: 500, title: "The model's file is not there", retryable: false },
  "model-invalid": { status: 500, title: "The model's file can't be used", retryable: false },
  "model-download-failed": { status: 502, title: "The model could not be downloaded", retryable: true },
  "port-in-use": { status: 500, title: "The port is taken", retryable: false },
  "invalid-configuration": { status: 500, title: "The configuration is wrong", retryable: false },
  "redis-binary-missing": { status: 500, title: "No Redis server could be found", retryable: false },
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof ERRORS;

/** An error of the table. `detail` says what was expected, what came, and what to do; it may be shown to a client. */
export class MathllmError extends Error {
  readonly code: ErrorCode;
  readonly extra: Record<string, unknown>;

  constructor(code: ErrorCode, detail: string, options: { cause?: unknown; extra?: Record<string, unknown> } = {}) {
    super(detail, { cause: options.cause });
    this.name = "MathllmError";
    this.code = code;
    this.extra = options.extra ?? {};
  }

  get status(): number {
    return ERRORS[this.code].status;
  }

  get retryable(): boolean {
    return ERRORS[this.code].retryable;
  }
}

/** RFC 9457. `type` is a relative reference to the documentation of the code. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  code: ErrorCode;
  detail: string;
  [extra: string]: unknown;
}

export function problemOf(error: MathllmError): Problem {
  const { status, title } = ERRORS[error.code];
  return { type: `/docs/errors#${error.code}`, title, status, code: error.code, detail: error.message, ...error.extra };
}

/** A job's error as stored by BullMQ (`failedReason` is one string): the code, a colon, the detail. */
export function failedReasonOf(error: MathllmError): string {
  return `${error.code}: ${error.message}`;
}

/** The reverse of `failedReasonOf`; a text that is not of ours becomes `internal-error`. */
export function parseFailedReason(reason: string): { code: ErrorCode; detail: string } {
  const colon = reason.indexOf(": ");
  const code = reason.slice(0, colon);
  return colon > 0 && code in ERRORS
    ? { code: code as ErrorCode, detail: reason.slice(colon + 2) }
    : { code: "internal-error", detail: reason };
}
