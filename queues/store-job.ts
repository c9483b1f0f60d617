import type { Config } from "./config.ts";
import type { JobData } from "./contracts.ts";
import { jobOptions } from "./job-options.ts";
import { isExplainId, keys, roleOfJobId, studentStageId } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/** Puts a job into its queue, once: under an id that is there already nothing changes. When it resolves, the job is in Redis. */
export async function storeJob(queues: Queues, config: Config, jobId: string, data: JobData): Promise<void> {
  const options = { priority: data.priority, attempts: config.jobAttempts, retentionSeconds: config.jobRetentionSeconds };
  if (data.deadlineAt !== undefined) await queues.redis.zadd(keys.deadlines, data.deadlineAt, jobId);
  if (isExplainId(jobId) && data.solved === undefined) {
    const child = {
      name: data.kind,
      queueName: "student",
      data,
      opts: jobOptions({ ...options, jobId: studentStageId(jobId), isChild: true }),
    };
    await queues.flows.add({ name: data.kind, queueName: "talker", data, opts: jobOptions({ ...options, jobId }), children: [child] });
  } else {
    await queues[roleOfJobId(jobId) ?? "student"].add(data.kind, data, jobOptions({ ...options, jobId }));
  }
}
