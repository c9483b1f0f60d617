import { Worker } from "bullmq";
import type { StageResult } from "../queues/contracts.ts";
import { KEY_PREFIX, type Role } from "../queues/names.ts";
import type { RedisFixture } from "./redis-fixture.ts";

/** What a stage of this role leaves behind. */
export const stageResult = (role: Role): StageResult => ({
  role,
  text: `by the ${role}`,
  answer: role === "student" ? "1" : null,
  truncated: false,
  usage: { promptTokens: 1, completionTokens: 2 },
  modelId: "m",
  firstTokenAt: 1,
});

/** Ends the jobs of one queue as a GPU worker would, without a model, while `body` runs. */
export async function endingJobs<T>(
  redis: RedisFixture,
  role: Role,
  processor: () => Promise<StageResult>,
  body: () => Promise<T>,
): Promise<T> {
  const worker = new Worker(role, processor, { connection: redis.connect(), prefix: KEY_PREFIX });
  try {
    return await body();
  } finally {
    await worker.close();
  }
}
