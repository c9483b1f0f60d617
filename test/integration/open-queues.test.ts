import { afterAll, beforeAll, expect, test } from "vitest";
import { openRedis, waitForRedis } from "../../queues/connection.ts";
import { openAnsweredQueues } from "../../queues/open-queues.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

let fixture: RedisFixture;

beforeAll(async () => {
  fixture = await startRedisFixture();
});
afterAll(() => fixture.stop());

test("queues whose first question was lost with Redis are made anew: every one of them takes jobs", async () => {
  const redis = openRedis(fixture.url, "producer", () => {});
  await waitForRedis(redis, 10_000);
  const info = redis.info.bind(redis);
  let lost = 0;
  redis.info = (() => {
    if (lost === 3) return info();
    lost++;
    return Promise.reject(new Error("Connection is closed."));
  }) as typeof redis.info;
  const queues = await openAnsweredQueues(redis, () => {}, 10_000);
  expect(lost).toBe(3);
  const job = { name: "solve", queueName: "student", data: {} };
  await queues.flows.add({ ...job, queueName: "talker", children: [job] });
  expect(await queues.student.getWaitingCount()).toBe(1);
  await queues.close();
  redis.disconnect();
});
