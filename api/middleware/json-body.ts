import { json, type RequestHandler } from "express";
import type { Config } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";

/**
 * Reads a JSON body of at most `bodyLimitBytes`; any other content type is refused. No body at all is left undefined: where it is
 * `optional`, also from a client that says that its length is 0.
 */
export function jsonBody({ bodyLimitBytes }: Config, { optional = false } = {}): RequestHandler {
  const parse = json({ limit: bodyLimitBytes, inflate: false });
  return (request, response, next) => {
    const isAbsent = optional && request.get("content-length") === "0" && request.get("content-type") === undefined;
    if (!isAbsent && request.is("application/json") === false) {
      throw new MathllmError(
        "unsupported-media-type",
        `Expected Content-Type: application/json; got ${request.get("content-type") ?? "none"}.`,
      );
    }
    parse(request, response, next);
  };
}
