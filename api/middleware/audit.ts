import type { RequestHandler } from "express";
import type { Logger } from "pino";
import { type AuditEntry, addAuditEntry } from "../../queues/audit.ts";
import type { Redis } from "../../queues/connection.ts";
import { accessOf } from "../access.ts";
import { keyOf } from "./authenticate.ts";

const SAFE_METHODS = ["GET", "HEAD", "OPTIONS"];

/** Writes down every change that needs an admin, in the log and in Redis, refused ones too, once its key is known. */
export function audit(redis: Redis, log: Logger): RequestHandler {
  return (request, response, next) => {
    const access = accessOf(request.method, request.path);
    const isAudited = access !== null && "need" in access && access.need === "admin" && !SAFE_METHODS.includes(request.method);
    if (!isAudited) return next();
    // Within a mounted router `path` is another.
    const { method, path } = request;
    response.on("close", () => {
      const done = response.statusCode < 400;
      if (response.statusCode === 401) return;
      const entry: AuditEntry = {
        who: keyOf(response)?.name ?? "local",
        what: `${method} ${path}`,
        from: request.socket.remoteAddress ?? "unknown",
        status: response.statusCode,
        ...(done && request.body !== undefined ? { detail: request.body } : {}),
      };
      log.info({ audit: entry }, "audit");
      addAuditEntry(redis, entry).catch((error) => log.warn({ reason: error.message }, "an audit line could not be kept in Redis"));
    });
    next();
  };
}
