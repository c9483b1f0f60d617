import type { Redis } from "./connection.ts";
import { type JobView, jobDataSchema } from "./contracts.ts";
import { isVote } from "./job-stages.ts";
import { loadJobView, toJobView } from "./job-view.ts";
import { isExplainId, KEY_PREFIX, roleOfJobId, sampleId, studentStageId } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/** Many jobs at a time, as BullMQ holds them. */

export interface JobRef {
  jobId: string;
  isVote: boolean;
}

/** `missing`: no job has this id: a follower, one that was removed or has expired, or one that never came. */
export type JobProgress = "waiting" | "active" | "ended" | "missing";

/**
 * ARGV for each job: its key, and the key of the job with which it begins (of an explanation the Student's stage, of a vote the first sample).
 * Returns one letter for each.
 */
const PROGRESS_SCRIPT = `
local letters = {}
for i = 1, #ARGV, 2 do
  local job = redis.call('HMGET', ARGV[i], 'timestamp', 'finishedOn', 'processedOn')
  local letter = 'w'
  if not job[1] then letter = 'm'
  elseif job[2] then letter = 'e'
  elseif job[3] or (ARGV[i + 1] ~= '' and redis.call('HEXISTS', ARGV[i + 1], 'processedOn') == 1) then letter = 'a' end
  letters[#letters + 1] = letter
end
return table.concat(letters)
`;
const LETTERS: Record<string, JobProgress> = { w: "waiting", a: "active", e: "ended", m: "missing" };

export async function progressOf(redis: Redis, jobs: JobRef[]): Promise<JobProgress[]> {
  if (jobs.length === 0) return [];
  const args = jobs.flatMap(({ jobId, isVote: votes }) => {
    const first = votes ? sampleId(jobId, 0) : isExplainId(jobId) ? studentStageId(jobId) : null;
    return [`${KEY_PREFIX}:${roleOfJobId(jobId)}:${jobId}`, first === null ? "" : `${KEY_PREFIX}:student:${first}`];
  });
  const letters = (await redis.eval(PROGRESS_SCRIPT, 1, args[0]!, ...args)) as string;
  return [...letters].map((letter) => LETTERS[letter]!);
}

/** The views of jobs that have ended; one that isn't there any more is left out. */
export async function endedViews(queues: Queues, jobIds: string[], now = Date.now()): Promise<Map<string, JobView>> {
  const views = await Promise.all(jobIds.map((jobId) => endedView(queues, jobId, now)));
  return new Map(views.flatMap((view) => (view === undefined ? [] : [[view.jobId, view]])));
}

async function endedView(queues: Queues, jobId: string, now: number): Promise<JobView | undefined> {
  const role = roleOfJobId(jobId) ?? "student";
  if (isExplainId(jobId)) return loadJobView(queues, jobId, now);
  const job = await queues[role].getJob(jobId);
  if (job === undefined) return undefined;
  if (isVote(job)) return loadJobView(queues, jobId, now);
  // One job that has ended tells by itself how, without the state of its queue.
  const result = job.returnvalue ?? null;
  const stage = {
    role,
    id: jobId,
    state: result === null ? ("failed" as const) : ("completed" as const),
    attempts: job.attemptsStarted,
    pickedAt: job.processedOn ?? null,
    firstTokenAt: result?.firstTokenAt ?? null,
    finishedAt: job.finishedOn ?? null,
    failedReason: result === null ? job.failedReason || null : null,
    result,
  };
  const data = jobDataSchema.parse(job.data);
  return toJobView({
    jobId,
    data,
    stages: [stage],
    cancelledAt: null,
    position: null,
    estimatedStartMs: null,
    queue: null,
    liveWorkers: [],
    now,
  });
}
