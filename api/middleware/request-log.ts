import { randomUUID } from "node:crypto";
import type { RequestHandler } from "express";
import type { Logger } from "pino";
import { MathllmError } from "../../queues/errors.ts";

/** One line a request, with an id that the client gets too. Problem texts are not logged. */
export function requestLog(log: Logger): RequestHandler {
  return (request, response, next) => {
    const requestId = randomUUID();
    const startedAt = performance.now();
    const { method, path } = request;
    response.set("X-Request-Id", requestId);
    response.on("close", () => {
      const ms = Math.round(performance.now() - startedAt);
      const left = response.writableFinished ? {} : { clientLeft: true };
      log.info({ requestId, method, path, status: response.statusCode, ms, ...left }, "request");
    });
    next();
  };
}

export const securityHeaders: RequestHandler = (_request, response, next) => {
  response.set({
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
  });
  next();
};

const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$/i;

/**
 * While the API listens on loopback only, it answers only to loopback names: otherwise a web page could reach it through the
 * user's browser, by a name that resolves to 127.0.0.1 or by a plain form.
 */
export function loopbackOnly(host: string): RequestHandler {
  const bound = LOOPBACK.test(host.includes(":") ? `[${host}]` : host);
  return (request, _response, next) => {
    const { host: asked = "", origin } = request.headers;
    const foreign = !LOOPBACK.test(asked)
      ? asked
      : origin !== undefined && !LOOPBACK.test(origin.replace(/^https?:\/\//, ""))
        ? origin
        : null;
    next(
      bound && foreign !== null
        ? new MathllmError(
            "forbidden-origin",
            `Expected Host and Origin to be localhost or a loopback address, got ${JSON.stringify(foreign.slice(0, 100))}.`,
          )
        : undefined,
    );
  };
}
