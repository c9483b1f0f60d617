import type { Job, JobState } from "bullmq";
import { gradeOf } from "../maths/grading.ts";
import type { QueueBacklog } from "./backlog.ts";
import { cancelledAt } from "./cancellation.ts";
import type { JobData, JobError, JobStatus, JobView, StageResult, Vote, WorkerStatus } from "./contracts.ts";
import { jobDataSchema, stageProgressSchema } from "./contracts.ts";
import { ERRORS, type ErrorCode, parseFailedReason } from "./errors.ts";
import { expectedWaitMs } from "./expected-wait.ts";
import { isVote } from "./job-stages.ts";
import { clientJobId, isExplainId, type Role, roleOfJobId, sampleId, studentStageId } from "./names.ts";
import type { Queues } from "./open-queues.ts";
import { liveWorkers, type Unavailability, unavailability } from "./worker-status.ts";

/** One stage as it stands in BullMQ. */
export interface StageSnapshot {
  role: Role;
  /** The BullMQ job whose turn it is to be picked: the stage's own, or a sample of a vote. */
  id: string;
  state: JobState | "unknown";
  attempts: number;
  pickedAt: number | null;
  firstTokenAt: number | null;
  finishedAt: number | null;
  failedReason: string | null;
  result: StageResult | null;
}

export interface JobSnapshot {
  jobId: string;
  data: JobData;
  /** In the order they run: one, or the Student and then the Talker. */
  stages: StageSnapshot[];
  cancelledAt: number | null;
  /** Jobs picked before the stage that waits; null when none waits. */
  position: number | null;
  estimatedStartMs: number | null;
  /** The queue in which a stage waits. */
  queue: Pick<QueueBacklog, "paused" | "limitedMs"> | null;
  liveWorkers: WorkerStatus[];
  now: number;
}

/** Reads a job and everything its view needs. undefined: unknown or expired. */
export async function loadJobView(queues: Queues, jobId: string, now = Date.now()): Promise<JobView | undefined> {
  const role = roleOfJobId(jobId);
  if (role === undefined) return undefined;
  // The cancel first: what is seen to wait after it can only end as cancelled.
  const cancelled = await cancelledAt(queues.redis, jobId);
  const [loaded, workers] = await Promise.all([loadStage(queues, jobId, role, cancelled), liveWorkers(queues.redis, now)]);
  if (loaded === undefined) return undefined;
  const [own, job] = loaded;
  const child = isExplainId(jobId) ? await loadStudentStage(queues, job, cancelled) : undefined;
  const stages = child === undefined ? [own] : [child, own];
  const waiting = stages.find((stage) => stage.state === "waiting" || stage.state === "prioritized");
  const position = waiting && (await positionOf(queues, waiting.role, waiting.id));
  const data = jobDataSchema.parse(job.data);
  const backlog = waiting === undefined ? null : await queues.readBacklog(now);
  const estimatedStartMs =
    backlog !== null && typeof position === "number" ? expectedWaitMs(waiting!.role, data.priority, position, backlog, workers, now) : null;
  return toJobView({
    jobId,
    data,
    stages,
    cancelledAt: cancelled,
    position: position ?? null,
    estimatedStartMs,
    queue: backlog === null ? null : backlog[waiting!.role],
    liveWorkers: workers,
    now,
  });
}

/**
 * The state first, then the job: an older state beside a newer job is harmless, a final state beside an unfinished job is not. One that was
 * picked after its cancel or deadline, only to be ended, still counts as waiting.
 */
async function loadStage(
  queues: Queues,
  id: string,
  role: Role,
  cancelled: number | null,
): Promise<[StageSnapshot, Job<JobData, StageResult>] | undefined> {
  const seen = await queues[role].getJobState(id);
  const job = await queues[role].getJob(id);
  if (job === undefined) return undefined;
  const never = Number.POSITIVE_INFINITY;
  const isOnlyEnded = (job.processedOn ?? 0) > Math.min(cancelled ?? never, job.data.deadlineAt ?? never);
  const state = seen === "active" && isOnlyEnded ? "waiting" : seen;
  const snapshot: StageSnapshot = {
    role,
    id,
    state,
    attempts: job.attemptsStarted,
    pickedAt: job.processedOn ?? null,
    firstTokenAt: job.returnvalue?.firstTokenAt ?? stageProgressSchema.safeParse(job.progress).data?.firstTokenAt ?? null,
    finishedAt: job.finishedOn ?? null,
    failedReason: job.failedReason || null,
    result: job.returnvalue ?? null,
  };
  return [isVote(job) ? await loadVote(queues, snapshot, job.data, cancelled) : snapshot, job];
}

