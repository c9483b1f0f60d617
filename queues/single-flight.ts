import { z } from "zod";
import { cancelledAt } from "./cancellation.ts";
import type { Redis } from "./connection.ts";
import { type JobData, jobDataSchema } from "./contracts.ts";
import { keys, PRIORITY_CLASSES, type PriorityClass } from "./names.ts";

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
 *
 * A follower's record holds what is its own; what it has in common with all of its leader's followers, which may be long, is kept once for them.
 * `following` has, for each class, the followers whose records don't expire, so that no more are let in than may wait.
 */
const sharedSchema = jobDataSchema.pick({ problem: true, messages: true, solved: true });
const followerSchema = z.object({ leaderId: z.string(), data: jobDataSchema.partial({ problem: true }) });
export type Follower = z.infer<typeof followerSchema>;

/** One that is to follow. */
export interface NewFollower {
  leaderId: string;
  data: JobData;
}

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

function ownOf({ problem: _, messages: __, solved: ___, ...own }: JobData): Follower["data"] {
  return own;
}

/** Writes the records of followers, all or none of each; done again it changes nothing. */
export async function followMany(redis: Redis, followers: { jobId: string; follower: NewFollower }[]): Promise<void> {
  if (followers.length === 0) return;
  const multi = redis.multi();
  for (const { jobId, follower } of followers) {
    const { leaderId, data } = follower;
    multi.set(keys.follower(jobId), JSON.stringify({ leaderId, data: ownOf(data) }));
    multi.sadd(keys.followers(leaderId), jobId).sadd(keys.following(data.priority), jobId);
  }
  // Of the same flight they are the same: one is enough.
  for (const { leaderId, data } of new Map(followers.map(({ follower }) => [follower.leaderId, follower])).values()) {
    multi.set(keys.followed(leaderId), JSON.stringify(sharedSchema.parse(data)), "EX", FLIGHT_TTL_SECONDS);
  }
  for (const [error] of (await multi.exec()) ?? []) if (error !== null) throw error;
}

/** It follows nobody any more: it never did, it is a job now, or it was withdrawn. */
export async function unfollow(redis: Redis, jobId: string, leaderId: string): Promise<void> {
  const multi = redis.multi().del(keys.follower(jobId)).srem(keys.followers(leaderId), jobId);
  for (const name of PRIORITY_CLASSES) multi.srem(keys.following(name), jobId);
  await multi.exec();
}

/** The followers of each class that have not ended. */
export async function countFollowing(redis: Redis): Promise<Record<PriorityClass, number>> {
  const counts = await Promise.all(PRIORITY_CLASSES.map(async (name) => [name, await redis.scard(keys.following(name))]));
  return Object.fromEntries(counts) as Record<PriorityClass, number>;
}

export async function readFollower(redis: Redis, jobId: string): Promise<Follower | undefined> {
  const [follower] = await readFollowers(redis, [jobId]);
  return follower;
}

export async function readFollowers(redis: Redis, jobIds: string[]): Promise<(Follower | undefined)[]> {
  const texts = jobIds.length === 0 ? [] : await redis.mget(jobIds.map((jobId) => keys.follower(jobId)));
  return texts.map((text) => (text === null ? undefined : followerSchema.safeParse(JSON.parse(text)).data));
}

async function endFollower(
  redis: Redis,
  jobId: string,
  { idempotencyDigest, priority }: Follower["data"],
  retentionSeconds: number,
): Promise<void> {
  const pipeline = redis.multi().expire(keys.follower(jobId), retentionSeconds).srem(keys.following(priority), jobId);
  if (idempotencyDigest !== undefined) pipeline.expire(keys.idempotency(idempotencyDigest), retentionSeconds);
  await pipeline.exec();
}

/** The leader has ended as its followers do. */
export async function endFollowers(redis: Redis, leaderId: string, retentionSeconds: number): Promise<void> {
  for (const jobId of await redis.smembers(keys.followers(leaderId))) {
    const follower = await readFollower(redis, jobId);
    if (follower?.leaderId === leaderId) await endFollower(redis, jobId, follower.data, retentionSeconds);
  }
  await redis.multi().del(keys.followers(leaderId)).expire(keys.followed(leaderId), retentionSeconds).exec();
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
  const shared = sharedSchema.safeParse(JSON.parse((await redis.get(keys.followed(leaderId))) ?? "null")).data;
  const ids = [...new Set([...(await redis.smembers(keys.followers(leaderId))), ...also])].sort();
  for (const jobId of ids) {
    const follower = await readFollower(redis, jobId);
    if (follower === undefined || follower.leaderId !== leaderId) continue;
    const { data } = follower;
    const whole = jobDataSchema.safeParse({ ...data, ...shared }).data;
    if ((data.deadlineAt ?? Number.POSITIVE_INFINITY) <= now || (await cancelledAt(redis, jobId)) !== null) {
      await endFollower(redis, jobId, data, retentionSeconds);
      // Nobody can say any more what it asked for: it was lost with its leader long ago.
    } else if (whole === undefined) await unfollow(redis, jobId, leaderId);
    else await goOn(jobId, whole);
  }
  if (shared !== undefined) await redis.expire(keys.followed(leaderId), retentionSeconds);
  // Only these: one that joined meanwhile is moved on by its own look.
  if (ids.length > 0) await redis.srem(keys.followers(leaderId), ...ids);
}
