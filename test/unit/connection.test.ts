import { expect, test } from "vitest";
import { addressOf, answers, openRedis, waitForRedis } from "../../queues/connection.ts";

/** Nobody listens on these ports. */
const NOBODY = { "one server": "redis://:hidden@127.0.0.1:9", "a cluster": "redis://:hidden@127.0.0.1:9,redis://:hidden@127.0.0.1:10" };

test.each(Object.entries(NOBODY))("%s that is not there is named without its password", async (_, url) => {
  const redis = openRedis(url, "worker", () => {});
  const found = waitForRedis(redis, 200);
  await expect(found).rejects.toMatchObject({ code: "redis-unavailable", message: expect.stringContaining(addressOf(redis)) });
  await expect(found).rejects.not.toThrow(/hidden/);
  expect(addressOf(redis)).toMatch(/^127\.0\.0\.1:9(, 127\.0\.0\.1:10)?$/);
  expect(await answers(redis, 10)).toBe(false);
  redis.disconnect();
});

test.each(Object.entries(NOBODY))("what waits on %s fails when the connection is closed between two attempts", async (_, url) => {
  const redis = openRedis(url, "worker", () => {});
  await expect.poll(() => redis.status).toBe("reconnecting");
  const waiting = redis.get("a");
  redis.disconnect();
  await expect(waiting).rejects.toThrow();
  await expect(redis.get("a")).rejects.toThrow();
  expect(redis.status).toBe("end");
});

test.each(Object.entries(NOBODY))("a producer fails at once when %s is not there", async (_, url) => {
  const redis = openRedis(url, "producer", () => {});
  await expect(redis.get("a")).rejects.toThrow();
  redis.disconnect();
});
