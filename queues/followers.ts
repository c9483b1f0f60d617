import type { Job } from "bullmq";
import { gradeOf } from "../maths/grading.ts";
import { cancelledAt } from "./cancellation.ts";
import type { Config } from "./config.ts";
import type { JobData, JobView, StageResult } from "./contracts.ts";
import { ERRORS } from "./errors.ts";
import { stageJobs } from "./job-stages.ts";
import { deadlineDetail } from "./job-view.ts";
import { CLASS_PRIORITY, keys } from "./names.ts";
import type { Queues } from "./open-queues.ts";
import {
  endFlight,
  endFollowers,
  type Follower,
  followMany,
  joinFlights,
  moveFollowersOn,
  type NewFollower,
  TAKE_OFF_MS,
  unfollow,
} from "./single-flight.ts";
import { storeJob } from "./store-job.ts";

/**
 * Makes `jobId` follow the job that leads since `since`, which is brought forward if this request is more urgent. False: that job has ended,
 * or never took off, and its flight is over; nobody follows it.
 */
export async function followLeader(
  queues: Queues,
  config: Config,
  jobId: string,
  follower: NewFollower,
  since: number,
  now = Date.now(),
): Promise<boolean> {
  const { isFlying, leader } = await board(queues, jobId, follower, since, now);
  if (isFlying) return true;
  await unfollow(queues.redis, jobId, follower.leaderId);
  await land(queues, config, follower, leader);
  return false;
}

/** `isFlying`: the leader is on its way, and will find its follower. */
async function board(
  queues: Queues,
  jobId: string,
  follower: NewFollower,
  since: number,
  now = Date.now(),
): Promise<{ isFlying: boolean; leader?: Job<JobData, StageResult> }> {
  const { data, leaderId } = follower;
  if (data.deadlineAt !== undefined) await queues.redis.zadd(keys.deadlines, data.deadlineAt, jobId);
  // The record first, the look after it: a leader that ends from now on finds its follower.
  await followMany(queues.redis, [{ jobId, follower }]);
  const stages = await stageJobs(queues, leaderId);
  const leader = stages.find(({ id }) => id === leaderId);
  const isFlying = leader === undefined ? now - since <= TAKE_OFF_MS : leader.finishedOn === undefined;
  for (const job of isFlying ? stages : []) {
    const waits = job.finishedOn === undefined && job.processedOn === undefined;
    if (waits && job.priority > CLASS_PRIORITY[data.priority]) await job.changePriority({ priority: CLASS_PRIORITY[data.priority] });
  }
  return { isFlying, leader };
}

/** The leader has ended, or never took off. */
async function land(queues: Queues, config: Config, { data, leaderId }: NewFollower, leader?: Job<JobData, StageResult>): Promise<void> {
  if (leader !== undefined) return landJob(queues, config, leader);
  await endFlight(queues.redis, data.flightKey!, leaderId);
  await moveOn(queues, config, leaderId);
}

/**
 * A client's job has ended: the next identical request leads a flight of its own, followers that got no answer go on, and what is kept
 * beside the job expires with it. Done again it changes nothing.
 */
export async function landJob(queues: Queues, config: Config, job: Job<JobData, StageResult>): Promise<void> {
  const { data, failedReason } = job;
  const jobId = job.id!;
  if (data.flightKey !== undefined) {
    await endFlight(queues.redis, data.flightKey, jobId);
    if (failedReason && (await endedForItself(queues, jobId, data))) await moveOn(queues, config, jobId);
    else await endFollowers(queues.redis, jobId, config.jobRetentionSeconds);
  }
  if (data.idempotencyDigest !== undefined) {
    await queues.redis.expire(keys.idempotency(data.idempotencyDigest), config.jobRetentionSeconds);
  }
}

/**
 * The followers of a leader that ended without an answer of its own accord, and whose flight is over, go on without it. Several may see to that
 * at once: which of them leads is settled by the flight.
 */
export async function moveOn(queues: Queues, config: Config, leaderId: string, also: string[] = []): Promise<void> {
  const goOn = async (jobId: string, data: JobData) => {
    const [flight] = await joinFlights(queues.redis, [{ flightKey: data.flightKey!, jobId }]);
    if (flight!.leaderId === jobId) {
      await storeJob(queues, config, jobId, data);
      await unfollow(queues.redis, jobId, leaderId);
      return;
    }
    const follower = { leaderId: flight!.leaderId, data };
    const { isFlying, leader } = await board(queues, jobId, follower, flight!.since);
    if (!isFlying) await land(queues, config, follower, leader);
  };
  await moveFollowersOn(queues.redis, leaderId, config.jobRetentionSeconds, goOn, also);
}

/** Whether a job that failed did so for its own requester's sake: then its followers still want their answer. */
async function endedForItself(
  queues: Queues,
  jobId: string,
  { deadlineAt }: Pick<JobData, "deadlineAt">,
  now = Date.now(),
): Promise<boolean> {
  return (deadlineAt !== undefined && deadlineAt <= now) || (await cancelledAt(queues.redis, jobId)) !== null;
}

/** A follower's view, made from its leader's. Pure. */
export function followerView(
  jobId: string,
  { data }: Follower,
  leader: JobView | undefined,
  cancelled: number | null,
  now: number,
): JobView {
  const own = {
    jobId,
    model: data.kind === "talk" ? ("talker" as const) : ("student" as const),
    priority: data.priority,
    metadata: data.metadata ?? {},
    links: { self: `/jobs/${jobId}` },
  };
  const waiting: JobView = {
    ...own,
    status: "waiting",
    stages: [],
    position: null,
    estimatedStartMs: null,
    reason: null,
    timestamps: { acceptedAt: data.acceptedAt, pickedAt: null, firstTokenAt: null, finishedAt: null },
    result: null,
    error: null,
  };
  const view: JobView =
    leader === undefined ? waiting : { ...leader, ...own, timestamps: { ...leader.timestamps, acceptedAt: data.acceptedAt } };
  const endedAt = view.timestamps.finishedAt ?? Number.POSITIVE_INFINITY;
  const ended = (status: "cancelled" | "failed", code: "cancelled" | "deadline-exceeded", detail: string, at: number): JobView => ({
    ...view,
    status,
    position: null,
    estimatedStartMs: null,
    reason: null,
    result: null,
    error: { code, title: ERRORS[code].title, detail },
    timestamps: { ...view.timestamps, finishedAt: at },
  });
  if (cancelled !== null && cancelled < endedAt) return ended("cancelled", "cancelled", "Cancelled on request.", cancelled);
  if (data.deadlineAt !== undefined && data.deadlineAt <= now && data.deadlineAt < endedAt) {
    return ended("failed", "deadline-exceeded", deadlineDetail(data, null), data.deadlineAt);
  }
  if (view.result === null) return view;
  return { ...view, result: { ...view.result, coalesced: true, grade: gradeOf(data.expected, view.result.answer) } };
}
