import type { AnswerCache } from "../queues/answer-cache.ts";
import { cachedView } from "../queues/cached-view.ts";
import { cancelledAt } from "../queues/cancellation.ts";
import type { Config } from "../queues/config.ts";
import type { JobView } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { followerView, moveOn } from "../queues/followers.ts";
import { loadJobView } from "../queues/job-view.ts";
import { cacheEntryOf, roleOfJobId } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import { endFlight, type Follower, readFollower, TAKE_OFF_MS } from "../queues/single-flight.ts";

export function unknownJob(): MathllmError {
  return new MathllmError("unknown-job", "No job has this id: it was never accepted here, or it ended and has expired.");
}

/** Finds what an id stands for: a job, an answer in the cache, or a request that follows another's job. */
export class JobLookup {
  readonly #queues: Queues;
  readonly #config: Config;
  readonly #cache: AnswerCache;

  constructor(queues: Queues, config: Config, cache: AnswerCache) {
    this.#queues = queues;
    this.#config = config;
    this.#cache = cache;
  }

  /** undefined: unknown or expired. */
  async view(jobId: string, now = Date.now()): Promise<JobView | undefined> {
    const cached = cacheEntryOf(jobId);
    if (cached !== undefined) {
      const entry = await this.#cache.get(cached.cacheKey);
      return entry && cachedView(cached.kind, cached.cacheKey, entry);
    }
    const own = await loadJobView(this.#queues, jobId, now);
    if (own !== undefined) return own;
    const follower = await readFollower(this.#queues.redis, jobId);
    return follower && this.#followerView(jobId, follower, now);
  }

  /** Whether an API key's holder may see it: its own job, an answer from the cache, or an id that stands for nothing. */
  async isVisibleTo(owner: string, jobId: string): Promise<boolean> {
    const role = roleOfJobId(jobId);
    if (role === undefined) return true;
    const data = (await this.#queues[role].getJob(jobId))?.data ?? (await readFollower(this.#queues.redis, jobId))?.data;
    return data === undefined || data.owner === owner;
  }

  /** The job that this one follows; undefined when it follows none. */
  async leaderOf(jobId: string): Promise<string | undefined> {
    return (await readFollower(this.#queues.redis, jobId))?.leaderId;
  }

  async #followerView(jobId: string, follower: Follower, now: number): Promise<JobView | undefined> {
    const leader = await loadJobView(this.#queues, follower.leaderId, now);
    const cancelled = await cancelledAt(this.#queues.redis, jobId);
    const missing = leader === undefined && now - follower.data.acceptedAt > TAKE_OFF_MS;
    const left = leader?.status === "cancelled" || leader?.error?.code === "deadline-exceeded";
    if (!missing && !left) return followerView(jobId, follower, leader, cancelled, now);
    const view = followerView(jobId, follower, undefined, cancelled, now);
    if (view.status !== "waiting") return view;
    // Whoever asks for the same from now on leads a flight of its own, instead of following one that never took off.
    const { flightKey } = follower.data;
    if (flightKey !== undefined) await endFlight(this.#queues.redis, flightKey, follower.leaderId);
    await moveOn(this.#queues, this.#config, follower.leaderId, [jobId]);
    const moved = await loadJobView(this.#queues, jobId);
    if (moved !== undefined) return moved;
    const next = await readFollower(this.#queues.redis, jobId);
    return followerView(jobId, next ?? follower, undefined, cancelled, Date.now());
  }
}
