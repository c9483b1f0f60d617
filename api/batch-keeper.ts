import { setTimeout as delay } from "node:timers/promises";
import { publishedModels } from "../queues/answer-cache.ts";
import { batchJobId } from "../queues/batch-ids.ts";
import { endedViews, type JobProgress, type JobRef, progressOf } from "../queues/batch-jobs.ts";
import { type BatchLines, LINE, type LineRecord, type Settled, type SharedResult } from "../queues/batch-lines.ts";
import type { BatchRecord, BatchStore } from "../queues/batch-store.ts";
import { requestCancel } from "../queues/cancellation.ts";
import type { Config } from "../queues/config.ts";
import { type JobError, type JobView, TERMINAL_STATUSES } from "../queues/contracts.ts";
import { ERRORS, type ErrorCode } from "../queues/errors.ts";
import { followerView, moveOn } from "../queues/followers.ts";
import { keys, roleOfJobId } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import { endFlight, type Follower, readFollowers, unfollow } from "../queues/single-flight.ts";
import type { JobLookup } from "./job-lookup.ts";

/** Open lines are looked at this many at once. */
const GROUP = 500;
const TICK_MS = 1000;
/** After a look that takes longer than this comes a pause: looking takes at most one part in `PACE` of the time, and no pause is longer than that. */
const SHORT_LOOK_MS = 50;
const PACE = 10;
const LONGEST_PAUSE_MS = 3000;

interface Look {
  running: Promise<void> | null;
  endedAt: number;
  tookMs: number;
  /** The last line that waits. */
  lastWaiting: string | null;
}

interface OpenLine extends JobRef {
  index: number;
}

/**
 * Sees to it that every line of every batch is settled when its job has ended, and every batch finished when its lines have. It looks at what
 * stands in Redis and needs no one to tell it: a death loses nothing, and several API processes can do it side by side.
 */
export class BatchKeeper {
  readonly #store: BatchStore;
  readonly #queues: Queues;
  readonly #config: Config;
  readonly #lookup: JobLookup;
  readonly #onError: (error: Error) => void;
  readonly #looks = new Map<string, Look>();
  readonly #closing = new AbortController();

  constructor(deps: { store: BatchStore; queues: Queues; config: Config; lookup: JobLookup; onError: (error: Error) => void }) {
    this.#store = deps.store;
    this.#queues = deps.queues;
    this.#config = deps.config;
    this.#lookup = deps.lookup;
    this.#onError = deps.onError;
  }

  start(): void {
    void this.#run();
  }

  close(): void {
    this.#closing.abort();
  }

  get closed(): boolean {
    return this.#closing.signal.aborted;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    const report = (error: unknown) => {
      if (!signal.aborted) this.#onError(error as Error);
    };
    while (!signal.aborted) {
      try {
        const batchIds = await this.#store.openIds();
        for (const batchId of batchIds) if (!signal.aborted) await this.look(batchId).catch(report);
        for (const batchId of this.#looks.keys()) if (!batchIds.includes(batchId)) this.#looks.delete(batchId);
      } catch (error) {
        report(error);
      }
      await delay(TICK_MS, undefined, { signal, ref: false }).catch(() => {});
    }
  }

