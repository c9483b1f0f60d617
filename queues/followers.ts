import { cancelledAt } from "./cancellation.ts";
import type { Config } from "./config.ts";
import type { JobData, JobView } from "./contracts.ts";
import { ERRORS } from "./errors.ts";
import { deadlineDetail } from "./job-view.ts";
import { CLASS_PRIORITY, isExplainId, keys, type PriorityClass, roleOfJobId, studentStageId } from "./names.ts";
import type { Queues } from "./open-queues.ts";
import { type Follower, follow, moveFollowersOn } from "./single-flight.ts";
import { storeJob } from "./store-job.ts";

/** Makes `jobId` follow the leader's job, which is brought forward if this request is more urgent. */
export async function followLeader(queues: Queues, config: Config, jobId: string, follower: Follower): Promise<void> {
  const { data, leaderId } = follower;
  if (data.deadlineAt !== undefined) await queues.redis.zadd(keys.deadlines, data.deadlineAt, jobId);
  await follow(queues.redis, jobId, follower, config.jobRetentionSeconds);
  await bringForward(queues, leaderId, data.priority);
}

async function bringForward(queues: Queues, leaderId: string, name: PriorityClass): Promise<void> {
  const stages = isExplainId(leaderId)
    ? [queues.student.getJob(studentStageId(leaderId)), queues.talker.getJob(leaderId)]
    : [queues[roleOfJobId(leaderId) ?? "student"].getJob(leaderId)];
  for (const job of await Promise.all(stages)) {
    const waits = job !== undefined && job.finishedOn === undefined && job.processedOn === undefined;
    if (waits && job.priority > CLASS_PRIORITY[name]) await job.changePriority({ priority: CLASS_PRIORITY[name] });
  }
}

/** The followers of a leader that ended without an answer of its own accord go on without it. */
export async function moveOn(queues: Queues, config: Config, leaderId: string, also: string[] = []): Promise<void> {
  await moveFollowersOn(queues.redis, leaderId, config.jobRetentionSeconds, (jobId, data) => storeJob(queues, config, jobId, data), also);
}

/** Whether a job that failed did so for its own requester's sake: then its followers still want their answer. */
export async function endedForItself(
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
  return view.result === null ? view : { ...view, result: { ...view.result, coalesced: true } };
}
