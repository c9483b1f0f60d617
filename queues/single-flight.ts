import { z } from "zod";
import { cancelledAt } from "./cancellation.ts";
import type { Redis } from "./connection.ts";
import { type JobData, jobDataSchema } from "./contracts.ts";
import { keys } from "./names.ts";

/**
 * Identical requests in flight are computed once. The first one's job leads; each later one is a follower: a record with its own id,
 * deadline and cancel, whose view is made from the leader's.
 *
 *   follower ──leader completed, or failed by the model──► ends the same way
 *      │ └──its own cancel or deadline──► ends by itself; the leader goes on
 *      └──leader cancelled or too late──► the first living follower becomes a job of its own, the others follow it
 *
 * The records say it all, so whoever sees a leader that ended without an answer (its worker, or a look at a follower) can move its
 * followers on; doing it twice changes nothing, for a job is added once under its id.
 */
const followerSchema = z.object({ leaderId: z.string(), data: jobDataSchema });
export type Follower = z.infer<typeof followerSchema>;

const RELEASE_SCRIPT = `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`;

/** The job that leads this flight: `jobId`, if nobody did. */
export async function joinFlight(redis: Redis, flightKey: string, jobId: string, retentionSeconds: number): Promise<string> {
  for (;;) {
    if ((await redis.set(keys.flight(flightKey), jobId, "EX", retentionSeconds, "NX")) === "OK") return jobId;
    const leader = await redis.get(keys.flight(flightKey));
    if (leader !== null) return leader;
  }
}

/** The flight has landed, or its leader never took off: the next request leads a new one. */
export async function endFlight(redis: Redis, flightKey: string, leaderId: string): Promise<void> {
  await redis.eval(RELEASE_SCRIPT, 1, keys.flight(flightKey), leaderId);
}

export async function follow(redis: Redis, jobId: string, follower: Follower, retentionSeconds: number): Promise<void> {
  await redis
    .multi()
    .set(keys.follower(jobId), JSON.stringify(follower), "EX", retentionSeconds)
    .sadd(keys.followers(follower.leaderId), jobId)
    .expire(keys.followers(follower.leaderId), retentionSeconds)
    .exec();
}

export async function readFollower(redis: Redis, jobId: string): Promise<Follower | undefined> {
  const text = await redis.get(keys.follower(jobId));
  return text === null ? undefined : followerSchema.safeParse(JSON.parse(text)).data;
}

/**
 * Moves the followers of a leader that ended without an answer on, `also` those that its set may have missed. `add` makes a follower's own job, once. Returns the new leader's id;
 * null when no follower is left that wants an answer.
 */
export async function moveFollowersOn(
  redis: Redis,
  leaderId: string,
  retentionSeconds: number,
  add: (jobId: string, data: JobData) => Promise<void>,
  also: string[] = [],
  now = Date.now(),
): Promise<string | null> {
  const ids = [...new Set([...(await redis.smembers(keys.followers(leaderId))), ...also])].sort();
  let newLeader: string | null = null;
  for (const jobId of ids) {
    const follower = await readFollower(redis, jobId);
    if (follower === undefined || follower.leaderId !== leaderId) continue;
    const { data } = follower;
    if ((data.deadlineAt ?? Number.POSITIVE_INFINITY) <= now || (await cancelledAt(redis, jobId)) !== null) continue;
    if (newLeader === null) {
      await add(jobId, data);
      newLeader = jobId;
      await redis.del(keys.follower(jobId));
    } else await follow(redis, jobId, { leaderId: newLeader, data }, retentionSeconds);
  }
  // Only these: one that joined meanwhile is moved on by its own look.
  if (ids.length > 0) await redis.srem(keys.followers(leaderId), ...ids);
  return newLeader;
}
