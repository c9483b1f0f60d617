import { Worker } from "bullmq";
import { expect, test } from "vitest";
import type { StageResult } from "../../queues/contracts.ts";
import { jobOptions } from "../../queues/job-options.ts";
import { loadJobView } from "../../queues/job-view.ts";
import { KEY_PREFIX, newJobId } from "../../queues/names.ts";
import { type MathsQueue, openQueues } from "../../queues/open-queues.ts";
import { startRedisFixture } from "../redis-fixture.ts";

test("a job that ends between two reads of its view is never completed without its result", async () => {
  const redis = await startRedisFixture();
  const queues = openQueues(redis.connect(), () => {});
  const jobId = newJobId("solve");
  const data = {
    version: 1,
    kind: "solve" as const,
    problem: "1",
    sampling: { temperature: 0 },
    priority: "normal" as const,
    acceptedAt: 1,
  };
  await queues.student.add("solve", data, jobOptions({ jobId, priority: "normal", attempts: 1, retentionSeconds: 60 }));
  const result: StageResult = {
    role: "student",
    text: "t",
    answer: "1",
    truncated: false,
    usage: { promptTokens: 1, completionTokens: 1 },
    modelId: "m",
    firstTokenAt: 1,
  };
  let reads = 0;
  const end = async () => {
    const worker = new Worker("student", async () => result, { connection: redis.connect(), prefix: KEY_PREFIX });
    await expect.poll(() => queues.student.getJobState(jobId)).toBe("completed");
    await worker.close();
  };
  const student = new Proxy(queues.student, {
    get(target, name) {
      const value = Reflect.get(target, name);
      if (name !== "getJob" && name !== "getJobState") return typeof value === "function" ? value.bind(target) : value;
      return async (id: string) => {
        const read = await value.call(target, id);
        if (++reads === 1) await end();
        return read;
      };
    },
  }) as MathsQueue;
  const seen = await loadJobView({ ...queues, student }, jobId);
  if (seen?.status === "completed") expect(seen.result).toMatchObject({ answer: "1" });
  await queues.close();
  await redis.stop();
});
