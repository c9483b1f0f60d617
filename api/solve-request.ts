import { createHash } from "node:crypto";
import { type JobRequest, type SolveRequest, solveRequestSchema } from "../queues/contracts.ts";
import { parseBody } from "./parse-body.ts";

/** The checked body of `POST /solve`. Throws `invalid-request`. */
export function parseSolveRequest(body: unknown): SolveRequest {
  return parseBody(solveRequestSchema, body);
}

/** The same for requests that mean the same: defaults filled in, whatever the order of the keys. */
export function requestHash(request: JobRequest): string {
  const canonical = (value: unknown): unknown => {
    if (Array.isArray(value) || value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([key, inner]) => [key, canonical(inner)]),
    );
  };
  return createHash("sha256")
    .update(JSON.stringify(canonical(request)))
    .digest("hex");
}
