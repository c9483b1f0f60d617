import type { JobsOptions } from "bullmq";
import { CLASS_PRIORITY, ENDING_PRIORITY, type PriorityClass } from "./names.ts";

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
  /** A child whose failure is its parent's, or one that may fail (a sample). */
  child?: "needed" | "optional";
  /** Ready, it only has to be ended. */
  isVote?: boolean;
}): JobsOptions {
  const kept = { age: options.retentionSeconds };
  return {
    jobId: options.jobId,
    priority: options.isVote === true ? ENDING_PRIORITY : CLASS_PRIORITY[options.priority],
    attempts: options.attempts,
    backoff: { type: "exponential", delay: RETRY_BASE_MS, jitter: 0.5 },
    removeOnComplete: kept,
    removeOnFail: kept,
    stackTraceLimit: 1,
    ...(options.child === "needed" ? { failParentOnFailure: true } : {}),
    ...(options.child === "optional" ? { ignoreDependencyOnFailure: true } : {}),
  };
}