/** A vote begins with its first sample, and waits, while none runs, where the first waiting sample does. */
async function loadVote(queues: Queues, vote: StageSnapshot, { samples = 0 }: JobData, cancelled: number | null): Promise<StageSnapshot> {
  const counted = vote.result?.vote;
  if (counted !== undefined) return { ...vote, attempts: counted.attempts, pickedAt: counted.pickedAt };
  const jobId = clientJobId(vote.id);
  const loaded = await Promise.all(Array.from({ length: samples }, (_, i) => loadStage(queues, sampleId(jobId, i), "student", cancelled)));
  const drawn = loaded.filter((sample) => sample !== undefined).map(([sample]) => sample);
  const of = (...states: StageSnapshot["state"][]) => drawn.find(({ state }) => states.includes(state));
  const next = of("active") ?? of("waiting", "prioritized") ?? of("delayed");
  return {
    ...vote,
    ...(vote.finishedAt !== null || next === undefined ? {} : { id: next.id, state: next.state }),
    attempts: Math.max(0, ...drawn.map(({ attempts }) => attempts)),
    pickedAt: earliest(drawn.map(({ pickedAt }) => pickedAt)),
    firstTokenAt: earliest(drawn.map(({ firstTokenAt }) => firstTokenAt)),
  };
}

function earliest(times: (number | null)[]): number | null {
  const known = times.filter((time) => time !== null);
  return known.length === 0 ? null : Math.min(...known);
}

/** The child job, or what the parent remembers of it once the child itself has expired. */
async function loadStudentStage(queues: Queues, parent: Job<JobData, StageResult>, cancelled: number | null): Promise<StageSnapshot> {
  const { solved } = parent.data;
  if (solved !== undefined) {
    // From the cache: nothing was computed for this job.
    const none = {
      role: "student",
      id: parent.id!,
      state: "completed",
      attempts: 0,
      pickedAt: null,
      firstTokenAt: null,
      failedReason: null,
    } as const;
    return { ...none, finishedAt: parent.data.acceptedAt, result: { ...solved, usage: { promptTokens: 0, completionTokens: 0 } } };
  }
  const id = studentStageId(parent.id!);
  const child = await loadStage(queues, id, "student", cancelled);
  if (child !== undefined) return child[0];
  const [result] = Object.values(await parent.getChildrenValues<StageResult>());
  const gone = { role: "student", id, attempts: 0, pickedAt: null, firstTokenAt: result?.firstTokenAt ?? null, finishedAt: null } as const;
  return { ...gone, state: result === undefined ? "unknown" : "completed", failedReason: null, result: result ?? null };
}

/** BullMQ takes the `wait` list from its tail (stalled jobs that came back), then `prioritized` in order. */
async function positionOf({ redis, ...queues }: Queues, role: Role, id: string): Promise<number | null> {
  const queue = queues[role];
  const [waitLength, rank, fromTail] = await Promise.all([
    redis.llen(queue.toKey("wait")),
    redis.zrank(queue.toKey("prioritized"), id),
    redis.lpos(queue.toKey("wait"), id, "RANK", -1),
  ]);
  if (fromTail !== null) return waitLength - 1 - fromTail;
  return rank === null ? null : waitLength + rank;
}

/** The public view of a snapshot. Pure. */
export function toJobView(job: JobSnapshot): JobView {
  const { data, stages } = job;
  const last = stages[stages.length - 1]!;
  const outcome = outcomeOf(job);
  const picked = stages.find((stage) => stage.pickedAt !== null);
  const student = stages.find((stage) => stage.role === "student")?.result ?? null;
  const talker = stages.find((stage) => stage.role === "talker")?.result ?? null;
  const results = [student, talker].filter((result) => result !== null);
  return {
    jobId: job.jobId,
    status: outcome.status,
    model: data.kind === "talk" ? "talker" : "student",
    priority: data.priority,
    stages: stages.map((stage) => ({
      model: stage.role,
      status: stageStatus(stage),
      attempts: stage.attempts,
      pickedAt: stage.pickedAt,
      firstTokenAt: stage.firstTokenAt,
      finishedAt: stage.finishedAt,
      truncated: stage.result?.truncated ?? null,
      error: stageError(stage),
    })),
    position: outcome.terminal ? null : job.position,
    estimatedStartMs: outcome.terminal ? null : job.estimatedStartMs,
    reason: outcome.terminal ? null : reasonOf(job),
    timestamps: {
      acceptedAt: data.acceptedAt,
      pickedAt: picked?.pickedAt ?? null,
      firstTokenAt: stages.find((stage) => stage.firstTokenAt !== null)?.firstTokenAt ?? null,
      finishedAt: outcome.terminal ? (last.finishedAt ?? outcome.endedAt) : null,
    },
    result:
      results.length === 0 || !outcome.terminal
        ? null
        : {
            answer: student?.answer ?? null,
            solution: student?.text ?? null,
            explanation: talker?.text ?? null,
            truncated: results.some((result) => result.truncated),
            cached: false,
            coalesced: false,
            usage: {
              promptTokens: results.reduce((sum, result) => sum + result.usage.promptTokens, 0),
              completionTokens: results.reduce((sum, result) => sum + result.usage.completionTokens, 0),
            },
            ...voteView(student),
            grade: gradeOf(data.expected, student?.answer ?? null),
          },
    error: outcome.error,
    metadata: data.metadata ?? {},
    links: { self: `/jobs/${job.jobId}` },
  };
}

