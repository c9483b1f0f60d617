import { z } from "zod";
import type { Role } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/** At most `max` jobs of a queue are begun within `durationMs`, over all workers. BullMQ keeps it with the queue, so it survives restarts. */
export const rateLimitSchema = z.strictObject({
  max: z.number().int().min(1).max(1_000_000),
  durationMs: z.number().int().min(1).max(86_400_000),
});
export type RateLimit = z.infer<typeof rateLimitSchema>;

export async function readRateLimit(queues: Queues, role: Role): Promise<RateLimit | null> {
  const limit = await queues[role].getGlobalRateLimit();
  return limit === null ? null : { max: limit.max, durationMs: limit.duration };
}

/** null lifts the limit. The window under way ends at once, so that a wider limit is felt at once. */
export async function setRateLimit(queues: Queues, role: Role, limit: RateLimit | null): Promise<void> {
  if (limit === null) await queues[role].removeGlobalRateLimit();
  else await queues[role].setGlobalRateLimit(limit.max, limit.durationMs);
  await queues[role].removeRateLimitKey();
}
