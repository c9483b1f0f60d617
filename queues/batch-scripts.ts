import { LINE } from "./batch-lines.ts";

/** The steps in which a batch changes: Redis does each whole or not at all. */

/**
 * KEYS: batch, states, kinds, digests, custom ids, errors, records, answers. ARGV: chunk, its digest, states, kinds, custom ids, now, how many
 * pairs of counts, how many errors, how many records, how many answers; then all of these.
 */
export const CHUNK_SCRIPT = `
if redis.call('LLEN', KEYS[4]) > tonumber(ARGV[1]) then return 'elsewhere' end
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HGET', KEYS[1], 'uploadedAt') then return 'closed' end
redis.call('RPUSH', KEYS[4], ARGV[2])
redis.call('APPEND', KEYS[2], ARGV[3])
redis.call('APPEND', KEYS[3], ARGV[4])
redis.call('HSET', KEYS[5], ARGV[1], ARGV[5])
redis.call('HSET', KEYS[1], 'touchedAt', ARGV[6])
local at = 10
for _ = 1, tonumber(ARGV[7]) do
  redis.call('HINCRBY', KEYS[1], ARGV[at + 1], ARGV[at + 2])
  at = at + 2
end
for _ = 1, tonumber(ARGV[8]) do
  at = at + 1
  redis.call('RPUSH', KEYS[6], ARGV[at])
end
for _ = 1, tonumber(ARGV[9]) do
  redis.call('HSET', KEYS[7], ARGV[at + 1], ARGV[at + 2])
  at = at + 2
end
for _ = 1, tonumber(ARGV[10]) do
  redis.call('HSETNX', KEYS[8], ARGV[at + 1], ARGV[at + 2])
  at = at + 2
end
return 'recorded'
`;

/**
 * Far beyond any retention: BullMQ removes finished jobs by these times, and those of a batch stay until it is finished.
 * KEYS: batch, states, records. ARGV for each line: index, state, verdict, record, its queue's keys, job, when that ended.
 */
const KEPT_MS = 1e12;
export const SETTLE_SCRIPT = `
local names = { c = 'completed', f = 'failed', x = 'cancelled' }
for i = 1, #ARGV, 7 do
  local index, state, verdict, record, queue, job, at = unpack(ARGV, i, i + 6)
  if redis.call('GETRANGE', KEYS[2], index, index) == '${LINE.open}' then
    redis.call('SETRANGE', KEYS[2], index, state)
    redis.call('HINCRBY', KEYS[1], names[state], 1)
    if verdict ~= '' then redis.call('HINCRBY', KEYS[1], verdict, 1) end
    if record ~= '' then redis.call('HSET', KEYS[3], index, record) end
    if job ~= '' then
      local keptUntil = string.format('%.0f', tonumber(at) + ${KEPT_MS})
      redis.call('ZADD', queue .. 'completed', 'XX', keptUntil, job)
      redis.call('ZADD', queue .. 'failed', 'XX', keptUntil, job)
    end
  end
end
`;

/** KEYS: custom ids. ARGV: index and id of each line. Returns the index of the line that has the id, for each. */
export const CLAIM_SCRIPT = `
local holders = {}
for i = 1, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[1], ARGV[i + 1], ARGV[i]) == 1 then table.insert(holders, tonumber(ARGV[i]))
  else table.insert(holders, tonumber(redis.call('HGET', KEYS[1], ARGV[i + 1]))) end
end
return holders
`;