/** What a view tells of the vote behind a solution; nulls without one. */
export function voteView(student: StageResult | null): { [K in keyof Vote]: Vote[K] | null } {
  const { agreement, votes, samples } = student?.vote ?? { agreement: null, votes: null, samples: null };
  return { agreement, votes, samples };
}

interface Outcome {
  status: JobStatus;
  terminal: boolean;
  error: JobError | null;
  /** When it became certain, for a job that no worker has ended yet. */
  endedAt: number | null;
}

/**
 * The first rule that holds decides:
 *   the last stage completed                       completed
 *   a stage failed as cancelled                    cancelled
 *   only the explanation failed (not by time)      completed: the solution stands, the stage carries the error
 *   a stage failed                                 failed, with that stage's error
 *   cancelled or too late, and no stage running    cancelled, failed (a worker can only end it that way)
 *   a stage was ever picked                        active
 *   otherwise                                      waiting, or delayed
 */
function outcomeOf(job: JobSnapshot): Outcome {
  const { stages, data } = job;
  const last = stages[stages.length - 1]!;
  const ended = (status: JobStatus, error: JobError | null, endedAt: number | null = null): Outcome => ({
    status,
    terminal: true,
    error,
    endedAt,
  });
  if (last.state === "completed") return ended("completed", null);
  const failed = stages.find((stage) => stage.state === "failed");
  if (failed !== undefined) {
    const error = stageError(failed)!;
    if (error.code === "cancelled") return ended("cancelled", error, failed.finishedAt);
    const onlyExplanation = stages.length === 2 && failed === last;
    if (onlyExplanation && error.code !== "deadline-exceeded") return ended("completed", null);
    return ended("failed", error, failed.finishedAt);
  }
  if (!stages.some((stage) => stage.state === "active")) {
    if (job.cancelledAt !== null) return ended("cancelled", errorOf("cancelled", "Cancelled on request."), job.cancelledAt);
    if (data.deadlineAt !== undefined && data.deadlineAt <= job.now) {
      return ended("failed", errorOf("deadline-exceeded", deadlineDetail(data, refusalOf(job)?.detail ?? null)), data.deadlineAt);
    }
  }
  const started = stages.some((stage) => stage.attempts > 0);
  const status = started ? "active" : stages.some((stage) => stage.state === "delayed") ? "delayed" : "waiting";
  return { status, terminal: false, error: null, endedAt: null };
}

/** `unavailable`: why its model could not be loaded meanwhile. */
export function deadlineDetail(data: Pick<JobData, "acceptedAt" | "deadlineAt">, unavailable: string | null): string {
  const why = unavailable === null ? "Raise timeoutMs, or send it when less is waiting." : `Its model is not available: ${unavailable}`;
  return `The job was to end within ${(data.deadlineAt ?? 0) - data.acceptedAt} ms of its acceptance and did not. ${why}`;
}

function stageStatus(stage: StageSnapshot): JobStatus {
  switch (stage.state) {
    case "completed":
    case "active":
    case "delayed":
      return stage.state;
    case "failed":
      return stageError(stage)?.code === "cancelled" ? "cancelled" : "failed";
    default:
      return "waiting";
  }
}

function stageError(stage: StageSnapshot): JobError | null {
  if (stage.state !== "failed") return null;
  const { code, detail } = parseFailedReason(stage.failedReason ?? "the reason was not recorded");
  return errorOf(code, detail);
}

function errorOf(code: ErrorCode, detail: string): JobError {
  return { code, title: ERRORS[code].title, detail };
}

function reasonOf(job: JobSnapshot): string | null {
  const running = job.stages.some((stage) => stage.state === "active");
  if (running) return null;
  if (job.liveWorkers.length === 0) return "no-worker";
  const refusal = refusalOf(job);
  if (refusal !== null) return `${refusal.code}: ${refusal.detail}`;
  if (job.queue?.paused === true) return "paused: the queue is paused";
  if ((job.queue?.limitedMs ?? 0) > 0) return "rate-limited: as many jobs as the queue's rate limit allows have been begun";
  return job.liveWorkers.every((worker) => worker.drained) ? "drained: an operator has stopped the workers from taking jobs" : null;
}

/** Why no worker can load the model of the stage that waits; null when one can. */
function refusalOf({ stages, liveWorkers }: JobSnapshot): Unavailability | null {
  const waiting = stages.find((stage) => stage.state !== "completed");
  return waiting === undefined ? null : unavailability(liveWorkers, waiting.role);
}
