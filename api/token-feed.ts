import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Redis } from "../queues/connection.ts";
import { nextTokens, readTokens, type TokenChunk, wakeTokenReader } from "../queues/token-stream.ts";
import { isAfter } from "./gpu-event-feed.ts";

const BLOCK_MS = 5000;
const RETRY_MS = 100;

/** One job's chunks: those that were there first, then what comes. `stop` ends it. */
export interface TokenFollower {
  onChunks: (chunks: TokenChunk[]) => void;
  lastId: string;
}

/** Reads the token streams of all jobs that somebody of this process listens to, over one blocking connection. */
export class TokenFeed {
  readonly #redis: Redis;
  readonly #blocking: Redis;
  readonly #onError: (error: Error) => void;
  readonly #blockMs: number;
  readonly #readerId = randomUUID();
  readonly #followers = new Map<string, Set<TokenFollower>>();
  #closed = false;
  #reading = false;

  /** `blocking` is a connection of its own, closed by the caller after `close`; `redis` never waits. */
  constructor(redis: Redis, blocking: Redis, onError: (error: Error) => void, blockMs = BLOCK_MS) {
    this.#redis = redis;
    this.#blocking = blocking;
    this.#onError = onError;
    this.#blockMs = blockMs;
  }

  /** Hands `onChunks` every chunk of the job after `follower.lastId`, in order and once, until `unfollow`. */
  follow(jobId: string, follower: TokenFollower): void {
    const followers = this.#followers.get(jobId) ?? new Set();
    this.#followers.set(jobId, followers.add(follower));
    if (this.#reading) wakeTokenReader(this.#redis, this.#readerId).catch(this.#onError);
    else {
      this.#reading = true;
      void this.#read();
    }
  }

  /** Nothing more comes by itself. Resolves when everything that is in Redis by now was handed over. */
  async drain(jobId: string, follower: TokenFollower): Promise<void> {
    this.unfollow(jobId, follower);
    handOver(follower, await readTokens(this.#redis, jobId, follower.lastId));
  }

  unfollow(jobId: string, follower: TokenFollower): void {
    const followers = this.#followers.get(jobId);
    followers?.delete(follower);
    if (followers?.size === 0) this.#followers.delete(jobId);
  }

  /** How many jobs are read. */
  get following(): number {
    return this.#followers.size;
  }

  close(): void {
    this.#closed = true;
    this.#followers.clear();
  }

  async #read(): Promise<void> {
    let wakeId = "0-0";
    while (!this.#closed && this.#followers.size > 0) {
      try {
        const afterIds = new Map([...this.#followers].map(([jobId, followers]) => [jobId, earliest(followers)]));
        const read = await nextTokens(this.#blocking, afterIds, { readerId: this.#readerId, afterId: wakeId }, this.#blockMs);
        wakeId = read.wakeId;
        for (const [jobId, chunks] of read.chunks) {
          for (const follower of this.#followers.get(jobId) ?? []) handOver(follower, chunks);
        }
      } catch (error) {
        if (this.#closed) return;
        this.#onError(error as Error);
        await delay(RETRY_MS);
      }
    }
    this.#reading = false;
  }
}

function handOver(follower: TokenFollower, chunks: TokenChunk[]): void {
  const unheard = chunks.filter(({ id }) => isAfter(id, follower.lastId));
  if (unheard.length === 0) return;
  follower.lastId = unheard.at(-1)!.id;
  follower.onChunks(unheard);
}

function earliest(followers: Set<TokenFollower>): string {
  return [...followers].map(({ lastId }) => lastId).reduce((first, id) => (isAfter(first, id) ? id : first));
}
