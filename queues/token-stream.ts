import type { Redis } from "./connection.ts";
import { keys } from "./names.ts";

/**
 * The text of one stage as it is written, as a Redis stream of chunks, so that a late listener gets the whole story.
 * Chunks are gathered for `FLUSH_MS`: one XADD per token would cost more than the token.
 */
const FLUSH_MS = 40;

export interface TokenChunk {
  /** The stream's entry id: a reader resumes after it. */
  id: string;
  role: string;
  text: string;
}

/** Writes one stage's chunks. `end` writes what is left; nothing of it may fail a job, so errors go to `onError`. */
export class TokenStreamWriter {
  readonly #redis: Redis;
  readonly #key: string;
  readonly #role: string;
  readonly #ttlSeconds: number;
  readonly #onError: (error: Error) => void;
  #pending = "";
  #timer: NodeJS.Timeout | undefined;

  constructor(redis: Redis, jobId: string, role: string, ttlSeconds: number, onError: (error: Error) => void) {
    this.#redis = redis;
    this.#key = keys.tokenStream(jobId);
    this.#role = role;
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
      .xadd(this.#key, "*", "role", this.#role, "text", text)
      .expire(this.#key, this.#ttlSeconds)
      .exec()
      .catch(this.#onError);
  }
}

/** The chunks after `afterId` ("0" for all) that are there now. */
export async function readTokens(redis: Redis, jobId: string, afterId = "0"): Promise<TokenChunk[]> {
  const entries = await redis.xrange(keys.tokenStream(jobId), afterId === "0" ? "-" : `(${afterId}`, "+");
  return entries.map(([id, fields]) => ({ id, role: fields[1] ?? "", text: fields[3] ?? "" }));
}
