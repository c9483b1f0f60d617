import type { Redis } from "./connection.ts";
import { KEY_PREFIX, keys, type Role } from "./names.ts";

/**
 * The text of a job as it is written, as a Redis stream of chunks, so that a late listener gets the whole story.
 * Chunks are gathered for `FLUSH_MS`: one XADD per token would cost more than the token. Each names its stage and attempt: a stage
 * that is begun again (its worker died) writes its text anew.
 */
const FLUSH_MS = 40;
const PAGE = 1000;

export interface TokenChunk {
  /** The stream's entry id: a reader resumes after it. */
  id: string;
  role: Role;
  /** How often the stage had been begun, this time included. */
  attempt: number;
  /** Of a vote: which of its samples, from 0; null otherwise. */
  sample: number | null;
  text: string;
}

/** Writes one stage's chunks. `end` writes what is left; nothing of it may fail a job, so errors go to `onError`. */
export class TokenStreamWriter {
  readonly #redis: Redis;
  readonly #key: string;
  readonly #of: Pick<TokenChunk, "role" | "attempt" | "sample">;
  readonly #ttlSeconds: number;
  readonly #onError: (error: Error) => void;
  #pending = "";
  #timer: NodeJS.Timeout | undefined;

  constructor(
    redis: Redis,
    jobId: string,
    of: Pick<TokenChunk, "role" | "attempt" | "sample">,
    ttlSeconds: number,
    onError: (error: Error) => void,
  ) {
    this.#redis = redis;
    this.#key = keys.tokenStream(jobId);
    this.#of = of;
    this.#ttlSeconds = ttlSeconds;
    this.#onError = onError;
  }

  write(text: string): void {
    this.#pending += text;
    this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS);
  }

  end(): void {
    this.#flush();
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#pending === "" || this.#redis.status !== "ready") return;
    const text = this.#pending;
    this.#pending = "";
    this.#redis
      .pipeline()
      .xadd(this.#key, "*", "role", this.#of.role, "text", text, "attempt", this.#of.attempt, "sample", this.#of.sample ?? "")
      .expire(this.#key, this.#ttlSeconds)
      .exec()
      .catch(this.#onError);
  }
}

/** The chunks after `afterId` ("0-0" for all) that are there now. */
export async function readTokens(redis: Redis, jobId: string, afterId = "0-0"): Promise<TokenChunk[]> {
  const chunks: TokenChunk[] = [];
  for (;;) {
    const entries = await redis.xrange(keys.tokenStream(jobId), `(${chunks.at(-1)?.id ?? afterId}`, "+", "COUNT", PAGE);
    chunks.push(...entries.map(toChunk));
    if (entries.length < PAGE) return chunks;
  }
}

/**
 * The next chunks of any of these jobs, each after its own id; waits for one for up to `blockMs`, or until `wakeTokenReader`. `blocking` is a
 * connection of its own.
 */
export async function nextTokens(
  blocking: Redis,
  afterIds: ReadonlyMap<string, string>,
  wake: { readerId: string; afterId: string },
  blockMs: number,
): Promise<{ chunks: Map<string, TokenChunk[]>; wakeId: string }> {
  const jobIds = [...afterIds.keys()];
  const names = [...jobIds.map((jobId) => keys.tokenStream(jobId)), wakeKey(wake.readerId)];
  const streams = await blocking.xread("COUNT", PAGE, "BLOCK", blockMs, "STREAMS", ...names, ...afterIds.values(), wake.afterId);
  const chunks = new Map<string, TokenChunk[]>();
  let wakeId = wake.afterId;
  for (const [name, entries] of streams ?? []) {
    const jobId = jobIds[names.indexOf(name)];
    if (jobId === undefined) wakeId = entries.at(-1)?.[0] ?? wakeId;
    else chunks.set(jobId, entries.map(toChunk));
  }
  return { chunks, wakeId };
}

const WAKE_SECONDS = 60;

const wakeKey = (readerId: string) => `${KEY_PREFIX}:token-wake:${readerId}`;

/** Ends the wait of the reader of this id, now or when it next waits. */
export async function wakeTokenReader(redis: Redis, readerId: string): Promise<void> {
  const key = wakeKey(readerId);
  await redis.multi().xadd(key, "MAXLEN", 1, "*", "wake", "1").expire(key, WAKE_SECONDS).exec();
}

function toChunk([id, [, role, , text, , attempt, , sample]]: [string, string[]]): TokenChunk {
  return { id, role: role as Role, attempt: Number(attempt ?? 1), sample: sample ? Number(sample) : null, text: text ?? "" };
}
