import { createHash } from "node:crypto";
import { type SolveRequest, solveRequestSchema } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";

const SHOWN_CHARS = 100;

/** The checked body of `POST /solve`, defaults filled in. Throws `invalid-request` that lists every wrong field with what came. */
export function parseSolveRequest(body: unknown): SolveRequest {
  const parsed = solveRequestSchema.safeParse(body);
  if (parsed.success) return parsed.data;
  const errors = parsed.error.issues.map((issue) => ({
    path: issue.path.join("."),
    expected: shortened(issue.message),
    got: shown(valueAt(body, issue.path)),
  }));
  const lines = errors.map(({ path, expected, got }) => `${path || "the body"}: ${expected}; got ${got}`);
  throw new MathllmError("invalid-request", lines.join(". "), { extra: { errors } });
}

function valueAt(value: unknown, path: PropertyKey[]): unknown {
  return path.reduce(
    (inner: unknown, key) => (inner !== null && typeof inner === "object" ? (inner as Record<PropertyKey, unknown>)[key] : undefined),
    value,
  );
}

function shown(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "string" && value.length > SHOWN_CHARS) return `a text of ${value.length} characters`;
  return shortened(JSON.stringify(value));
}

function shortened(text: string): string {
  return text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}…` : text;
}

/** The same for requests that mean the same: defaults filled in, whatever the order of the keys. */
export function requestHash(request: SolveRequest): string {
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
