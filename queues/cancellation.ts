import type { Redis } from "./connection.ts";
import { stageJobs } from "./job-stages.ts";
import { ENDING_PRIORITY, keys, sampleId } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/**
 * BullMQ can't cancel a job of another process, so a cancel is a flag in Redis that no one takes back, and a broadcast.
 *
 *   waiting ──flag──► the view says cancelled ──ending priority──► a worker ends it without any model
 *   running ──flag, broadcast──► the worker aborts the request and ends it
 *
 * The flag comes first: whatever dies after it, the job can only end as cancelled, or completed if that was quicker.
 */
const FLAG_TTL_SECONDS = 7 * 86_400;

export async function requestCancel(queues: Queues, jobId: string, now = Date.now()): Promise<void> {
  await queues.redis.set(keys.cancelled(jobId), now, "EX", FLAG_TTL_SECONDS);
  await queues.redis.publish(keys.cancelChannel, jobId);
  await moveToEnding(queues, jobId);
}

/**
 * Puts the stage that waits to the front, where a worker ends it whichever model is resident. A running or finished
 * stage is left as it is; one that waits for its retry gets there when it is due.
 */
export async function moveToEnding(queues: Queues, jobId: string): Promise<void> {
  const unfinished = (await stageJobs(queues, jobId)).filter((job) => job.finishedOn === undefined);
  await Promise.all(unfinished.map((job) => job.changePriority({ priority: ENDING_PRIORITY })));
}

/**
 * The majority of these samples' vote is settled: whether they wait or run, they end. They see that for themselves when they are picked, so
 * nothing has to remember it.
 */
export async function endSamples(queues: Queues, jobId: string, samples: readonly number[]): Promise<void> {
  await Promise.all(
    samples.map(async (sample) => {
      const id = sampleId(jobId, sample);
      await queues.redis.publish(keys.cancelChannel, id);
      const job = await queues.student.getJob(id);
      if (job !== undefined && job.finishedOn === undefined) await job.changePriority({ priority: ENDING_PRIORITY });
    }),
  );
}

/** When the cancel was asked for, epoch milliseconds; null when it was not. */
export async function cancelledAt(redis: Redis, jobId: string): Promise<number | null> {
  const value = await redis.get(keys.cancelled(jobId));
  return value === null ? null : Number(value);
}

/** Calls back for every cancel broadcast from now on, with the id of a client's job or of a sample. `subscriber` is a connection of its own, closed by the caller. */
export async function listenForCancels(subscriber: Redis, onCancel: (jobId: string) => void): Promise<void> {
  subscriber.on("message", (channel: string, jobId: string) => {
    if (channel === keys.cancelChannel) onCancel(jobId);
  });
  await subscriber.subscribe(keys.cancelChannel);
}
