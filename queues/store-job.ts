import { createHash } from "node:crypto";
import type { FlowJob } from "bullmq";
import type { Config } from "./config.ts";
import type { JobData } from "./contracts.ts";
import { jobOptions } from "./job-options.ts";
import { isExplainId, keys, ROLES, roleOfJobId, sampleId, studentStageId } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/** Puts a job into its queue, once: under an id that is there already nothing changes. When it resolves, the job is in Redis. */
export async function storeJob(queues: Queues, config: Config, jobId: string, data: JobData): Promise<void> {
  const options = { priority: data.priority, attempts: config.jobAttempts, retentionSeconds: config.jobRetentionSeconds };
  if (data.deadlineAt !== undefined) await queues.redis.zadd(keys.deadlines, data.deadlineAt, jobId);
  /** The Student's stage: a job, or a vote and its samples. */
  const studentStage = (id: string, child?: "needed"): FlowJob => {
    const stage = { name: data.kind, queueName: "student", data };
    if (data.samples === undefined) return { ...stage, opts: jobOptions({ ...options, jobId: id, child }) };
    const children = Array.from({ length: data.samples }, (_, sample) => ({
      ...stage,
      data: sampleData(data, sample),
      opts: jobOptions({ ...options, jobId: sampleId(jobId, sample), child: "optional" }),
    }));
    return { ...stage, opts: jobOptions({ ...options, jobId: id, child, isVote: true }), children };
  };
  if (isExplainId(jobId) && data.solved === undefined) {
    const children = [studentStage(studentStageId(jobId), "needed")];
    await queues.flows.add({ name: data.kind, queueName: "talker", data, opts: jobOptions({ ...options, jobId }), children });
  } else if (data.samples !== undefined && data.solved === undefined) {
    await queues.flows.add(studentStage(jobId));
  } else {
    await queues[roleOfJobId(jobId) ?? "student"].add(data.kind, data, jobOptions({ ...options, jobId }));
  }
}

/** Stores many jobs, each once: those of one stage, as most are, in one pipeline for each queue. */
export async function storeJobs(queues: Queues, config: Config, jobs: { jobId: string; data: JobData }[]): Promise<void> {
  const isFlow = ({ jobId, data }: { jobId: string; data: JobData }) =>
    data.solved === undefined && (isExplainId(jobId) || data.samples !== undefined);
  const single = jobs.filter((job) => !isFlow(job));
  const deadlines = single.flatMap(({ jobId, data }) => (data.deadlineAt === undefined ? [] : [data.deadlineAt, jobId]));
  if (deadlines.length > 0) await queues.redis.zadd(keys.deadlines, ...deadlines);
  const adding = ROLES.map((role) => {
    const bulk = single
      .filter(({ jobId }) => roleOfJobId(jobId) === role)
      .map(({ jobId, data }) => ({
        name: data.kind,
        data,
        opts: jobOptions({ jobId, priority: data.priority, attempts: config.jobAttempts, retentionSeconds: config.jobRetentionSeconds }),
      }));
    return bulk.length === 0 ? [] : queues[role].addBulk(bulk);
  });
  await Promise.all([...adding, ...jobs.filter(isFlow).map(({ jobId, data }) => storeJob(queues, config, jobId, data))]);
}

/** What was promised at acceptance was promised of the first sample. */
function sampleData({ estimatedWaitMs, ...data }: JobData, sample: number): JobData {
  const { seed } = data.sampling;
  return {
    ...data,
    sample,
    ...(seed === undefined ? {} : { sampling: { ...data.sampling, seed: sampleSeed(seed, sample) } }),
    ...(sample > 0 || estimatedWaitMs === undefined ? {} : { estimatedWaitMs }),
  };
}

/** Requests with neighbouring seeds share no sample. */
export function sampleSeed(seed: number, sample: number): number {
  return createHash("sha256").update(`${seed} ${sample}`).digest().readUInt32BE(0);
}
