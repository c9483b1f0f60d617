import { json, type RequestHandler } from "express";
import type { Config } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";

/** Reads a JSON body of at most `bodyLimitBytes`; no body at all is left undefined. Any other content type is refused. */
export function jsonBody({ bodyLimitBytes }: Config): RequestHandler {
  const parse = json({ limit: bodyLimitBytes, inflate: false });
  return (request, response, next) => {
    if (request.is("application/json") === false) {
      throw new MathllmError(
        "unsupported-media-type",
        `Expected Content-Type: application/json; got ${request.get("content-type") ?? "none"}.`,
      );
    }
    parse(request, response, next);
  };
}
