import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { UnrecoverableError } from "bullmq";
import { pino } from "pino";
import { Webhook } from "standardwebhooks";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { AnswerCache, publishModel } from "../../queues/answer-cache.ts";
import { solveKey } from "../../queues/cache-key.ts";
import { readConfig } from "../../queues/config.ts";
import { jobViewSchema, type StageResult, webhookViewSchema } from "../../queues/contracts.ts";
import { KEY_PREFIX, keys } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { expectProblem } from "../problem-document.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { endingJobs, stageResult } from "../stand-in-worker.ts";

const SECRET = `whsec_${Buffer.alloc(32, 7).toString("base64")}`;
const OLD_SECRET = `whsec_${Buffer.alloc(32, 8).toString("base64")}`;
const MODEL = { modelId: "m", digest: "d", promptVersion: "p", maxTokens: 9, settings: "s" };

interface Received {
  path: string;
  headers: http.IncomingHttpHeaders;
  body: string;
}

/** A receiver that answers what `answers` says, then 204. A null answers nothing. */
class Receiver {
  readonly received: Received[] = [];
  answers: ((response: http.ServerResponse) => void)[] = [];
  readonly #server = http.createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    this.received.push({ path: request.url!, headers: request.headers, body });
    const answer = this.answers.shift();
    if (answer === undefined) response.writeHead(204).end();
    else answer(response);
  });

  async start(): Promise<void> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/hook`;
  }

  stop(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  async atLeast(count: number): Promise<Received[]> {
    await expect.poll(() => this.received.length, { timeout: 20_000, interval: 10 }).toBeGreaterThanOrEqual(count);
    return this.received;
  }
}

let redis: RedisFixture;
let queues: Queues;
let api: RunningApi;
let receiver: Receiver;
const log = pino({ level: "silent" });
const environment = (): Record<string, string> => ({
  PORT: "0",
  DATA_DIR: redis.dataDir,
  REDIS_URL: redis.url,
  WEBHOOK_SECRET: `${SECRET},${OLD_SECRET}`,
  WEBHOOK_ALLOW_PRIVATE: "1",
  WEBHOOK_ATTEMPTS: "3",
  WEBHOOK_RETRY_MS: "2",
  WEBHOOK_TIMEOUT_MS: "400",
});
const start = (env: Record<string, string> = {}) =>
  startApi({ config: readConfig({ ...environment(), ...env }), redisUrl: redis.url, log });

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  api = await start();
});
afterAll(async () => {
  await api.close();
  await queues.close();
  await redis.stop();
});
beforeEach(async () => {
  receiver?.stop();
  receiver = new Receiver();
  await receiver.start();
  return () => receiver.stop();
});

const post = (body: object, url = api.url, headers: Record<string, string> = {}) =>
  fetch(`${url}/solve`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ problem: "1 + 0", cache: "off", ...body }),
  });
const asked = async (body: object = {}, url = api.url): Promise<string> => {
  const response = await post({ webhook: { url: receiver.url }, ...body }, url);
  expect(response.status).toBe(202);
  return ((await response.json()) as { jobId: string }).jobId;
};
const view = async (jobId: string) => jobViewSchema.parse(await (await fetch(`${api.url}/jobs/${jobId}`)).json());
const delivery = async (jobId: string) => webhookViewSchema.parse(await (await fetch(`${api.url}/jobs/${jobId}/webhook`)).json());
const solving = <T>(body: () => Promise<T>, solve: () => Promise<StageResult> = async () => stageResult("student")) =>
  endingJobs(redis, "student", solve, body);
const becomes = (jobId: string, status: string) =>
  expect.poll(async () => (await delivery(jobId)).status, { timeout: 20_000 }).toBe(status);

describe("the end of a job is told, signed, with its view:", () => {
  const told = async (jobId: string, status: string) => {
    const [message] = await receiver.atLeast(1);
    const { headers, body } = message!;
    for (const secret of [SECRET, OLD_SECRET]) {
      const verified = new Webhook(secret).verify(body, headers as Record<string, string>);
      expect(jobViewSchema.parse(verified)).toEqual(await view(jobId));
    }
    expect(() => new Webhook(SECRET).verify(`${body} `, headers as Record<string, string>)).toThrow();
    expect([headers["webhook-id"], headers["content-type"], JSON.parse(body).status]).toEqual([`msg_${jobId}`, "application/json", status]);
    await becomes(jobId, "delivered");
    expect(await delivery(jobId)).toMatchObject({ url: receiver.url, attempts: [{ status: 204, error: null }], nextAttemptAt: null });
    expect(receiver.received.length).toBe(1);
    expect(await queues.redis.hexists(keys.webhooks, jobId)).toBe(0);
  };

  test("completed", async () => {
    const jobId = await asked();
    expect(await delivery(jobId)).toMatchObject({ status: "waiting", attempts: [] });
    await solving(() => told(jobId, "completed"));
  });

  test("failed", async () => {
    const jobId = await asked();
    const refuse = () => Promise.reject(new UnrecoverableError("engine-refused: not this one"));
    await solving(() => told(jobId, "failed"), refuse);
  });

  test("cancelled while it waits, without any worker", async () => {
    const jobId = await asked();
    await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" });
    await told(jobId, "cancelled");
  });

  test("too late, without any worker", async () => {
    await told(await asked({ timeoutMs: 1 }), "failed");
  });

  test("an explanation, once for both stages", async () => {
    const jobId = await asked({ explain: true });
    await solving(() =>
      endingJobs(
        redis,
        "talker",
        async () => stageResult("talker"),
        () => told(jobId, "completed"),
      ),
    );
  });

  test("that of the identical request it follows", async () => {
    await publishModel(queues.redis, "student", MODEL);
    await post({ problem: "2 + 2", cache: "auto" });
    const follower = await asked({ problem: "2 + 2", cache: "auto" });
    expect(await queues.redis.exists(keys.follower(follower))).toBe(1);
    await solving(() => told(follower, "completed"));
    await queues.redis.del(keys.publishedModels);
  });
});

test("an answer from the cache is told as well, and to the same Idempotency-Key once", async () => {
  await publishModel(queues.redis, "student", MODEL);
  const request = { problem: "3 + 3", sampling: { temperature: 0 } };
  await new AnswerCache(queues.redis, { ttlSeconds: 60, maxBytes: 1e6 }, () => {}).put(solveKey(MODEL, request), {
    result: stageResult("student"),
  });
  for (let i = 0; i < 2; i++) {
    const response = await post({ ...request, cache: "auto", webhook: { url: receiver.url } }, api.url, { "idempotency-key": "cached" });
    expect([response.status, await response.json()]).toMatchObject([200, { result: { cached: true } }]);
  }
  expect((await post({ ...request, cache: "auto", webhook: { url: receiver.url } })).status).toBe(200);
  const received = await receiver.atLeast(2);
  for (const { body, headers } of received)
    expect(jobViewSchema.parse(new Webhook(SECRET).verify(body, headers as Record<string, string>)).result?.cached).toBe(true);
  expect(new Set(received.map(({ headers }) => headers["webhook-id"])).size).toBe(2);
  expect(await queues.redis.zcard(keys.webhookLooks)).toBe(0);
  // Who guesses the key is not told the address.
  const digest = createHash("sha256").update("cached").digest("hex");
  expect((await fetch(`${api.url}/jobs/${digest}/webhook`)).status).toBe(404);
  await queues.redis.del(keys.publishedModels);
});

describe("a receiver", () => {
  const status =
    (code: number, headers = {}) =>
    (response: http.ServerResponse) =>
      void response.writeHead(code, headers).end();

  test("that fails is asked again under the same id, with a signature of that moment", async () => {
    receiver.answers = [status(302, { location: `${receiver.url}-elsewhere` }), (response) => void response.destroy()];
    const jobId = await asked();
    await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" });
    await becomes(jobId, "delivered");
    expect((await delivery(jobId)).attempts.map((attempt) => [attempt.status, attempt.error])).toEqual([
      [302, "it answered 302; redirects are not followed"],
      [null, expect.any(String)],
      [204, null],
    ]);
    expect(new Set(receiver.received.map(({ headers, path: to, body }) => [headers["webhook-id"], to, body].join())).size).toBe(1);
    for (const { body, headers } of receiver.received) new Webhook(SECRET).verify(body, headers as Record<string, string>);
  });

  test("that fails every time is given up, one that answers 410 at once", async () => {
    receiver.answers = Array.from({ length: 3 }, () => status(503));
    const jobId = await asked();
    await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" });
    await becomes(jobId, "failed");
    expect((await delivery(jobId)).attempts.length).toBe(3);
    receiver.answers = [status(410)];
    const gone = await asked();
    await fetch(`${api.url}/jobs/${gone}`, { method: "DELETE" });
    await becomes(gone, "failed");
    expect((await delivery(gone)).attempts).toMatchObject([{ status: 410 }]);
  });

  test("that does not answer, or never stops to, holds nothing up", async () => {
    let sent = 0;
    const endless = (response: http.ServerResponse) => {
      response.writeHead(200);
      const more = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536))) sent += 65_536;
      };
      response.on("drain", more);
      more();
    };
    receiver.answers = [() => {}, endless];
    const jobId = await asked();
    await fetch(`${api.url}/jobs/${jobId}`, { method: "DELETE" });
    await becomes(jobId, "delivered");
    const { attempts } = await delivery(jobId);
    expect(attempts).toMatchObject([
      { status: null, error: "it did not answer in time" },
      { status: 200, error: null },
    ]);
    // What fits into the sockets' buffers, no more.
    expect(sent).toBeLessThan(20_000_000);
  });
});

describe("whatever dies", () => {
  test("an end that no API process saw is told by the next one", async () => {
    const first = await start({ JOB_RETENTION_SECONDS: "600" });
    const jobId = await asked({}, first.url);
    await Promise.all([first.close(), api.close()]);
    await solving(() => expect.poll(() => queues.student.getJobState(jobId)).toBe("completed"));
    expect(receiver.received.length).toBe(0);
    api = await start();
    await receiver.atLeast(1);
    await becomes(jobId, "delivered");
  });

  test("an API process that is killed while it delivers: the next one delivers it again, under the same id", async () => {
    await api.close();
    const held = Promise.withResolvers<void>();
    receiver.answers = [() => held.resolve()];
    const child = spawn(process.execPath, [path.join(import.meta.dirname, "../../mathllm.ts"), "api"], {
      env: { ...process.env, ...environment(), LOG_LEVEL: "error" },
      stdio: ["ignore", "pipe", "inherit"],
    });
    try {
      const [line] = (await once(child.stdout!, "data")) as [Buffer];
      const url = /http:\S+/.exec(line.toString())![0];
      const jobId = await asked({}, url);
      await fetch(`${url}/jobs/${jobId}`, { method: "DELETE" });
      await held.promise;
      child.kill("SIGKILL");
      await once(child, "exit");
      api = await start();
      const received = await receiver.atLeast(2);
      expect(new Set(received.map(({ headers }) => headers["webhook-id"]))).toEqual(new Set([`msg_${jobId}`]));
      await becomes(jobId, "delivered");
    } finally {
      child.kill("SIGKILL");
    }
  });

  test("a job that was never stored is forgotten", async () => {
    const jobId = "solve-00000000000000000000000000000001";
    await queues.redis.hset(keys.webhooks, jobId, JSON.stringify({ url: receiver.url, at: Date.now() - 20_000 }));
    await queues.redis.zadd(keys.webhookLooks, 0, jobId);
    await expect.poll(() => queues.redis.hexists(keys.webhooks, jobId), { timeout: 10_000 }).toBe(0);
    expect(receiver.received.length).toBe(0);
  });
});

describe("a request", () => {
  test("for a webhook is refused where none can be signed, or its address is not public; nothing is left of it", async () => {
    const before = await queues.redis.keys(`${KEY_PREFIX}:*`);
    const unsigned = await start({ WEBHOOK_SECRET: "" });
    const strict = await start({ WEBHOOK_ALLOW_PRIVATE: "0" });
    try {
      await expectProblem(await post({ webhook: { url: "https://example.org/" } }, unsigned.url), 400, "invalid-request");
      for (const webhook of [
        { url: receiver.url },
        { url: "http://169.254.169.254/" },
        { url: "gopher://x" },
        { url: 1 },
        {},
        "https://example.org/",
      ])
        await expectProblem(await post({ webhook }, strict.url), 400, "invalid-request");
      expect((await post({ webhook: { url: "https://example.org/hook" } }, strict.url)).status).toBe(202);
      expect(await queues.redis.hlen(keys.webhooks)).toBe(1);
      await queues.redis.del(keys.webhooks, keys.webhookLooks);
      expect(before.length).toBeGreaterThan(0);
    } finally {
      await Promise.all([unsigned.close(), strict.close()]);
    }
  });

  test("without one has none", async () => {
    const response = await post({});
    const { jobId } = (await response.json()) as { jobId: string };
    await expectProblem(await fetch(`${api.url}/jobs/${jobId}/webhook`), 404, "unknown-job");
  });
});
