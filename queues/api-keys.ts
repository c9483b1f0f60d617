import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { z } from "zod";
import type { Redis } from "./connection.ts";
import { MathllmError } from "./errors.ts";
import { KEY_PREFIX, keys } from "./names.ts";

/**
 * API keys. `submit` hands problems in and sees and cancels its own jobs; `read` sees the system (GPU, queues, cache, metrics, board);
 * `admin` may do both, sees every job and gives the operator's commands.
 */
export const KEY_ROLES = ["submit", "read", "admin"] as const;
export type KeyRole = (typeof KEY_ROLES)[number];

const NAME_PATTERN = /^[\w.@-]{1,64}$/;
const SECRET_PATTERN = /^[\x21-\x2b\x2d-\x39\x3b-\x7e]{8,200}$/;
/** Below it a key is taken, with a warning: somebody with the store in hand could guess it. */
const STRONG_SECRET_CHARS = 20;
const SECRET_BYTES = 24;
const MAX_RATE_PER_S = 100_000;
const MAX_JOBS = 1_000_000;

export const keyLimitsSchema = z.object({
  /** Requests a second, over all API processes; as many may come at once. null: no limit. */
  ratePerS: z.number().gt(0).max(MAX_RATE_PER_S).nullable().default(null),
  /** Jobs that have not ended; one more is refused. null: no limit. */
  maxJobs: z.number().int().min(1).max(MAX_JOBS).nullable().default(null),
});
export type KeyLimits = z.infer<typeof keyLimitsSchema>;

const recordSchema = keyLimitsSchema.extend({
  version: z.literal(1),
  name: z.string(),
  digest: z.string(),
  roles: z.array(z.enum(KEY_ROLES)).min(1),
  source: z.enum(["command", "environment"]),
  createdAt: z.number(),
  revokedAt: z.number().nullable(),
});
type KeyRecord = z.infer<typeof recordSchema>;

/** A key as it may be shown. Times are epoch milliseconds; `lastUsedAt` is exact to a second. */
export type ApiKey = Omit<KeyRecord, "version" | "digest">;
export type ListedKey = ApiKey & { lastUsedAt: number | null };

export interface KeySeed {
  name: string;
  roles: KeyRole[];
  secret: string;
}

/** What became of a presented key. */
export interface Admitted {
  key: ApiKey;
  /** Until its rate lets the next request through; 0: this one is let through. */
  waitMs: number;
}

/**
 * A key that is made here has 192 random bits, so nobody finds it by trying, and a plain SHA-256 is enough: the salt and the slowness that
 * passwords need would only slow every request down. KEYS: names by digest, records, last uses. ARGV: digest, prefix of the buckets.
 * The bucket of `ratePerS` tokens, at least one, is kept as the one time at which it is full again.
 */
const ADMIT_SCRIPT = `
local name = redis.call('HGET', KEYS[1], ARGV[1])
local text = name and redis.call('HGET', KEYS[2], name)
if not text then return {} end
local record = cjson.decode(text)
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
if type(record.ratePerS) == 'number' then
  local everyMs = 1000 / record.ratePerS
  local burst = math.max(1, record.ratePerS)
  local bucket = ARGV[2] .. name
  local fullAt = math.max(tonumber(redis.call('GET', bucket) or now), now) + everyMs
  local waitMs = fullAt - now - burst * everyMs
  if waitMs > 0.001 then return { text, tostring(math.ceil(waitMs)) } end
  redis.call('SET', bucket, string.format('%.3f', fullAt), 'PX', math.ceil(fullAt - now) + 1)
end
if now - tonumber(redis.call('HGET', KEYS[3], name) or 0) > 1000 then redis.call('HSET', KEYS[3], name, string.format('%d', now)) end
return { text, '0' }
`;

/**
 * Writes a record if the one there is still the one that was read. KEYS: records, names by digest. ARGV: name, old record, new record, old
 * digest, new digest ('' when it is revoked: a revoked key's secret names nobody).
 */
