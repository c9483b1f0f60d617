import { randomUUID } from "node:crypto";
import type { RequestHandler } from "express";
import type { Logger } from "pino";

/** One line a request, with an id that the client gets too. Problem texts are not logged. */
export function requestLog(log: Logger): RequestHandler {
  return (request, response, next) => {
    const requestId = randomUUID();
    const startedAt = performance.now();
    const { method, path } = request;
    response.set("X-Request-Id", requestId);
    response.on("finish", () =>
      log.info({ requestId, method, path, status: response.statusCode, ms: Math.round(performance.now() - startedAt) }, "request"),
    );
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