  /** Settles what has ended, unless that was done just now. undefined: there is no such batch. */
  async look(batchId: string): Promise<{ batch: BatchRecord; lastWaiting: string | null } | undefined> {
    const batch = await this.#store.read(batchId);
    if (batch === undefined || batch.finishedAt !== null) return batch && { batch, lastWaiting: null };
    const look = this.#looks.get(batchId) ?? { running: null, endedAt: Number.NEGATIVE_INFINITY, tookMs: 0, lastWaiting: null };
    this.#looks.set(batchId, look);
    const startedAt = performance.now();
    const pauseMs = look.tookMs < SHORT_LOOK_MS ? 0 : Math.min(PACE * look.tookMs, LONGEST_PAUSE_MS);
    if (look.running === null && startedAt - look.endedAt >= pauseMs) {
      look.running = this.#settle(batch, look).finally(() => {
        look.running = null;
        look.endedAt = performance.now();
        look.tookMs = look.endedAt - startedAt;
      });
    }
    await look.running;
    const now = await this.#store.read(batchId);
    return now && { batch: now, lastWaiting: look.lastWaiting };
  }

  /** Removes jobs of lines that were never recorded, since the batch had been cancelled meanwhile. */
  async withdraw(lines: OpenLine[]): Promise<void> {
    await this.#removeFollowers(lines);
    for (const line of lines) await this.#remove(line);
  }

  async #settle(batch: BatchRecord, look: Look): Promise<void> {
    const { batchId } = batch;
    await this.#store.seeModels(batch, await publishedModels(this.#queues.redis));
    if (batch.cancelledAt !== null) await this.#cancelOpen(batchId, await this.#store.lines(batchId));
    const lines = await this.#store.lines(batchId);
    let active = 0;
    let unsettled = 0;
    let lastWaiting: string | null = null;
    for (const group of openGroups(batchId, lines)) {
      const progress = await progressOf(this.#queues.redis, group);
      const is = (wanted: JobProgress) => group.filter((_, i) => progress[i] === wanted);
      const answers = new Map<string, SharedResult>();
      const settled = [
        ...(await this.#endedLines(is("ended"))),
        ...(await this.#endedFollowers(is("missing"), batch.cancelledAt !== null, answers)),
      ];
      await this.#store.settle(batchId, settled, answers);
      active += is("active").length;
      unsettled += group.length - settled.length;
      lastWaiting = is("waiting").at(-1)?.jobId ?? lastWaiting;
    }
    look.lastWaiting = lastWaiting;
    await this.#store.setActive(batchId, active);
    const isAbandoned = Date.now() - batch.touchedAt > this.#config.jobRetentionSeconds * 1000;
    if (batch.uploadedAt === null && isAbandoned) await this.#store.closeUpload(batchId);
    // What was read first is from before: lines may have come since, unless none could.
    if (batch.uploadedAt !== null && unsettled === 0) await this.#store.finish(batch, this.#jobsOf(batch, lines));
  }

  async #endedLines(lines: OpenLine[]): Promise<Settled[]> {
    const views = await endedViews(
      this.#queues,
      lines.map(({ jobId }) => jobId),
    );
    return lines.flatMap(({ index, jobId }): Settled[] => {
      const view = views.get(jobId);
      if (view === undefined || !TERMINAL_STATUSES.includes(view.status)) return [];
      const job = { jobId, finishedAt: view.timestamps.finishedAt ?? Date.now() };
      return [{ index, state: stateOf(view), verdict: view.result?.grade?.verdict, job }];
    });
  }

  /** Followers that have ended, each with its leader or by itself; and lines whose job is gone. */
  async #endedFollowers(lines: OpenLine[], isCancelled: boolean, answers: Map<string, SharedResult>): Promise<Settled[]> {
    if (lines.length === 0) return [];
    const { redis } = this.#queues;
    const [followers, cancels] = await Promise.all([
      readFollowers(
        redis,
        lines.map(({ jobId }) => jobId),
      ),
      redis.mget(lines.map(({ jobId }) => keys.cancelled(jobId))),
    ]);
    const leaderIds = [...new Set(followers.flatMap((follower) => follower?.leaderId ?? []))];
    const progress = await progressOf(
      redis,
      leaderIds.map((jobId) => ({ jobId, isVote: false })),
    );
    const progressOfLeader = new Map(leaderIds.map((jobId, i) => [jobId, progress[i]!]));
    const leaders = await endedViews(
      this.#queues,
      leaderIds.filter((_, i) => progress[i] === "ended"),
    );
    const now = Date.now();
    const settled: Settled[] = [];
    for (const [i, { index, jobId }] of lines.entries()) {
      const follower = followers[i];
      const view =
        follower === undefined
          ? await this.#viewOfLost(jobId, isCancelled)
          : await this.#viewOfFollower(jobId, follower, leaders, progressOfLeader, cancels[i] == null ? null : Number(cancels[i]), now);
      if (view === undefined || !TERMINAL_STATUSES.includes(view.status)) continue;
      const { result, error } = view;
      const answer = result === null ? undefined : follower?.leaderId;
      if (result !== null && answer !== undefined) answers.set(answer, { ...result, grade: null });
      const status = view.status as LineRecord["status"];
      const record: LineRecord = { jobId, status, answer, grade: result?.grade ?? undefined, error: error ?? undefined };
      settled.push({ index, state: stateOf(view), verdict: result?.grade?.verdict, record });
    }
    return settled;
  }

  async #viewOfFollower(
    jobId: string,
    follower: Follower,
    leaders: Map<string, JobView>,
    progress: Map<string, JobProgress>,
    cancelledAt: number | null,
    now: number,
  ): Promise<JobView | undefined> {
    const leader = leaders.get(follower.leaderId);
    const hasLeft = leader?.status === "cancelled" || leader?.error?.code === "deadline-exceeded";
    const view = followerView(jobId, follower, hasLeft ? undefined : leader, cancelledAt, now);
    const isAlone = hasLeft || progress.get(follower.leaderId) === "missing";
    // A look at it moves it on.
    return isAlone && view.status === "waiting" ? this.#lookup.view(jobId) : view;
  }

  /** Neither a job nor a follower: it has become a job just now, or it is gone. */
  async #viewOfLost(jobId: string, isCancelled: boolean): Promise<Pick<JobView, "status" | "result" | "error"> | undefined> {
    const view = await this.#lookup.view(jobId);
    if (view !== undefined) return view;
    if (isCancelled) return { status: "cancelled", result: null, error: errorOf("cancelled", "Cancelled on request.") };
    const detail = "Its job is gone: it was removed from its queue, or ended so long ago that it has expired.";
    return { status: "failed", result: null, error: errorOf("unknown-job", detail) };
  }

  /** Followers first: a job that goes would make one of them a job in its place. */
  async #cancelOpen(batchId: string, open: BatchLines): Promise<void> {
    const cancelled = (lines: OpenLine[]) =>
      lines.map(({ index, jobId }): Settled => {
        const error = errorOf("cancelled", "Cancelled on request.");
        return { index, state: LINE.cancelled, record: { jobId, status: "cancelled", error } };
      });
    for (const group of openGroups(batchId, open)) await this.#store.settle(batchId, cancelled(await this.#removeFollowers(group)));
    for (const group of openGroups(batchId, open)) {
      const progress = await progressOf(this.#queues.redis, group);
      const removed = await Promise.all(
        group.map(async (line, i) => (progress[i] === "waiting" || progress[i] === "active") && (await this.#remove(line))),
      );
      await this.#store.settle(batchId, cancelled(group.filter((_, i) => removed[i])));
    }
  }

  /** Returns those that were followers. */
  async #removeFollowers(lines: OpenLine[]): Promise<OpenLine[]> {
    const followers = await readFollowers(
      this.#queues.redis,
      lines.map(({ jobId }) => jobId),
    );
    const following = lines.filter((_, i) => followers[i] !== undefined);
    await Promise.all(
      lines.map(async ({ jobId }, i) => followers[i] && (await unfollow(this.#queues.redis, jobId, followers[i].leaderId))),
    );
    return following;
  }

  /** Takes a job that waits out of its queue; one that runs is cancelled, which takes the worker a moment. Whether it is gone. */
  async #remove({ jobId }: OpenLine): Promise<boolean> {
    const queue = this.#queues[roleOfJobId(jobId) ?? "student"];
    const job = await queue.getJob(jobId);
    if (job === undefined || job.finishedOn !== undefined) return false;
    if ((await queue.remove(jobId)) === 0) {
      if ((await this.#queues.redis.exists(keys.cancelled(jobId))) === 0) await requestCancel(this.#queues, jobId);
      return false;
    }
    const { flightKey } = job.data;
    if (flightKey !== undefined) {
      await endFlight(this.#queues.redis, flightKey, jobId);
      await moveOn(this.#queues, this.#config, jobId);
    }
    return true;
  }

  /** The jobs of all lines that had one. */
  async *#jobsOf(batch: BatchRecord, lines: BatchLines): AsyncGenerator<string[]> {
    for (let from = 0; from < lines.to; from += GROUP) {
      const indexes = Array.from({ length: Math.min(GROUP, lines.to - from) }, (_, i) => from + i);
      yield indexes.filter((index) => lines.stateOf(index) !== LINE.invalid).map((index) => lineOf(batch.batchId, lines, index).jobId);
    }
  }
}

export function lineOf(batchId: string, lines: BatchLines, index: number): OpenLine {
  const { kind, isVote } = lines.kindOf(index);
  return { index, jobId: batchJobId(kind, batchId, index), isVote };
}

function stateOf({ status }: Pick<JobView, "status">): Settled["state"] {
  return status === "completed" ? LINE.completed : status === "cancelled" ? LINE.cancelled : LINE.failed;
}

function errorOf(code: ErrorCode, detail: string): JobError {
  return { code, title: ERRORS[code].title, detail };
}

/** The open lines, some at a time: of a large batch they are not all held at once. */
function* openGroups(batchId: string, lines: BatchLines): Generator<OpenLine[]> {
  let group: OpenLine[] = [];
  for (const index of lines.open()) {
    if (group.push(lineOf(batchId, lines, index)) < GROUP) continue;
    yield group;
    group = [];
  }
  if (group.length > 0) yield group;
}
