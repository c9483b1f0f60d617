import { json, type RequestHandler } from "express";
import type { Config } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";

/** Deeper than any body that is meant. JSON is parsed at any depth; much of what is done with it afterwards calls itself. */
const MAX_DEPTH = 64;

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
    parse(request, response, (error) => {
      if (error === undefined && isDeeperThan(MAX_DEPTH, request.body))
        next(new MathllmError("invalid-request", `Expected JSON nested at most ${MAX_DEPTH} deep; got a deeper one.`));
      else next(error);
    });
  };
}

function isDeeperThan(depth: number, value: unknown): boolean {
  let level = [value];
  for (let i = 0; i <= depth; i++) {
    level = level.flatMap((each) => (each !== null && typeof each === "object" ? Object.values(each) : []));
    if (level.length === 0) return false;
  }
  return true;
}
