import type { RequestHandler } from "express";
import { isTracing, traced } from "../../queues/tracing.ts";
import { addressOf } from "../access.ts";

/** A span for each request, under the address as it stands in `ACCESS`: ids are no names. */
export const traceRequests: RequestHandler = (request, response, next) => {
  if (!isTracing()) return next();
  const address = addressOf(request.path) ?? "unknown address";
  const attributes = { "http.request.method": request.method, "http.route": address };
  const ended = new Promise<void>((resolve) => response.once("close", resolve));
  traced(`${request.method} ${address}`, { kind: "server", parent: request.headers, attributes }, async () => {
    next();
    await ended;
    if (response.statusCode >= 500) throw new Error(`status ${response.statusCode}`);
  }).catch(() => {});
};
