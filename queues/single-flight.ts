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
 *      └──leader cancelled or too late──► the first living follower leads the flight and becomes a job of its own, the others follow it
 *
 * The records say it all, so whoever sees a leader that ended without an answer (its worker, another request, or a look at a follower)
 * can move its followers on; doing it twice changes nothing, for a job is added once under its id. A job may wait for as long as it takes,
 * so a follower's record begins to expire only when its leader has ended.
 */
const followerSchema = z.object({ leaderId: z.string(), data: jobDataSchema });
export type Follower = z.infer<typeof followerSchema>;

/** A leader that is not there by then never will be: who was to add it has died, or it has ended long ago. */
export const TAKE_OFF_MS = 5000;
/** Bounds what a death at the wrong moment leaves behind; a flight that lasts longer is only computed once more. */
const FLIGHT_TTL_SECONDS = 30 * 86_400;

/** The leader's id is the beginning of the value. */
const RELEASE_SCRIPT = `
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, #ARGV[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`;

/** A request that would share a flight. */
export interface Boarding {
  flightKey: string;
  jobId: string;
  /** Under which its answer would be in the cache; of an explanation of no known solution there is none. */
  answerKey?: string;
}

/** ARGV: TTL; then of each the flight, who would lead it, and its entry in the cache or nothing. Returns, for each, what the flight says of its leader. */
const JOIN_SCRIPT = `
local leaders = {}
for i = 2, #ARGV, 3 do
  local value = redis.call('GET', ARGV[i])
  if not value then
    value = ARGV[i + 1]
    local hasLanded = ARGV[i + 2] ~= '' and redis.call('EXISTS', ARGV[i + 2]) == 1
    if not hasLanded then redis.call('SET', ARGV[i], value, 'EX', ARGV[1]) end
  end
  table.insert(leaders, value)
end
return leaders`;

/**
 * The job that leads each flight, and since when (epoch milliseconds): the request's own from `now` on, if nobody did; of several of one flight
 * the first. Where the answer has come since it was looked for, nobody follows: each leads for itself, and finds it.
 */
export async function joinFlights(
  redis: Redis,
  requests: readonly Boarding[],
  now = Date.now(),
): Promise<{ leaderId: string; since: number }[]> {
  if (requests.length === 0) return [];
  const args = requests.flatMap(({ flightKey, jobId, answerKey }) => [
    keys.flight(flightKey),
    `${jobId} ${now}`,
    answerKey === undefined ? "" : keys.cacheEntry(answerKey),
  ]);
  const values = (await redis.eval(JOIN_SCRIPT, 1, args[0]!, FLIGHT_TTL_SECONDS, ...args)) as string[];
  return values.map((value) => {
    const [leaderId = "", since] = value.split(" ");
    return { leaderId, since: Number(since) };
  });
}

/** The flight has landed, or its leader never took off: the next request leads a new one. */
export async function endFlight(redis: Redis, flightKey: string, leaderId: string): Promise<void> {
  await redis.eval(RELEASE_SCRIPT, 1, keys.flight(flightKey), leaderId);
}

export async function follow(redis: Redis, jobId: string, follower: Follower): Promise<void> {
  await redis.multi().set(keys.follower(jobId), JSON.stringify(follower)).sadd(keys.followers(follower.leaderId), jobId).exec();
}

export async function followMany(redis: Redis, followers: { jobId: string; follower: Follower }[]): Promise<void> {
  const pipeline = redis.pipeline();
  for (const { jobId, follower } of followers) {
    pipeline.set(keys.follower(jobId), JSON.stringify(follower)).sadd(keys.followers(follower.leaderId), jobId);
  }
  for (const [error] of (await pipeline.exec()) ?? []) if (error !== null) throw error;
}

export async function unfollow(redis: Redis, jobId: string, leaderId: string): Promise<void> {
  await redis.multi().del(keys.follower(jobId)).srem(keys.followers(leaderId), jobId).exec();
}

export async function readFollower(redis: Redis, jobId: string): Promise<Follower | undefined> {
  const [follower] = await readFollowers(redis, [jobId]);
  return follower;
}

export async function readFollowers(redis: Redis, jobIds: string[]): Promise<(Follower | undefined)[]> {
  const texts = jobIds.length === 0 ? [] : await redis.mget(jobIds.map((jobId) => keys.follower(jobId)));
  return texts.map((text) => (text === null ? undefined : followerSchema.safeParse(JSON.parse(text)).data));
}

async function endFollower(redis: Redis, jobId: string, { idempotencyDigest }: JobData, retentionSeconds: number): Promise<void> {
  const pipeline = redis.multi().expire(keys.follower(jobId), retentionSeconds);
  if (idempotencyDigest !== undefined) pipeline.expire(keys.idempotency(idempotencyDigest), retentionSeconds);
  await pipeline.exec();
}

/** The leader has ended as its followers do. */
export async function endFollowers(redis: Redis, leaderId: string, retentionSeconds: number): Promise<void> {
  for (const jobId of await redis.smembers(keys.followers(leaderId))) {
    const follower = await readFollower(redis, jobId);
    if (follower?.leaderId === leaderId) await endFollower(redis, jobId, follower.data, retentionSeconds);
  }
  await redis.del(keys.followers(leaderId));
}

/**
 * Moves the followers of a leader that ended without an answer on, `also` those that its set may have missed: `goOn` makes a follower a job of its
 * own, or lets it follow another.
 */
export async function moveFollowersOn(
  redis: Redis,
  leaderId: string,
  retentionSeconds: number,
  goOn: (jobId: string, data: JobData) => Promise<void>,
  also: string[] = [],
  now = Date.now(),
): Promise<void> {
  const ids = [...new Set([...(await redis.smembers(keys.followers(leaderId))), ...also])].sort();
  for (const jobId of ids) {
    const follower = await readFollower(redis, jobId);
    if (follower === undefined || follower.leaderId !== leaderId) continue;
    const { data } = follower;
    if ((data.deadlineAt ?? Number.POSITIVE_INFINITY) <= now || (await cancelledAt(redis, jobId)) !== null) {
      await endFollower(redis, jobId, data, retentionSeconds);
    } else await goOn(jobId, data);
  }
  // Only these: one that joined meanwhile is moved on by its own look.
  if (ids.length > 0) await redis.srem(keys.followers(leaderId), ...ids);
}
