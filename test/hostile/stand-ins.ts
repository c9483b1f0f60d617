import { Worker } from "bullmq";
import { KEY_PREFIX, ROLES } from "../../queues/names.ts";
import { openQueues } from "../../queues/open-queues.ts";
import { setRateLimit } from "../../queues/rate-limits.ts";
import { publishStatus } from "../../queues/worker-status.ts";
import type { RedisFixture } from "../redis-fixture.ts";
import { stageResult } from "../stand-in-worker.ts";
import { workerStatus } from "../worker-status.ts";

const BEAT_MS = 1000;

/**
 * Workers without a model, alive and quick, and an operator who undoes each second what an admin's requests did to the queues: so nothing that
 * is sent has a reason to wait. Returns their end.
 */
export async function startStandIns(redis: RedisFixture): Promise<() => Promise<void>> {
  const connection = redis.connect();
  const queues = openQueues(connection, () => {});
  const workers = ROLES.map(
    (role) => new Worker(role, async () => stageResult(role), { connection: redis.connect(), prefix: KEY_PREFIX, concurrency: 8 }),
  );
  const beat = async () => {
    await publishStatus(connection, workerStatus());
    await Promise.all(ROLES.flatMap((role) => [queues[role].resume(), setRateLimit(queues, role, null)]));
  };
  await beat();
  const timer = setInterval(() => void beat().catch(() => {}), BEAT_MS);
  return async () => {
    clearInterval(timer);
    await Promise.all(workers.map((worker) => worker.close()));
    await queues.close();
  };
}
