import { z } from "zod";
import { keys, type Role } from "./names.ts";
import type { Queues } from "./open-queues.ts";

/**
 * At most `max` jobs of a queue are begun within each window of `durationMs`, over all workers. A window begins with its first job, so
 * around the end of one up to 2·max − 1 may be begun within `durationMs`. BullMQ keeps the limit with the queue: it survives restarts.
 */
export const rateLimitSchema = z.strictObject({
  max: z.number().int().min(1).max(1_000_000),
  durationMs: z.number().int().min(1).max(86_400_000),
});
export type RateLimit = z.infer<typeof rateLimitSchema>;

/** null lifts the limit. The window under way ends at once, so that a wider limit is felt at once. */
export async function setRateLimit(queues: Queues, role: Role, limit: RateLimit | null): Promise<void> {
  if (limit === null) await queues[role].removeGlobalRateLimit();
  else await queues[role].setGlobalRateLimit(limit.max, limit.durationMs);
  await queues[role].removeRateLimitKey();
  // Wakes the workers: what was held back may go on.
  await queues.redis.publish(keys.gpuControlChannel, role);
}
