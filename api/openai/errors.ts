import type { ErrorRequestHandler } from "express";
import type { Logger } from "pino";
import type { Redis } from "../../queues/connection.ts";
import type { JobError } from "../../queues/contracts.ts";
import { ERRORS, type ErrorCode, MathllmError } from "../../queues/errors.ts";
import type { MetricCounts } from "../../queues/metrics.ts";
import { knownError } from "../middleware/problems.ts";
import { readRefusedBody } from "../refused-body.ts";

/** The one form of errors under `/v1`. */
export interface ErrorEnvelope {
  error: { message: string; type: string; param: string | null; code: string | null };
}

/** A request that names what is wrong with it in the terms of the OpenAI API. */
export class RequestRefused extends Error {
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;

  constructor(status: number, message: string, param: string | null = null, code: string | null = null) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

/** Where the OpenAI API has a status and a code of its own for the same thing. */
const RENAMED: Partial<Record<ErrorCode, { status?: number; code: string }>> = {
  unauthorized: { code: "invalid_api_key" },
  "problem-too-long": { status: 400, code: "context_length_exceeded" },
};

function typeOf(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 403) return "permission_error";
  if (status === 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

export function envelopeOf(error: RequestRefused | MathllmError | JobError): ErrorEnvelope & { status: number } {
  const message = "detail" in error ? error.detail : error.message;
  if (error instanceof RequestRefused) return envelope(error.status, message, error.param, error.code);
  const code = error.code as ErrorCode;
  const renamed = RENAMED[code];
  return envelope(renamed?.status ?? ERRORS[code]?.status ?? 500, message, null, renamed?.code ?? code);
}

function envelope(status: number, message: string, param: string | null, code: string | null) {
  return { status, error: { message, type: typeOf(status), param, code } };
}

/** Whether the official clients, which otherwise send a 409, a 429 and any 5xx again, should. */
export function shouldRetry(code: string): boolean {
  return code in ERRORS && ERRORS[code as ErrorCode].retryable;
}

/** For `/v1`: every error leaves in the envelope. */
export function openaiErrors(redis: Redis, log: Logger, counts: MetricCounts): ErrorRequestHandler {
  return async (thrown, request, response, next) => {
    if (response.headersSent) {
      next(thrown);
      return;
    }
    await readRefusedBody(request, response);
    const known = thrown instanceof RequestRefused ? thrown : knownError(thrown, redis);
    if (known.code === "internal-error")
      log.error({ requestId: response.get("X-Request-Id"), err: thrown, method: request.method, path: request.path }, "unexpected error");
    const { status, error } = envelopeOf(known);
    if (known instanceof MathllmError) {
      if (status === 429) counts.count("mathllm_refused_total", { code: known.code });
      const { retryAfterSeconds = known.code === "redis-unavailable" ? 1 : undefined } = known.extra;
      if (retryAfterSeconds !== undefined) response.set("Retry-After", String(retryAfterSeconds));
      response.set("X-Should-Retry", String(shouldRetry(known.code)));
    }
    response.status(status).json({ error });
  };
}
