import type { z } from "zod";
import { MathllmError } from "../queues/errors.ts";

const SHOWN_CHARS = 100;
const LISTED_ERRORS = 50;

/** The checked body, defaults filled in. Throws `invalid-request` that lists up to 50 wrong fields with what came. */
export function parseBody<T extends z.ZodType>(schema: T, body: unknown): z.infer<T> {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const { issues } = parsed.error;
  const errors = issues.slice(0, LISTED_ERRORS).map((issue) => ({
    path: shortened(issue.path.join(".")),
    expected: shortened(issue.message),
    got: shown(valueAt(body, issue.path)),
  }));
  const lines = errors.map(({ path, expected, got }) => `${path || "the body"}: ${expected}; got ${got}`);
  if (issues.length > errors.length) lines.push(`and ${issues.length - errors.length} more`);
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
  try {
    return shortened(JSON.stringify(value));
  } catch {
    return "a value nested too deep to show";
  }
}

function shortened(text: string): string {
  return text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}…` : text;
}
