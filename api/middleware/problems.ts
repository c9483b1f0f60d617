import type { ErrorRequestHandler, RequestHandler, Response } from "express";
import type { Logger } from "pino";
import type { Redis } from "../../queues/connection.ts";
import { MathllmError, problemOf } from "../../queues/errors.ts";
import type { MetricCounts } from "../../queues/metrics.ts";
import { readRefusedBody } from "../refused-body.ts";

/** Every error leaves as a problem document (RFC 9457); what is not of our table is logged and says nothing of its inside. */
export function problemHandler(redis: Redis, log: Logger, counts: MetricCounts): ErrorRequestHandler {
  return async (error, request, response, next) => {
    if (response.headersSent) {
      next(error);
      return;
    }
    await readRefusedBody(request, response);
    const known = knownError(error, redis);
    if (known.code === "internal-error")
      log.error({ requestId: response.get("X-Request-Id"), err: error, method: request.method, path: request.path }, "unexpected error");
    const { retryAfterSeconds = known.code === "redis-unavailable" ? 1 : undefined } = known.extra;
    if (retryAfterSeconds !== undefined) response.set("Retry-After", String(retryAfterSeconds));
    if (known.status === 429) counts.count("mathllm_refused_total", { code: known.code });
    sendProblem(response, known);
  };
}

export const unknownAddress: RequestHandler = (request, _response, next) => {
  next(new MathllmError("not-found", `There is nothing at ${request.method} ${request.path}. The addresses are listed at /.`));
};

/** Refuses the other methods of a known address. */
export function onlyMethods(...methods: string[]): RequestHandler {
  return (request, response, next) => {
    response.set("Allow", methods.join(", "));
    const [address] = request.originalUrl.split("?");
    next(new MathllmError("method-not-allowed", `${address} takes ${methods.join(", ")}; got ${request.method}.`));
  };
}

function sendProblem(response: Response, error: MathllmError): void {
  response
    .status(error.status)
    .type("application/problem+json")
    .send(JSON.stringify(problemOf(error)));
}

/** The errors of Express's body parser carry a `type`; those of a lost Redis connection are known by name and code. */
export function knownError(error: unknown, redis: Redis): MathllmError {
  if (error instanceof MathllmError) return error;
  const { type, message, limit, name, code } = error as Error & { type?: string; limit?: number; code?: string };
  if (type === "entity.parse.failed") return new MathllmError("malformed-json", `Expected a JSON object; ${message}.`);
  if (type === "entity.too.large") return new MathllmError("body-too-large", `Expected a body of at most ${limit} bytes.`);
  if (type === "encoding.unsupported" || type === "charset.unsupported")
    return new MathllmError("unsupported-media-type", `Expected JSON in UTF-8; ${message}.`);
  if (type === "request.size.invalid" || type === "request.aborted")
    return new MathllmError("malformed-json", `The body did not arrive whole: ${message}.`);
  if (error instanceof URIError) return new MathllmError("invalid-request", "Expected a well-formed address.");
  const lost =
    name === "MaxRetriesPerRequestError" ||
    /^(ECONN|EPIPE|ETIMEDOUT)/.test(code ?? "") ||
    /Connection is closed|isn't writeable|timed out|CLUSTERDOWN|Too many Cluster redirections|Cluster isn't ready/.test(message ?? "");
  if (lost || redis.status !== "ready")
    return new MathllmError(
      "redis-unavailable",
      "Redis can't be reached. Nothing was confirmed: send it again, with an Idempotency-Key if it must not run twice.",
    );
  return new MathllmError("internal-error", "The request could not be handled; the server's log says why.");
}
