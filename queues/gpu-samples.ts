import { z } from "zod";
import type { Redis } from "./connection.ts";
import { SERVER_STATES } from "./contracts.ts";
import { keys, PRIORITY_CLASSES, ROLES } from "./names.ts";

/** What each GPU's worker saw, second by second, as a Redis stream of the last minutes: whoever looks late sees them at once. */
export const KEPT_MINUTES = 15;
/** Another form of sample gets another name. */
const FIELD = "sample";

const count = z.number();
const known = z.number().nullable();

export const gpuSampleSchema = z.object({
  ts: z.number(),
  gpuId: z.string(),
  residentModel: z.enum(ROLES).nullable(),
  /** The model that the server has, or is getting. */
  serverModel: z.enum(ROLES).nullable(),
  serverState: z.enum(SERVER_STATES),
  coresidentModel: z.enum(ROLES).nullable(),
  running: count,
  depths: z.record(z.enum(ROLES), known),
  vramUsedBytes: known,
  vramTotalBytes: known,
  gpuPercent: known,
  cpuPercent: known,
  memAvailableBytes: known,
  modelServerRssBytes: known,
  tokensPerSecond: known,
  /** Stages that ended since the sample before. */
  ended: z.record(z.enum(ROLES), z.object({ completed: count, failed: count })),
  /** Jobs begun since the sample before, by how long they had waited: milliseconds to two digits, and how many. */
  waits: z.record(z.enum(PRIORITY_CLASSES), z.record(z.string(), count)),
});
export type GpuSample = z.infer<typeof gpuSampleSchema>;
/** With its id in the stream. */
export type KeptSample = GpuSample & { id: string };

/** Keeps the sample for `KEPT_MINUTES`. Fields that are not a sample's are dropped; throws when one is missing. */
export async function addGpuSample(redis: Redis, record: object): Promise<void> {
  const sample = JSON.stringify(gpuSampleSchema.parse(record));
  await redis.xadd(keys.gpuSamples, "MINID", "~", Date.now() - KEPT_MINUTES * 60_000, "*", FIELD, sample);
}

/** The samples after `afterId`, or since `sinceMs` (epoch milliseconds), oldest first. Those of another version's form are skipped. */
export async function readGpuSamples(redis: Redis, from: { afterId: string } | { sinceMs: number }): Promise<KeptSample[]> {
  const entries = await redis.xrange(keys.gpuSamples, "afterId" in from ? `(${from.afterId}` : from.sinceMs, "+");
  // They were checked when they were added: a page asks for a thousand at once.
  return entries.flatMap(([id, [field, text]]) => (field === FIELD ? [{ id, ...(JSON.parse(text!) as GpuSample) }] : []));
}

export async function newestGpuSampleId(redis: Redis): Promise<string> {
  return (await redis.xrevrange(keys.gpuSamples, "+", "-", "COUNT", 1))[0]?.[0] ?? "0-0";
}