const WRITE_SCRIPT = `
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if redis.call('HGET', KEYS[2], ARGV[4]) == ARGV[1] then redis.call('HDEL', KEYS[2], ARGV[4]) end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[2], ARGV[5], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
`;

const BUCKET = `${KEY_PREFIX}:api-key-bucket:`;

/**
 *   nothing ──add, API_KEYS──► valid ──revoke──► revoked ──add of the name anew──► valid, another secret
 *
 * Once there was a key, requests need one: a store whose keys are all revoked admits nobody. Only `clear` opens it again.
 */
export class ApiKeys {
  readonly #redis: Redis;

  constructor(redis: Redis) {
    this.#redis = redis;
  }

  /** Whether there is or ever was a key. */
  async inUse(): Promise<boolean> {
    return (await this.#redis.hlen(keys.apiKeys)) > 0;
  }

  /** Whether there is a key that is not revoked. */
  async anyValid(): Promise<boolean> {
    return (await this.list()).some(({ revokedAt }) => revokedAt === null);
  }

  /** Looks a presented secret up and counts the request against its rate. undefined: unknown or revoked. */
  async admit(secret: string): Promise<Admitted | undefined> {
    const digest = digestOf(secret);
    const [text, waitMs] = (await this.#redis.eval(
      ADMIT_SCRIPT,
      3,
      keys.apiKeyNames,
      keys.apiKeys,
      keys.apiKeyUses,
      digest,
      BUCKET,
    )) as string[];
    if (text === undefined) return undefined;
    const record = recordSchema.parse(JSON.parse(text));
    // Finding it by its digest tells an attacker nothing about the secret; that it is the same is still compared in constant time.
    if (!timingSafeEqual(Buffer.from(record.digest), Buffer.from(digest))) return undefined;
    return { key: shown(record), waitMs: Number(waitMs) };
  }

