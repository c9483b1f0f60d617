import { SECRET_CONFIG_FIELDS, SECRET_SETTINGS } from "./settings.ts";

const SECRETS = ["authorization", "cookie", "secret", "password", ...SECRET_SETTINGS, ...SECRET_CONFIG_FIELDS];
const PROBLEM_TEXTS = ["problem", "solution", "explanation", "prompt", "messages", "text"];
const CENSOR = "[not logged]";
const MAX_DEPTH = 5;

/**
 * For pino's `formatters.log`: leaves out of a line, however deep, secrets always, and what people ask and are answered unless it may be
 * logged. pino's own `redact` takes thirty times as long for as many names.
 */
export function redaction(problemsToo: boolean): (line: Record<string, unknown>) => Record<string, unknown> {
  const hidden = new Set(problemsToo ? SECRETS : [...SECRETS, ...PROBLEM_TEXTS]);
  const redacted = (value: unknown, depth: number): unknown => {
    if (value === null || typeof value !== "object") return value;
    if (value instanceof Error) return bareError(value, depth);
    if (depth === MAX_DEPTH) return CENSOR;
    if (Array.isArray(value)) return value.map((each) => redacted(each, depth + 1));
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, hidden.has(name) ? CENSOR : redacted(each, depth + 1)]));
  };
  return (line) => redacted(line, 0) as Record<string, unknown>;
}

/** An error without what else it carries: one of Redis holds the whole command that failed, with the job in it. */
function bareError(error: Error, depth: number): Error {
  const { message, stack, code, cause } = error as NodeJS.ErrnoException;
  const bare = new Error(message, cause instanceof Error && depth < MAX_DEPTH ? { cause: bareError(cause, depth + 1) } : {});
  // pino tells the class by it.
  Object.defineProperties(bare, { stack: { value: stack }, constructor: { value: error.constructor } });
  return code === undefined ? bare : Object.assign(bare, { code });
}
