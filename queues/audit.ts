import type { Redis } from "./connection.ts";
import { keys } from "./names.ts";

/** What an admin did. Secrets never stand in it. */
export interface AuditEntry {
  /** The key's name; `local` while no keys are in use, `command line` for what was done to the store of keys itself. */
  who: string;
  /** `POST /gpu/drain`. */
  what: string;
  /** What it was told, where that is known to hold no secret. */
  detail?: unknown;
  /** The client's address; of the command line the host and user. */
  from: string;
  /** The HTTP status of its answer. */
  status?: number;
}

const KEPT = 10_000;
const DETAIL_CHARS = 500;

/** Adds it to the stream, of which about the ten thousand newest are kept. */
export async function addAuditEntry(redis: Redis, { detail, ...entry }: AuditEntry, now = Date.now()): Promise<void> {
  const fields = Object.entries({ at: new Date(now).toISOString(), ...entry }).map(([name, value]) => [name, String(value)]);
  if (detail !== undefined) fields.push(["detail", JSON.stringify(detail).slice(0, DETAIL_CHARS)]);
  await redis.xadd(keys.audit, "MAXLEN", "~", KEPT, "*", ...fields.flat());
}

/** The newest ones, newest first. */
export async function latestAuditEntries(redis: Redis, count: number): Promise<Record<string, string>[]> {
  const entries = await redis.xrevrange(keys.audit, "+", "-", "COUNT", count);
  return entries.map(([, fields]) => Object.fromEntries(fields.flatMap((name, i) => (i % 2 === 0 ? [[name, fields[i + 1] ?? ""]] : []))));
}