  /** Makes a key and returns its secret, which is nowhere else. Throws `invalid-request` when the name is taken. */
  async add(name: string, roles: KeyRole[], limits: KeyLimits, now = Date.now()): Promise<string> {
    if (!NAME_PATTERN.test(name))
      throw new MathllmError("invalid-request", `Expected a name of 1 to 64 letters, digits and . _ @ -; got ${JSON.stringify(name)}.`);
    const secret = `mk_${randomBytes(SECRET_BYTES).toString("base64url")}`;
    await this.#change(name, (old) => {
      if (old !== undefined && old.revokedAt === null)
        throw new MathllmError("invalid-request", `There is a key ${name} already. Revoke it first, or choose another name.`);
      return { version: 1, name, digest: digestOf(secret), roles, source: "command", createdAt: now, revokedAt: null, ...limits };
    });
    return secret;
  }

  /** In the order of their names. */
  async list(): Promise<ListedKey[]> {
    const [records, uses] = await Promise.all([this.#redis.hgetall(keys.apiKeys), this.#redis.hgetall(keys.apiKeyUses)]);
    return Object.values(records)
      .map((text) => shown(recordSchema.parse(JSON.parse(text))))
      .map((key) => ({ ...key, lastUsedAt: uses[key.name] === undefined ? null : Number(uses[key.name]) }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** From the next request on it is refused. Throws `invalid-request` when there is no such key. */
  async revoke(name: string, now = Date.now()): Promise<void> {
    await this.#change(name, (old) => ({ ...known(name, old), revokedAt: old?.revokedAt ?? now }));
  }

  async limit(name: string, limits: Partial<KeyLimits>): Promise<void> {
    await this.#change(name, (old) => ({ ...known(name, old), ...limits }));
  }

  /** Forgets all keys: on a loopback address the API is open to this machine again. */
  async clear(): Promise<number> {
    const count = await this.#redis.hlen(keys.apiKeys);
    await this.#redis.del(keys.apiKeys, keys.apiKeyNames, keys.apiKeyUses);
    return count;
  }

  /**
   * Brings the keys of `API_KEYS` in: new ones, changed ones with the limits they had; those that once stood there and don't any more
   * are forgotten. A key that was revoked stays so until it gets another secret. Returns what an operator should know.
   */
  async seed(seeds: KeySeed[], now = Date.now()): Promise<string[]> {
    if (seeds.length === 0) return [];
    const notes: string[] = [];
    for (const { name, source } of await this.list()) {
      if (source !== "environment" || seeds.some((seed) => seed.name === name)) continue;
      await this.#forget(name);
      notes.push(`the key ${name} no longer stands in API_KEYS and is refused from now on`);
    }
    for (const { name, roles, secret } of seeds) {
      if (secret.length < STRONG_SECRET_CHARS)
        notes.push(`the key ${name} of API_KEYS is short; make one with mathllm keys add, or openssl rand -hex 24`);
      await this.#change(name, (old) => {
        const digest = digestOf(secret);
        const isSame = old?.digest === digest;
        const revokedAt = isSame ? old.revokedAt : null;
        if (revokedAt !== null) notes.push(`the key ${name} of API_KEYS was revoked and stays so; give it another secret`);
        return {
          version: 1,
          name,
          digest,
          roles,
          source: "environment",
          createdAt: isSame ? old.createdAt : now,
          revokedAt,
          ratePerS: old?.ratePerS ?? null,
          maxJobs: old?.maxJobs ?? null,
        };
      });
    }
    return notes;
  }

  async #forget(name: string): Promise<void> {
    await this.revoke(name);
    await this.#redis.multi().hdel(keys.apiKeys, name).hdel(keys.apiKeyUses, name).exec();
  }

  /** Another process may write the same record meanwhile: then it is read again. */
  async #change(name: string, next: (old: KeyRecord | undefined) => KeyRecord): Promise<void> {
    for (;;) {
      const text = await this.#redis.hget(keys.apiKeys, name);
      const old = text === null ? undefined : recordSchema.parse(JSON.parse(text));
      const record = recordSchema.parse(next(old));
      const args = [name, text ?? "", JSON.stringify(record), old?.digest ?? "", record.revokedAt === null ? record.digest : ""];
      if ((await this.#redis.eval(WRITE_SCRIPT, 2, keys.apiKeys, keys.apiKeyNames, ...args)) === 1) return;
    }
  }
}

export function hasRole(key: Pick<ApiKey, "roles">, role: KeyRole): boolean {
  return key.roles.includes(role) || key.roles.includes("admin");
}

/** `submit`, `read`, `submit+read` or `admin`. undefined: something else. */
export function parseRoles(text: string): KeyRole[] | undefined {
  const roles = text.split("+").map((part) => KEY_ROLES.find((role) => role === part));
  return roles.every((role) => role !== undefined) && new Set(roles).size === roles.length ? roles : undefined;
}

/** The value of `API_KEYS`: `name:role:key` with commas between. undefined: it has another form. */
export function parseKeySeeds(text: string): KeySeed[] | undefined {
  const seeds = text.split(",").map((part): KeySeed | undefined => {
    const [name = "", role = "", secret = "", ...more] = part.trim().split(":");
    const roles = parseRoles(role);
    const isWhole = NAME_PATTERN.test(name) && roles !== undefined && SECRET_PATTERN.test(secret) && more.length === 0;
    return isWhole ? { name, roles, secret } : undefined;
  });
  const whole = seeds.filter((seed) => seed !== undefined);
  const areDistinct = [whole.map(({ name }) => name), whole.map(({ secret }) => secret)].every(
    (each) => new Set(each).size === seeds.length,
  );
  return areDistinct ? whole : undefined;
}

function digestOf(secret: string): string {
  return createHash("sha256").update(secret).digest("hex");
}

function known(name: string, record: KeyRecord | undefined): KeyRecord {
  if (record === undefined) throw new MathllmError("invalid-request", `There is no key ${name}; mathllm keys list names them.`);
  return record;
}

function shown({ version: _version, digest: _digest, ...key }: KeyRecord): ApiKey {
  return key;
}
