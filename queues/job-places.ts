import type { ApiKey } from "./api-keys.ts";
import { MathllmError } from "./errors.ts";
import { keys, roleOfJobId } from "./names.ts";
import type { Queues } from "./open-queues.ts";
import { readFollower } from "./single-flight.ts";

/**
 * The unfinished jobs of a key that may have `maxJobs` of them, by the time their place was taken.
 *
 *   free ──takePlace, before the job is stored──► taken ──releasePlace: nothing was stored──► free
 *                                                  └──the set is full, and the job has ended or never came──► free
 *
 * So the set is cleared only when that matters, and a job that ends needs no one to tell.
 */
const TAKE_SCRIPT = `
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 1 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
`;

/** A place whose job isn't there by then was taken by a process that died. */
const STORING_MS = 10_000;
const RETRY_AFTER_SECONDS = 1;

export type JobOwner = Pick<ApiKey, "name" | "maxJobs">;

/** Takes a place for the job. Throws `too-many-jobs` when all are taken by jobs that have not ended. */
export async function takePlace(queues: Queues, { name, maxJobs }: JobOwner, jobId: string, now = Date.now()): Promise<void> {
  if (maxJobs === null) return;
  const take = async () => (await queues.redis.eval(TAKE_SCRIPT, 1, keys.apiKeyJobs(name), jobId, maxJobs, now)) === 1;
  if (await take()) return;
  await clearEnded(queues, name, now);
  if (await take()) return;
  throw new MathllmError(
    "too-many-jobs",
    `The key ${name} has ${maxJobs} unfinished jobs, and may not have more. Send it again when one has ended.`,
    {
      extra: { retryAfterSeconds: RETRY_AFTER_SECONDS },
    },
  );
}

export async function releasePlace(queues: Queues, { name, maxJobs }: JobOwner, jobId: string): Promise<void> {
  if (maxJobs !== null) await queues.redis.zrem(keys.apiKeyJobs(name), jobId);
}

async function clearEnded(queues: Queues, name: string, now: number): Promise<void> {
  const members = await queues.redis.zrange(keys.apiKeyJobs(name), 0, "-1");
  const states = await Promise.all(members.map(async (jobId) => ((await hasEnded(queues, name, jobId, now)) ? [jobId] : [])));
  const ended = states.flat();
  if (ended.length > 0) await queues.redis.zrem(keys.apiKeyJobs(name), ...ended);
}

/** As the job's view would say, without all that a view needs. */
async function hasEnded(queues: Queues, name: string, jobId: string, now: number): Promise<boolean> {
  const { redis } = queues;
  const [isCancelled, deadlineAt, takenAt, isThere, finishedOn] = await Promise.all([
    redis.exists(keys.cancelled(jobId)),
    redis.zscore(keys.deadlines, jobId),
    redis.zscore(keys.apiKeyJobs(name), jobId),
    redis.exists(jobKey(queues, jobId)),
    redis.hget(jobKey(queues, jobId), "finishedOn"),
  ]);
  if (isCancelled === 1 || (deadlineAt !== null && Number(deadlineAt) <= now)) return true;
  if (isThere === 1) return finishedOn !== null;
  const follower = await readFollower(redis, jobId);
  if (follower === undefined) return now - Number(takenAt) > STORING_MS;
  return (await redis.hget(jobKey(queues, follower.leaderId), "finishedOn")) !== null;
}

function jobKey(queues: Queues, jobId: string): string {
  return queues[roleOfJobId(jobId) ?? "student"].toKey(jobId);
}
