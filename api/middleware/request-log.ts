import { randomUUID } from "node:crypto";
import type { RequestHandler } from "express";
import type { Logger } from "pino";
import { keyOf } from "./authenticate.ts";

/** One line a request, with an id that the client gets too, and the job that it made. Problem texts are not logged. */
export function requestLog(log: Logger): RequestHandler {
  return (request, response, next) => {
    const requestId = randomUUID();
    const startedAt = performance.now();
    const { method, path } = request;
    response.set("X-Request-Id", requestId);
    response.on("close", () => {
      const ms = Math.round(performance.now() - startedAt);
      const left = response.writableFinished ? {} : { clientLeft: true };
      const key = keyOf(response);
      const jobId: string | undefined = response.locals.jobId;
      log.info(
        {
          requestId,
          ...(key === null ? {} : { key: key.name }),
          ...(jobId === undefined ? {} : { jobId }),
          method,
          path,
          status: response.statusCode,
          ms,
          ...left,
        },
        "request",
      );
    });
    next();
  };
}
