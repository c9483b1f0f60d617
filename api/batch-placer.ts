import { setTimeout as delay } from "node:timers/promises";
import type { AnswerCache } from "../queues/answer-cache.ts";
import type { BatchLineError } from "../queues/batch-contracts.ts";
import { type JobProgress, progressOf } from "../queues/batch-jobs.ts";
import { type Chunk, kindLetter, LINE, type LineRecord, NO_KIND, type SharedResult } from "../queues/batch-lines.ts";
import { cachedView } from "../queues/cached-view.ts";
import type { Config } from "../queues/config.ts";
import type { JobRequest, JobView } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { followLeader, moveOn } from "../queues/followers.ts";
import { type JobOwner, releasePlace, takePlace } from "../queues/job-places.ts";
import { type JobKind, PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import { countFollowing, endFlight, followMany, joinFlights, unfollow } from "../queues/single-flight.ts";
import { storeJobs } from "../queues/store-job.ts";
import type { AnswerLookup, Lookup } from "./answer-lookup.ts";
import { jobData, place } from "./submission.ts";

const ROOM_LOOK_MS = 200;
const RETRY_AFTER_SECONDS = 30;

/** How long an upload may still wait for room in the queues, all its chunks together. */
export interface Patience {
  leftMs: number;
}

export interface PlacedLine {
  line: number;
  index: number;
  customId: string | null;
  request: JobRequest;
  kind: JobKind;
  jobId: string;
}

export interface PlaceOptions {
  owner?: JobOwner;
  /** An upload that died may have stored some of them. */
  mayBeThere: boolean;
  patience: Patience;
}

export interface Placed {
  /** Answers from the cache, by index. All other lines are jobs, or follow one. */
  cached: Map<number, JobView>;
  coalesced: number;
}

/**
 * Does for many requests at once what a submission does for one: what the cache knows never becomes a job, what is in flight is followed, the
 * rest is stored, each in a few round trips for all of them. When `place` resolves, that has happened.
 */
export class BatchPlacer {
  readonly #queues: Queues;
  readonly #config: Config;
  readonly #answers: { lookup: AnswerLookup; cache: AnswerCache };
  /** One chunk at a time looks for room and fills it. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(queues: Queues, config: Config, answers: { lookup: AnswerLookup; cache: AnswerCache }) {
    this.#queues = queues;
    this.#config = config;
    this.#answers = answers;
  }

  async place(lines: PlacedLine[], options: PlaceOptions): Promise<Placed> {
    const turn = this.#turn.then(() => this.#place(lines, options));
    this.#turn = turn.catch(() => {});
    return turn;
  }

  async #place(all: PlacedLine[], { owner, mayBeThere, patience }: PlaceOptions): Promise<Placed> {
    const { redis } = this.#queues;
    const { cache } = this.#answers;
    const acceptedAt = Date.now();
    const placed: Placed = { cached: new Map(), coalesced: 0 };
    const there = mayBeThere ? await this.#progress(all.map(({ jobId }) => jobId)) : new Map<string, JobProgress>();
    const sought = all.filter(({ jobId }) => (there.get(jobId) ?? "missing") === "missing");
    const found = await this.#find(sought);
    const take = (lines: PlacedLine[], lookups: Map<PlacedLine, Lookup>): PlacedLine[] =>
      lines.filter((line) => {
        const { hit = null } = lookups.get(line) ?? {};
        if (hit === null) return true;
        cache.count("hit");
        placed.cached.set(line.index, cachedView(line.kind, hit.cacheKey, hit.entry, { request: line.request, at: acceptedAt }));
        return false;
      });
    const unknown = take(sought, found);
    await this.#patiently(patience, () => this.#checkRoom(unknown));
    if (owner !== undefined) await this.#patiently(patience, () => this.#takePlaces(unknown, owner));

    const flightOf = (line: PlacedLine) => found.get(line)!.flightKey;
    const flying = unknown.filter((line) => flightOf(line) !== null);
    const flights = await joinFlights(
      redis,
      flying.map((line) => ({ flightKey: flightOf(line)!, jobId: line.jobId, answerKey: found.get(line)!.answerKey })),
      acceptedAt,
    );
    const leaderOf = new Map(flying.map((line, i) => [line, flights[i]!.leaderId]));
    const following = flying.filter((line) => leaderOf.get(line) !== line.jobId);
    const isFollowing = new Set(following);
    const leading = flying.filter((line) => !isFollowing.has(line));
    // The one before may have landed between the look and the start: its answer is in the cache by now.
    const landed = await this.#find(leading);
    const stillLeading = new Set(take(leading, landed));
    const hasLanded = new Set(leading.filter((line) => !stillLeading.has(line)));

    const dataOf = (line: PlacedLine) => jobData(line.kind, line.request, acceptedAt, { owner }, found.get(line)!, null);
    const jobs = unknown.filter((line) => !isFollowing.has(line) && !hasLanded.has(line));
    for (const line of jobs) if (found.get(line)!.isCacheable) cache.count("miss");
    await storeJobs(
      this.#queues,
      this.#config,
      jobs.map((line) => ({ jobId: line.jobId, data: dataOf(line) })),
    );
    await followMany(
      redis,
      following.map((line) => ({ jobId: line.jobId, follower: { leaderId: leaderOf.get(line)!, data: dataOf(line) } })),
    );
    for (const line of hasLanded) {
      await endFlight(redis, flightOf(line)!, line.jobId);
      await moveOn(this.#queues, this.#config, line.jobId);
    }
    // The followers' records first, the look after it: a leader that ends from now on finds them.
    const leaders = await this.#progress([...new Set(following.map((line) => leaderOf.get(line)!))]);
    for (const line of following) {
      const leaderId = leaderOf.get(line)!;
      const progress = leaders.get(leaderId)!;
      if (progress === "ended" || progress === "missing") {
        await unfollow(redis, line.jobId, leaderId);
        const { cached } = await place(this.#queues, this.#config, line.jobId, line.request, acceptedAt, { owner, answers: this.#answers });
        if (cached !== null) placed.cached.set(line.index, cached);
      } else {
        placed.coalesced++;
        cache.count("coalesced");
        // It may be more urgent than its leader.
        if (line.request.priority !== "batch") {
          await followLeader(this.#queues, this.#config, line.jobId, { leaderId, data: dataOf(line) }, acceptedAt);
        }
      }
    }
    return placed;
  }

  async #find(lines: PlacedLine[]): Promise<Map<PlacedLine, Lookup>> {
    const lookups = await this.#answers.lookup.findMany(lines);
    return new Map(lines.map((line, i) => [line, lookups[i]!]));
  }

  async #progress(jobIds: string[]): Promise<Map<string, JobProgress>> {
    const progress = await progressOf(
      this.#queues.redis,
      jobIds.map((jobId) => ({ jobId, isVote: false })),
    );
    return new Map(jobIds.map((jobId, i) => [jobId, progress[i]!]));
  }

  /** Tries again while there is no room. */
  async #patiently(patience: Patience, attempt: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof MathllmError)) throw error;
        if (patience.leftMs <= 0) {
          throw new MathllmError(error.code, error.message, { extra: { retryAfterSeconds: RETRY_AFTER_SECONDS } });
        }
        await delay(ROOM_LOOK_MS);
        patience.leftMs -= ROOM_LOOK_MS;
      }
    }
  }

  /** Throws `queue-full`. A chunk that can never fit is let in when nothing of its class waits. */
  async #checkRoom(lines: PlacedLine[]): Promise<void> {
    const [backlog, following] = await Promise.all([this.#queues.readBacklog(Date.now()), countFollowing(this.#queues.redis)]);
    for (const { role, name, count } of needsOf(lines)) {
      const most = this.#config.maxDepths[name];
      // Any of them may turn out to follow.
      if (following[name] + Math.min(count, most) > most) {
        throw new MathllmError(
          "queue-full",
          `${following[name]} ${name} requests follow identical ones that have not ended, and ${most} may (${name.toUpperCase()}_MAX_DEPTH).`,
        );
      }
      const waiting = backlog[role].waiting[name];
      if (waiting + Math.min(count, most) <= most) continue;
      throw new MathllmError(
        "queue-full",
        `${waiting} ${name} jobs wait for the ${role}, and ${most} may (${name.toUpperCase()}_MAX_DEPTH).`,
      );
    }
  }

  /** All of them or none. Throws `too-many-jobs`. */
  async #takePlaces(lines: PlacedLine[], owner: JobOwner): Promise<void> {
    if (owner.maxJobs === null) return;
    const taken: PlacedLine[] = [];
    try {
      for (const line of lines) {
        await takePlace(this.#queues, owner, line.jobId);
        taken.push(line);
      }
    } catch (error) {
      for (const { jobId } of taken) await releasePlace(this.#queues, owner, jobId);
      throw error;
    }
  }
}

/** How many jobs each queue would get, by class. A sample counts as a job, as in `POST /solve`. */
function needsOf(lines: PlacedLine[]): { role: Role; name: PriorityClass; count: number }[] {
  return ROLES.flatMap((role) =>
    PRIORITY_CLASSES.map((name) => {
      const counts = lines.map(({ kind, request: { priority, samples } }) => {
        if (priority !== name) return 0;
        if (role === "student") return kind === "talk" ? 0 : samples;
        return kind === "solve" ? 0 : 1;
      });
      return { role, name, count: counts.reduce<number>((sum, count) => sum + count, 0) };
    }),
  ).filter(({ count }) => count > 0);
}

/** What is recorded of a chunk that begins at `from`, its lines placed. */
export function recordOf(digest: string, from: number, lines: PlacedLine[], errors: BatchLineError[], placed: Placed): Chunk {
  const size = lines.length + errors.length;
  const states = new Array<string>(size).fill(LINE.invalid);
  const kinds = new Array<string>(size).fill(NO_KIND);
  const customIds = new Array<string | null>(size).fill(null);
  const records = new Map<number, LineRecord>();
  const answers = new Map<string, SharedResult>();
  for (const { index, customId, kind, request } of lines) {
    const at = index - from;
    const view = placed.cached.get(index);
    states[at] = view === undefined ? LINE.open : LINE.completed;
    kinds[at] = kindLetter(kind, request.samples > 1);
    customIds[at] = customId;
    if (view?.result == null) continue;
    const { jobId, result } = view;
    records.set(index, { jobId, status: "completed", answer: jobId, grade: result.grade ?? undefined });
    if (!answers.has(jobId)) answers.set(jobId, { ...result, grade: null });
  }
  const { coalesced, cached } = placed;
  return { digest, states: states.join(""), kinds: kinds.join(""), customIds, errors, records, answers, cached: cached.size, coalesced };
}
