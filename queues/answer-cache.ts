import { z } from "zod";
import type { Redis } from "./connection.ts";
import { type PublishedModel, publishedModelSchema, stageResultSchema } from "./contracts.ts";
import { KEY_PREFIX, keys, ROLES, type Role } from "./names.ts";

/**
 * Finished stages by their key. Entries expire after their TTL, and the least recently used go when all of them together would take
 * more than `maxBytes`: the cache bounds itself, since Redis must never evict anything (`noeviction`, the queues live there).
 */
const entrySchema = z.object({
  version: z.literal(1),
  storedAt: z.number(),
  expiresAt: z.number(),
  result: stageResultSchema,
  /** Of an explanation: the solution that it explains. */
  solved: stageResultSchema.optional(),
});
export type CacheEntry = z.infer<typeof entrySchema>;

/** KEYS: uses, expiries, sizes, bytes. ARGV: member, entry, TTL ms, now, most bytes, entry prefix. Returns how many were dropped. */
const PUT_SCRIPT = `
local dropped = 0
local function drop(member)
  redis.call('DEL', ARGV[6] .. member)
  redis.call('ZREM', KEYS[1], member)
  redis.call('ZREM', KEYS[2], member)
  redis.call('DECRBY', KEYS[4], redis.call('HGET', KEYS[3], member) or 0)
  redis.call('HDEL', KEYS[3], member)
  dropped = dropped + 1
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, 1000)) do drop(member) end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then drop(ARGV[1]) end
local size = #ARGV[2] + 300
if size > tonumber(ARGV[5]) then return dropped end
while tonumber(redis.call('GET', KEYS[4]) or 0) + size > tonumber(ARGV[5]) do
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not oldest then redis.call('SET', KEYS[4], 0) break end
  drop(oldest)
end
redis.call('SET', ARGV[6] .. ARGV[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[4], ARGV[1])
redis.call('ZADD', KEYS[2], tonumber(ARGV[4]) + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], size)
redis.call('INCRBY', KEYS[4], size)
return dropped
`;

const DROP_SCRIPT = `
local existed = redis.call('DEL', ARGV[2] .. ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DECRBY', KEYS[4], redis.call('HGET', KEYS[3], ARGV[1]) or 0)
redis.call('HDEL', KEYS[3], ARGV[1])
return existed
`;

const BASE = `${KEY_PREFIX}:cache`;
const BOOKS = [`${BASE}:uses`, `${BASE}:expiries`, `${BASE}:sizes`, `${BASE}:bytes`];
const ENTRY = keys.cacheEntry("");
const COUNTS = `${BASE}:counts`;
const FLUSH_MS = 1000;
const CLEAR_AT_ONCE = 1000;

export const CACHE_OUTCOMES = ["hit", "miss", "coalesced"] as const;
export type CacheOutcome = (typeof CACHE_OUTCOMES)[number];

export const cacheStatsSchema = z.object({
  entries: z.number(),
  bytes: z.number(),
  maxBytes: z.number(),
  ttlSeconds: z.number(),
  hit: z.number(),
  miss: z.number(),
  coalesced: z.number(),
});
export type CacheStats = z.infer<typeof cacheStatsSchema>;

export class AnswerCache {
  readonly #redis: Redis;
  readonly #ttlMs: number;
  readonly #maxBytes: number;
  readonly #onError: (error: Error) => void;
  readonly #used = new Set<string>();
  readonly #counted: Record<CacheOutcome, number> = { hit: 0, miss: 0, coalesced: 0 };
  #timer: NodeJS.Timeout | undefined;

  constructor(redis: Redis, { ttlSeconds, maxBytes }: { ttlSeconds: number; maxBytes: number }, onError: (error: Error) => void) {
    this.#redis = redis;
    this.#ttlMs = ttlSeconds * 1000;
    this.#maxBytes = maxBytes;
    this.#onError = onError;
  }

  /** undefined: not there, expired, or not of this form (a poisoned or an older version's entry is a miss). */
  async get(key: string, now = Date.now()): Promise<CacheEntry | undefined> {
    const text = await this.#redis.get(ENTRY + key);
    const entry = text === null ? undefined : parse(text);
    if (entry === undefined || entry.expiresAt <= now) return undefined;
    this.#used.add(key);
    this.#soon();
    return entry;
  }

