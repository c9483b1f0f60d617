import type { Job } from "bullmq";
import type { JobData, StageResult } from "./contracts.ts";
import { isExplainId, roleOfJobId, sampleId, studentStageId } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/**
 * A client's job as BullMQ holds it, children first:
 *
 *   solve, talk                one job
 *   explain                    Student stage ─► Talker stage
 *   with samples               sample, sample, … ─► vote, which is the Student stage
 *
 * A stage that is not there (it has expired, or its answer came from the cache) is left out.
 */
export async function stageJobs(queues: Queues, jobId: string): Promise<Job<JobData, StageResult>[]> {
  const [student, last] = isExplainId(jobId)
    ? await Promise.all([queues.student.getJob(studentStageId(jobId)), queues.talker.getJob(jobId)])
    : [undefined, await queues[roleOfJobId(jobId) ?? "student"].getJob(jobId)];
  const vote = [student, last].find((job) => job !== undefined && isVote(job));
  const samples = vote === undefined ? [] : await sampleJobs(queues, jobId, vote.data);
  return [...samples, student, last].filter((job) => job !== undefined);
}

/** Whether this job of the Student's queue counts samples, instead of asking the model. */
export function isVote({ data, queueName }: Pick<Job<JobData>, "data" | "queueName">): boolean {
  return queueName === "student" && data.samples !== undefined && data.sample === undefined;
}

export async function sampleJobs(
  queues: Queues,
  jobId: string,
  { samples = 0 }: Pick<JobData, "samples">,
): Promise<Job<JobData, StageResult>[]> {
  const jobs = await Promise.all(Array.from({ length: samples }, (_, i) => queues.student.getJob(sampleId(jobId, i))));
  return jobs.filter((job) => job !== undefined);
}
