import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createBoard } from "../../dashboards/board.ts";
import { createDocs } from "../../dashboards/docs/router.ts";
import { createLivePage } from "../../dashboards/live/page.ts";
import { readConfig } from "../../queues/config.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { assault, holdUp } from "./assault.ts";
import { startStandIns } from "./stand-ins.ts";

/** The short form of `npm run test:hostile`. */
const KEY = "hostile-admin-key-12345";
const CONCURRENCY = 8;

let redis: RedisFixture;
let stopStandIns: () => Promise<void>;
let api: RunningApi;
const errors: string[] = [];

beforeAll(async () => {
  redis = await startRedisFixture();
  stopStandIns = await startStandIns(redis);
  const log = pino({ level: "error" }, { write: (line: string) => void errors.push(line) });
  const secret = `whsec_${Buffer.alloc(32, 1).toString("base64")}`;
  api = await startApi({
    config: readConfig({ PORT: "0", DATA_DIR: redis.dataDir, WEBHOOK_SECRET: secret, API_KEYS: `ops:admin:${KEY}` }),
    redisUrl: redis.url,
    log,
    createBoard,
    createPage: createLivePage,
    createDocs,
  });
});
afterAll(async () => {
  await api.close();
  await stopStandIns();
  await redis.stop();
});

test.each([
  ["with an admin's key", `Bearer ${KEY}`, 400],
  ["without a key", null, 200],
])(
  "nothing that is sent %s, beside connections that stall, breaks anything or shows the server's inside",
  async (_name, authorization, requests) => {
    const head = `POST /solve HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${KEY}\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n{`;
    const release = await holdUp(api.port, 50, head);
    try {
      const { violations, statuses } = await assault({ port: api.port, seed: 7, requests, concurrency: CONCURRENCY, authorization });
      expect(violations).toEqual([]);
      const accepted = Object.entries(statuses)
        .filter(([status]) => status.startsWith("2"))
        .reduce((sum, [, count]) => sum + count, 0);
      // Without a key only /healthz, /readyz, and what a header of the request's own let in.
      if (authorization === null) expect(accepted).toBeLessThan(requests / 10);
      else expect(accepted).toBeGreaterThan(requests / 20);
    } finally {
      release();
    }
    expect(errors).toEqual([]);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
    expect((await fetch(`http://127.0.0.1:${api.port}/healthz`)).status).toBe(200);
  },
);