  /** The same for many at once, each key looked up once. */
  async getMany(cacheKeys: string[], now = Date.now()): Promise<Map<string, CacheEntry>> {
    const keysOnce = [...new Set(cacheKeys)];
    const texts = keysOnce.length === 0 ? [] : await this.#redis.mget(keysOnce.map((key) => ENTRY + key));
    const found = new Map<string, CacheEntry>();
    for (const [i, key] of keysOnce.entries()) {
      const entry = texts[i] == null ? undefined : parse(texts[i]);
      if (entry === undefined || entry.expiresAt <= now) continue;
      found.set(key, entry);
      this.#used.add(key);
    }
    if (found.size > 0) this.#soon();
    return found;
  }

  async put(key: string, given: Pick<CacheEntry, "result" | "solved">, now = Date.now()): Promise<void> {
    const entry: CacheEntry = { version: 1, storedAt: now, expiresAt: now + this.#ttlMs, ...given };
    await this.#redis.eval(
      PUT_SCRIPT,
      BOOKS.length,
      ...BOOKS,
      key,
      JSON.stringify(entry),
      String(this.#ttlMs),
      String(now),
      String(this.#maxBytes),
      ENTRY,
    );
  }

  /** Whether there was one. */
  async drop(key: string): Promise<boolean> {
    return (await this.#redis.eval(DROP_SCRIPT, BOOKS.length, ...BOOKS, key, ENTRY)) === 1;
  }

  /** Returns how many entries were dropped. */
  async clear(): Promise<number> {
    let dropped = 0;
    for (;;) {
      const members = await this.#redis.zrange(BOOKS[0]!, "0", String(CLEAR_AT_ONCE - 1));
      if (members.length === 0) return dropped;
      for (const member of members) if (await this.drop(member)) dropped++;
    }
  }

  count(outcome: CacheOutcome): void {
    this.#counted[outcome]++;
    this.#soon();
  }

  /** Of all API processes together, since the beginning; up to a second old. */
  async counts(): Promise<Record<CacheOutcome, number>> {
    const { hit, miss, coalesced } = await this.#redis.hgetall(COUNTS);
    return { hit: Number(hit ?? 0), miss: Number(miss ?? 0), coalesced: Number(coalesced ?? 0) };
  }

  async stats(): Promise<CacheStats> {
    await this.flush();
    const [entries, bytes, counts] = await Promise.all([this.#redis.zcard(BOOKS[0]!), this.#redis.get(BOOKS[3]!), this.counts()]);
    return { entries, bytes: Number(bytes ?? 0), maxBytes: this.#maxBytes, ttlSeconds: this.#ttlMs / 1000, ...counts };
  }

  /** Uses and counts are gathered and written once a second: a hit costs one read. */
  async flush(now = Date.now()): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const pipeline = this.#redis.pipeline();
    for (const key of this.#used) pipeline.zadd(BOOKS[0]!, "XX", now, key);
    this.#used.clear();
    for (const outcome of CACHE_OUTCOMES) {
      if (this.#counted[outcome] > 0) pipeline.hincrby(COUNTS, outcome, this.#counted[outcome]);
      this.#counted[outcome] = 0;
    }
    if (pipeline.length > 0) await pipeline.exec();
  }

  #soon(): void {
    this.#timer ??= setTimeout(() => this.flush().catch(this.#onError), FLUSH_MS).unref();
  }
}

function parse(text: string): CacheEntry | undefined {
  try {
    return entrySchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}

/** Says which model answers for a role from now on; null: it is not known until the next load. */
export async function publishModel(redis: Redis, role: Role, model: (PublishedModel & { settings: string }) | null): Promise<void> {
  if (model === null) await redis.hdel(keys.publishedModels, role);
  else await redis.hset(keys.publishedModels, role, JSON.stringify(model));
}

/** What the published model was loaded from; null when none is published. */
export async function publishedSettings(redis: Redis, role: Role): Promise<string | null> {
  const text = await redis.hget(keys.publishedModels, role);
  return z.object({ settings: z.string() }).safeParse(parseJson(text)).data?.settings ?? null;
}

export async function publishedModels(redis: Redis): Promise<Partial<Record<Role, PublishedModel>>> {
  const stored = await redis.hgetall(keys.publishedModels);
  return Object.fromEntries(
    ROLES.flatMap((role) => {
      const model = publishedModelSchema.safeParse(parseJson(stored[role] ?? null)).data;
      return model === undefined ? [] : [[role, model]];
    }),
  );
}

function parseJson(text: string | null): unknown {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}
