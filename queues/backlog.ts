import type { Redis } from "./connection.ts";
import { CLASS_PRIORITY, ENDING_PRIORITY, KEY_PREFIX, NEXT_PRIORITY, PRIORITY_CLASSES, type PriorityClass, type Role } from "./names.ts";

/** What stands in one queue at one moment. */
export interface QueueBacklog {
  /** Jobs that could start now: waiting, prioritised, and delayed ones that are due; 0 while the queue is paused or its rate limit is used up. */
  depth: number;
  /** Jobs that need the model, by class, whether they could start now or the queue is paused or limited. */
  waiting: Record<PriorityClass, number>;
  /** Jobs that only have to be ended and need no model. */
  ending: number;
  /** Jobs in BullMQ's `wait` list: they came back from a worker that died. They are taken before all others. */
  returned: number;
  /** Acceptance of the next job of each class, epoch milliseconds. */
  oldest: Record<PriorityClass, number | null>;
  /** When the next delayed job is due, or the rate limit lets the next job through, epoch milliseconds; null when nothing is awaited. */
  nextDueAt: number | null;
  paused: boolean;
  /** So long until the rate limit, used up for the moment, lets the next job through; 0 while it does. */
  limitedMs: number;
  /** At most `max` picks within each window of `durationMs`; null without a limit. */
  rateLimit: { max: number; durationMs: number } | null;
}

export type Backlog = Record<Role, QueueBacklog>;

/**
 * Reads a queue in one step. BullMQ orders `prioritized` by priority · 2³² + a counter, `delayed` by due time · 4096 + a
 * counter. Delayed jobs are promoted only by a script on their own queue, so the due ones of the model that is not resident
 * are counted here as work.
 * KEYS: wait, prioritized, delayed, meta, limiter. ARGV: now, job key prefix, ending priority, the priority of jobs that were brought forward, one priority per class.
 */
const BACKLOG_SCRIPT = `
local paused = redis.call('HEXISTS', KEYS[4], 'paused') == 1
local max = tonumber(redis.call('HGET', KEYS[4], 'max') or false)
local duration = tonumber(redis.call('HGET', KEYS[4], 'duration') or false)
local limitedMs = 0
if max and tonumber(redis.call('GET', KEYS[5]) or 0) >= max then limitedMs = math.max(redis.call('PTTL', KEYS[5]), 0) end
local function arrival(id)
  return id and tonumber(redis.call('HGET', ARGV[2] .. id, 'timestamp') or false) or false
end
local function between(priority)
  return string.format('%.0f', priority * 4294967296), '(' .. string.format('%.0f', (priority + 1) * 4294967296)
end
local now = tonumber(ARGV[1])
local returned = redis.call('LLEN', KEYS[1])
local prioritized = redis.call('ZCARD', KEYS[2])
local due = redis.call('ZCOUNT', KEYS[3], '-inf', string.format('%.0f', (now + 1) * 4096 - 1))
local ending = redis.call('ZCOUNT', KEYS[2], between(tonumber(ARGV[3])))
local next = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
local dueAt = next[2] and math.floor(tonumber(next[2]) / 4096) or false
if limitedMs > 0 then dueAt = now + limitedMs end
local first = returned > 0 and arrival(redis.call('LINDEX', KEYS[1], -1)) or (due > 0 and arrival(next[1]))
local open = not paused and limitedMs == 0
local depth = open and returned + prioritized + due or 0
local forward, forwardTo = between(tonumber(ARGV[4]))
due = due + redis.call('ZCOUNT', KEYS[2], forward, forwardTo)
first = first or arrival(redis.call('ZRANGEBYSCORE', KEYS[2], forward, forwardTo, 'LIMIT', 0, 1)[1])
local result = { depth, ending, returned, due, dueAt, limitedMs, max or false, duration or false, paused and 1 or 0, first or false }
for i = 5, #ARGV do
  local low, high = between(tonumber(ARGV[i]))
  table.insert(result, redis.call('ZCOUNT', KEYS[2], low, high))
  table.insert(result, arrival(redis.call('ZRANGEBYSCORE', KEYS[2], low, high, 'LIMIT', 0, 1)[1]))
end
return result
`;

type Script = (keyCount: number, ...args: (string | number)[]) => Promise<(number | null)[]>;

/** A reader of both queues' backlog over `redis`: one round trip a call. */
export function backlogReader(redis: Redis): (now: number) => Promise<Backlog> {
  redis.defineCommand("mathllmBacklog", { lua: BACKLOG_SCRIPT });
  const script = (redis as unknown as { mathllmBacklog: Script }).mathllmBacklog.bind(redis);
  const priorities = PRIORITY_CLASSES.map((name) => CLASS_PRIORITY[name]);
  const read = async (role: Role, now: number): Promise<QueueBacklog> => {
    const base = `${KEY_PREFIX}:${role}:`;
    const names = ["wait", "prioritized", "delayed", "meta", "limiter"].map((name) => base + name);
    const [depth, ending, returned, due, nextDueAt, limitedMs, max, durationMs, paused, first, ...classes] = await script(
      5,
      ...names,
      now,
      base,
      ENDING_PRIORITY,
      NEXT_PRIORITY,
      ...priorities,
    );
    const waiting = byClass((i) => classes[2 * i]!);
    const oldest = byClass((i) => classes[2 * i + 1] ?? null);
    // A returned, due or brought-forward job keeps its class in its own hash; for the policy it counts as normal, with its true age.
    waiting.normal += returned! + due!;
    if (first != null && (oldest.normal === null || first < oldest.normal)) oldest.normal = first;
    return {
      depth: depth!,
      waiting,
      ending: ending!,
      returned: returned!,
      oldest,
      nextDueAt: nextDueAt ?? null,
      paused: paused === 1,
      limitedMs: limitedMs!,
      rateLimit: max == null || durationMs == null ? null : { max, durationMs },
    };
  };
  return async (now) => {
    const [student, talker] = await Promise.all([read("student", now), read("talker", now)]);
    return { student, talker };
  };
}

/** Every job that waits in a queue, whatever for. */
export function standingIn({ waiting, ending }: QueueBacklog): number {
  return PRIORITY_CLASSES.reduce((sum, name) => sum + waiting[name], ending);
}

function byClass<T>(value: (index: number) => T): Record<PriorityClass, T> {
  return Object.fromEntries(PRIORITY_CLASSES.map((name, i) => [name, value(i)])) as Record<PriorityClass, T>;
}
