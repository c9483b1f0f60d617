import type { JobsOptions } from "bullmq";
import { CLASS_PRIORITY, type PriorityClass } from "./names.ts";

const RETRY_BASE_MS = 500;

/**
 * BullMQ's options of one stage. Every job has a priority (one without would run before all others), retries back off
 * exponentially from half a second with jitter, and a finished job is kept for `retentionSeconds` (BullMQ's `age` is in seconds).
 */
export function jobOptions(options: {
  jobId: string;
  priority: PriorityClass;
  attempts: number;
  retentionSeconds: number;
  isChild?: boolean;
}): JobsOptions {
  const kept = { age: options.retentionSeconds };
  return {
    jobId: options.jobId,
    priority: CLASS_PRIORITY[options.priority],
    attempts: options.attempts,
    backoff: { type: "exponential", delay: RETRY_BASE_MS, jitter: 0.5 },
    removeOnComplete: kept,
    removeOnFail: kept,
    stackTraceLimit: 1,
    ...(options.isChild === true ? { failParentOnFailure: true } : {}),
  };
}
