import http from "node:http";
import type { Express } from "express";
import { pino } from "pino";
import { request } from "undici";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { ACCESS, accessOf, BOARD_PATH } from "../../api/access.ts";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createBoard } from "../../dashboards/board.ts";
import { createDocs } from "../../dashboards/docs/router.ts";
import { createLivePage } from "../../dashboards/live/page.ts";
import { AnswerCache, publishModel } from "../../queues/answer-cache.ts";
import { ApiKeys, type KeyRole } from "../../queues/api-keys.ts";
import { latestAuditEntries } from "../../queues/audit.ts";
import { readConfig } from "../../queues/config.ts";
import { cachedJobId, keys } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { readFollower } from "../../queues/single-flight.ts";
import { publishStatus } from "../../queues/worker-status.ts";
import { expectProblem } from "../problem-document.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { endingJobs, stageResult } from "../stand-in-worker.ts";
import { workerStatus } from "../worker-status.ts";

interface Layer {
  rawPath: string;
  route?: { path: string | string[]; methods: Record<string, boolean> };
  handle: { stack?: Layer[] };
}

/** What `app.all` makes of one route is more. */
const ALL_METHODS = 10;

/** Every method and address that a router answers to; what only says which methods an address takes is left out. */
function routesOf(stack: Layer[], prefix = ""): [method: string, address: string][] {
  return stack.flatMap(({ route, rawPath, handle }) => {
    if (route === undefined) return handle.stack === undefined ? [] : routesOf(handle.stack, rawPath === "/" ? prefix : prefix + rawPath);
    const methods = Object.keys(route.methods).filter((method) => method !== "_all" && method !== "head");
    if (methods.length > ALL_METHODS) return [];
    return [route.path]
      .flat()
      .flatMap((path) => methods.map((method): [string, string] => [method.toUpperCase(), (prefix + path).replace(/(?<=.)\/$/, "")]));
  });
}
const stackOf = (app: unknown) => (app as { router: { stack: Layer[] } }).router.stack;
const filledIn = (address: string) => address.replace(/[:*]\w+/g, "x");

const SECRETS = {
  submit: "key-of-a-submitter-1",
  other: "key-of-a-submitter-2",
  read: "key-of-a-reader-12345",
  admin: "key-of-an-admin-12345",
};
const API_KEYS = `ann:submit:${SECRETS.submit},ben:submit:${SECRETS.other},eve:read:${SECRETS.read},ops:admin:${SECRETS.admin}`;

let redis: RedisFixture;
let queues: Queues;
let apiKeys: ApiKeys;
let api: RunningApi;
let app: Express;
const logged: string[] = [];
const log = pino({ level: "info" }, { write: (line: string) => void logged.push(line) });
const configured = (env: Record<string, string> = {}) => readConfig({ PORT: "0", DATA_DIR: redis.dataDir, ...env });

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  apiKeys = new ApiKeys(queues.redis);
  await publishModel(queues.redis, "student", { modelId: "m", digest: "d", promptVersion: "p", maxTokens: 9, settings: "s" });
  const created = vi.spyOn(http, "createServer");
  api = await startApi({
    config: configured({ API_KEYS, CORS_ORIGINS: "https://app.example.org" }),
    redisUrl: redis.url,
    log,
    createBoard,
    createPage: createLivePage,
    createDocs,
  });
  app = created.mock.calls[0]![0] as unknown as Express;
  created.mockRestore();
});
afterAll(async () => {
  await api.close();
  await queues.close();
  await redis.stop();
});
beforeEach(async () => {
  for (const queue of [queues.student, queues.talker]) await queue.obliterate({ force: true });
});

type Who = keyof typeof SECRETS | null;
const bearer = (secret: string) => ({ authorization: `Bearer ${secret}` });
const basic = (secret: string) => ({ authorization: `Basic ${btoa(`anyone:${secret}`)}` });
const send = (who: Who, method: string, address: string, body?: unknown, headers: Record<string, string> = {}) =>
  fetch(api.url + address, {
    method,
    headers: { ...(who && bearer(SECRETS[who])), ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
const accepted = async (who: Who, body: object = {}, headers = {}): Promise<string> => {
  const response = await send(who, "POST", "/solve", { problem: "1 + 0", cache: "off", ...body }, headers);
  expect(response.status).toBe(202);
  return ((await response.json()) as { jobId: string }).jobId;
};

/** A problem document, or the envelope of the OpenAI API, and what it says. */
async function expectRefusal(response: Response, address: string, status: number, code: string): Promise<string> {
  if (!address.startsWith("/v1/")) return (await expectProblem(response, status, code)).detail;
  const body = (await response.json()) as { error: { message: string; type: string } };
  expect([response.status, body]).toMatchObject([
    status,
    { error: { type: status === 401 ? "authentication_error" : "permission_error" } },
  ]);
  return body.error.message;
}

describe("every address", () => {
  test("has its line in the table, and every line its route", () => {
    const routes = routesOf(stackOf(app)).map(([method, address]) => `${method} ${address}`);
    const lines = Object.entries(ACCESS).flatMap(([address, methods]) => Object.keys(methods).map((method) => `${method} ${address}`));
    expect(new Set(routes)).toEqual(new Set(lines.filter((line) => !line.endsWith(BOARD_PATH))));
  });

  test("is refused without a key, with a wrong one, and with one whose role is another", async () => {
    const board = routesOf(stackOf(createBoard(queues, "admin"))).map(([method, address]): [string, string] => [
      method,
      BOARD_PATH + address,
    ]);
    expect(board.length).toBeGreaterThan(30);
    const routes = [...routesOf(stackOf(app)), ...board, ["GET", `${BOARD_PATH}/static/js/main.js`] as [string, string]];
    for (const [method, address] of routes) {
      const access = accessOf(method, filledIn(address));
      if (access === null || !("need" in access)) throw new Error(`${method} ${address} has no line`);
      if (access.need === "open") {
        expect((await send(null, method, address)).status, address).not.toBe(401);
        continue;
      }
      const without = await send(null, method, filledIn(address));
      expect(without.headers.get("www-authenticate"), address).toBe('Bearer realm="mathllm"');
      await expectRefusal(without, address, 401, "unauthorized");
      await expectRefusal(
        await send(null, method, filledIn(address), undefined, bearer("key-of-nobody-12345")),
        address,
        401,
        "unauthorized",
      );
      for (const who of ["submit", "read"] as const) {
        if (access.need === "any" || access.need === who) continue;
        const detail = await expectRefusal(await send(who, method, filledIn(address)), address, 403, "forbidden");
        expect(detail).toContain(`needs a key with the role ${access.need}`);
      }
    }
  });

  test("that there isn't is told only to who has a key", async () => {
    await expectProblem(await send(null, "GET", "/nothing"), 401, "unauthorized");
    await expectProblem(await send("submit", "GET", "/nothing"), 404, "not-found");
    const response = await send("submit", "PATCH", "/jobs/x");
    expect(response.headers.get("allow")).toBe("GET, DELETE");
    await expectProblem(response, 405, "method-not-allowed");
  });

  test.each(["/healthz/../gpu", "/healthz/%2e%2e/gpu", "//gpu", "/healthz;/gpu", "/GPU", "/gpu/", "/readyz/x"])(
    "no trick with %s opens it",
    async (path) => {
      const { statusCode, body } = await request(`${api.url}${path}`);
      await body.dump();
      expect(statusCode).toBe(401);
    },
  );
});

describe("a key", () => {
  test("comes as a bearer token or as the password of a browser, which asks for it only where a page is opened", async () => {
    expect((await send(null, "GET", "/gpu", undefined, basic(SECRETS.read))).status).toBe(200);
    const page = await send(null, "GET", BOARD_PATH, undefined, { accept: "text/html,*/*" });
    expect([page.status, page.headers.get("www-authenticate")]).toEqual([401, expect.stringMatching(/^Basic realm=/)]);
    for (const authorization of [
      "",
      "Bearer",
      "Bearer  ",
      "Basic",
      "Basic %%%",
      "Digest x",
      `Token ${SECRETS.admin}`,
      `Bearer ${SECRETS.admin}x`,
    ])
      expect((await send(null, "GET", "/gpu", undefined, { authorization })).status, authorization).toBe(401);
  });

  test("is kept as a digest, is shown once, and is refused from its revocation on", async () => {
    const secret = await apiKeys.add("temp", ["read"], { ratePerS: null, maxJobs: null });
    expect(secret).toMatch(/^mk_[\w-]{32}$/);
    const asked = () => send(null, "GET", "/queues", undefined, bearer(secret));
    expect((await asked()).status).toBe(200);
    const stored = (await Promise.all([keys.apiKeys, keys.apiKeyNames].map((key) => queues.redis.hgetall(key)))).map((each) =>
      JSON.stringify(each),
    );
    for (const each of [secret, ...Object.values(SECRETS)]) expect(stored.join() + logged.join()).not.toContain(each);
    expect((await apiKeys.list()).find(({ name }) => name === "temp")).toMatchObject({ roles: ["read"], lastUsedAt: expect.any(Number) });
    await expect(apiKeys.add("temp", ["read"], { ratePerS: null, maxJobs: null })).rejects.toMatchObject({ code: "invalid-request" });
    await apiKeys.revoke("temp");
    expect((await asked()).status).toBe(401);
    await apiKeys.add("temp", ["read"], { ratePerS: null, maxJobs: null });
    expect((await asked()).status).toBe(401);
  });

  test("that two add at once is one of theirs", async () => {
    const added = await Promise.allSettled(
      Array.from({ length: 8 }, () => apiKeys.add("twice", ["read"], { ratePerS: null, maxJobs: null })),
    );
    const secrets = added.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    expect(secrets.length).toBe(1);
    expect((await apiKeys.admit(secrets[0]!))?.key.name).toBe("twice");
  });

  test("of API_KEYS stays revoked, changes with its secret and goes with its line, and its limits stay", async () => {
    const store = new ApiKeys(queues.redis);
    const seed = (name: string, secret: string) => ({ name, roles: ["submit"] as KeyRole[], secret });
    const base = readConfig({ API_KEYS }).keySeeds;
    await store.seed([...base, seed("seeded", "first-secret-1234567")]);
    await store.limit("seeded", { maxJobs: 5 });
    await store.revoke("seeded");
    expect(await store.seed([...base, seed("seeded", "first-secret-1234567")])).toEqual([expect.stringContaining("stays so")]);
    expect(await store.admit("first-secret-1234567")).toBeUndefined();
    await store.seed([...base, seed("seeded", "second-secret-123456")]);
    expect((await store.admit("second-secret-123456"))?.key).toMatchObject({ name: "seeded", maxJobs: 5 });
    expect(await store.seed([...base, seed("renamed", "second-secret-123456")])).toEqual([
      expect.stringContaining("seeded no longer stands"),
    ]);
    expect((await store.admit("second-secret-123456"))?.key.name).toBe("renamed");
    await store.seed(base);
    expect(await store.admit("second-secret-123456")).toBeUndefined();
  });

  test("may send as many requests a second as its rate", async () => {
    const secret = await apiKeys.add("slow", ["read"], { ratePerS: 2, maxJobs: null });
    const asked = () => send(null, "GET", "/queues", undefined, bearer(secret));
    const statuses = [];
    let refused: Response | undefined;
    // Each takes a few milliseconds: at two a second, the third within a second is refused.
    for (let i = 0; i < 6 && refused === undefined; i++) {
      const response = await asked();
      statuses.push(response.status);
      if (response.status === 429) refused = response;
    }
    expect(statuses).toEqual([200, 200, 429]);
    expect(refused!.headers.get("retry-after")).toBe("1");
    await expectProblem(refused!, 429, "rate-limited");
    await apiKeys.limit("slow", { ratePerS: null });
    expect((await asked()).status).toBe(200);
  });

  test("may have as many unfinished jobs as its limit", async () => {
    const secret = await apiKeys.add("few", ["submit"], { ratePerS: null, maxJobs: 2 });
    const sent = (body: object = {}, headers = {}) =>
      send(null, "POST", "/solve", { problem: "1 + 0", cache: "off", ...body }, { ...bearer(secret), ...headers });
    const idOf = async (response: Response) => ((await response.json()) as { jobId: string }).jobId;
    const first = await idOf(await sent({}, { "idempotency-key": "k" }));
    expect((await sent({ problem: "" })).status).toBe(400);
    const second = await idOf(await sent({ explain: true }));
    const refused = await sent();
    expect(refused.headers.get("retry-after")).toBe("1");
    await expectProblem(refused, 429, "too-many-jobs");
    expect(await idOf(await sent({}, { "idempotency-key": "k" }))).toBe(first);
    await send("admin", "DELETE", `/jobs/${second}`);
    expect((await sent({ timeoutMs: 1 })).status).toBe(202);
    expect((await sent()).status).toBe(202);
    await expectProblem(await sent(), 429, "too-many-jobs");
    await endingJobs(
      redis,
      "student",
      async () => stageResult("student"),
      async () => {
        await expect.poll(async () => (await sent()).status).toBe(202);
      },
    );
  });
});

describe("a job", () => {
  test("belongs to its key: another one does not find it, an admin does", async () => {
    const jobId = await accepted("submit", { explain: true });
    expect((await queues.talker.getJob(jobId))?.data.owner).toBe("ann");
    for (const who of ["submit", "admin"] as const) expect((await send(who, "GET", `/jobs/${jobId}`)).status).toBe(200);
    const unknown = await (await send("other", "GET", "/jobs/explain-00000000000000000000000000000000")).text();
    for (const address of [`/jobs/${jobId}`, `/jobs/${jobId}/`, `/JOBS/${jobId}`, `/jobs/${jobId}?wait=1`]) {
      for (const [who, method] of [
        ["other", "GET"],
        ["read", "GET"],
        ["other", "DELETE"],
      ] as const) {
        const response = await send(who, method, address);
        expect([response.status, await response.text()]).toEqual([404, unknown]);
      }
    }
    expect(await (await send("submit", "GET", `/jobs/${jobId}`)).json()).toMatchObject({ status: "waiting" });
    await expectProblem(await send("read", "DELETE", `/jobs/${jobId}`), 403, "forbidden");
    expect((await send("submit", "DELETE", `/jobs/${jobId}`)).status).toBe(202);
  });

  test("of nobody's is an admin's to see", async () => {
    const jobId = await accepted("submit");
    const job = (await queues.student.getJob(jobId))!;
    const { owner: _owner, ...data } = job.data;
    await job.updateData(data);
    await expectProblem(await send("submit", "GET", `/jobs/${jobId}`), 404, "unknown-job");
    expect((await send("admin", "GET", `/jobs/${jobId}`)).status).toBe(200);
  });

  test("that follows another key's is its own", async () => {
    const [leader, follower] = [await accepted("submit", { cache: "auto" }), await accepted("other", { cache: "auto" })];
    expect((await readFollower(queues.redis, follower))?.leaderId).toBe(leader);
    expect((await send("other", "GET", `/jobs/${follower}`)).status).toBe(200);
    for (const [who, jobId] of [
      ["other", leader],
      ["submit", follower],
    ] as const)
      await expectProblem(await send(who, "GET", `/jobs/${jobId}`), 404, "unknown-job");
  });

  test("that is an answer from the cache is every key's to see", async () => {
    const cacheKey = "0123456789abcdef0123456789abcdef";
    await new AnswerCache(queues.redis, { ttlSeconds: 60, maxBytes: 1e6 }, () => {}).put(cacheKey, { result: stageResult("student") });
    for (const who of ["other", "read"] as const)
      expect((await send(who, "GET", `/jobs/${cachedJobId("solve", cacheKey)}`)).status).toBe(200);
  });

  test("of a batch belongs to the batch's key, and so does the batch", async () => {
    const response = await send("submit", "POST", "/batches", { requests: [{ problem: "5 + 5", cache: "off" }] });
    const { batchId } = (await response.json()) as { batchId: string };
    expect(response.status).toBe(202);
    const [job] = await queues.student.getJobs(["prioritized"]);
    expect(job?.data.owner).toBe("ann");
    for (const address of ["", "/results", "/errors"]) {
      expect((await send("submit", "GET", `/batches/${batchId}${address}`)).status).toBe(200);
      for (const who of ["other", "read"] as const) expect((await send(who, "GET", `/batches/${batchId}${address}`)).status).toBe(404);
    }
    expect((await send("other", "DELETE", `/batches/${batchId}`)).status).toBe(404);
    expect(await (await send("other", "GET", "/batches")).json()).toEqual({ batches: [] });
    expect((await send("submit", "DELETE", `/batches/${batchId}`)).status).toBe(202);
  });

  test("has its Idempotency-Key for itself", async () => {
    const headers = { "idempotency-key": "shared" };
    const mine = await accepted("submit", {}, headers);
    expect(await accepted("submit", {}, headers)).toBe(mine);
    expect(await accepted("other", {}, headers)).not.toBe(mine);
    expect((await send("other", "POST", "/solve", { problem: "another" }, headers)).status).toBe(409);
  });
});

describe("the board", () => {
  const jobs = async (who: Who) => (await send(who, "GET", `${BOARD_PATH}/api/queues?activeQueue=student&page=1&jobsPerPage=10`)).text();
  const change = (who: Who, address: string) => send(who, "PUT", `${BOARD_PATH}/api/queues/${address}`, {});

  test("shows problems to admins alone", async () => {
    const jobId = await accepted("submit", { problem: "a secret problem", metadata: { client: "somebody" } });
    expect(await jobs("admin")).toContain("a secret problem");
    const [seen, one] = [await jobs("read"), await (await send("read", "GET", `${BOARD_PATH}/api/queues/student/${jobId}`)).text()];
    for (const text of [seen, one]) {
      expect(text).toContain(jobId);
      expect(text).not.toMatch(/a secret problem|somebody/);
    }
  });

  test("lets an admin change what is safe, and writes it down", async () => {
    const jobId = await accepted("submit");
    expect((await change("read", "student/pause")).status).toBe(403);
    expect(await queues.student.isPaused()).toBe(false);
    expect((await change("admin", "student/pause")).status).toBe(200);
    expect(await queues.student.isPaused()).toBe(true);
    expect((await change("admin", "student/resume")).status).toBe(200);
    for (const address of [
      "student/empty",
      "student/obliterate",
      "student/clean/completed",
      "student/retry/failed",
      `student/${jobId}/clean`,
      `student/${jobId}/retry`,
    ])
      expect((await change("admin", address)).status, address).toBe(405);
    expect((await send("admin", "POST", `${BOARD_PATH}/api/queues/student/add`, {})).status).toBe(405);
    expect(await queues.student.getJobState(jobId)).toBe("prioritized");
    await expect
      .poll(async () => (await latestAuditEntries(queues.redis, 100)).map(({ what, status }) => `${what} ${status}`))
      .toEqual(
        expect.arrayContaining([`PUT ${BOARD_PATH}/api/queues/student/pause 200`, `PUT ${BOARD_PATH}/api/queues/student/pause 403`]),
      );
  });
});

test("every admin act is written down with who, what, from where and when, and without secrets", async () => {
  await publishStatus(queues.redis, workerStatus());
  await send("admin", "POST", "/gpu/swap", { model: "talker" });
  await send("admin", "PUT", "/queues/student/rate-limit", { max: 9, durationMs: 1000 });
  await send("admin", "DELETE", "/queues/student/rate-limit");
  await send("read", "DELETE", "/cache");
  await send(null, "DELETE", "/cache");
  const entries = () => latestAuditEntries(queues.redis, 4);
  await expect
    .poll(async () => (await entries()).map(({ what }) => what))
    .toEqual(["DELETE /cache", "DELETE /queues/student/rate-limit", "PUT /queues/student/rate-limit", "POST /gpu/swap"]);
  const [refused, , limited] = await entries();
  expect(refused).toMatchObject({ who: "eve", status: "403" });
  expect(limited).toMatchObject({
    who: "ops",
    status: "200",
    from: "127.0.0.1",
    detail: '{"max":9,"durationMs":1000}',
    at: expect.any(String),
  });
  const lines = logged.filter((line) => line.includes('"audit"'));
  expect(lines.some((line) => line.includes("PUT /queues/student/rate-limit"))).toBe(true);
  for (const secret of Object.values(SECRETS)) expect(JSON.stringify(await entries()) + logged.join()).not.toContain(secret);
});

describe("web pages", () => {
  test("of another origin may change nothing, and read nothing unless they are named", async () => {
    await expectProblem(
      await send("admin", "POST", "/gpu/drain", undefined, { origin: "https://evil.example.org", ...basic(SECRETS.admin) }),
      403,
      "forbidden-origin",
    );
    expect(
      (await send("admin", "GET", "/queues", undefined, { origin: "https://evil.example.org" })).headers.get("access-control-allow-origin"),
    ).toBeNull();
    const named = await send("admin", "GET", "/queues", undefined, { origin: "https://app.example.org" });
    expect([named.status, named.headers.get("access-control-allow-origin")]).toEqual([200, "https://app.example.org"]);
    const preflight = await send(null, "OPTIONS", "/solve", undefined, {
      origin: "https://app.example.org",
      "access-control-request-method": "POST",
    });
    expect([preflight.status, preflight.headers.get("access-control-allow-headers")]).toEqual([
      204,
      expect.stringContaining("Authorization"),
    ]);
    expect(preflight.headers.get("access-control-allow-credentials")).toBeNull();
    expect((await send("submit", "POST", "/solve", { problem: "1" }, { origin: api.url })).status).toBe(202);
  });

  test.each(["/", "/healthz", "/gpu", "/nothing", BOARD_PATH, `${BOARD_PATH}/api/queues`, `${BOARD_PATH}/static/js/nothing.js`])(
    "%s has the headers that keep it from being framed, sniffed or scripted",
    async (address) => {
      const { headers } = await send("admin", "GET", address);
      expect(headers.get("content-security-policy")).toMatch(/default-src 'none'.*frame-ancestors 'none'/);
      expect(headers.get("content-security-policy")).not.toMatch(/script-src[^;]*unsafe/);
      expect([headers.get("x-content-type-options"), headers.get("referrer-policy"), headers.get("x-frame-options")]).toEqual([
        "nosniff",
        "no-referrer",
        "DENY",
      ]);
    },
  );
});

describe("where it listens", () => {
  test("without a key only this machine may reach it, and another address is refused with what to do", async () => {
    const own = await startRedisFixture();
    try {
      const start = (env: Record<string, string>) =>
        startApi({ config: readConfig({ PORT: "0", DATA_DIR: own.dataDir, ...env }), redisUrl: own.url, log, createBoard });
      await expect(start({ HOST: "0.0.0.0" })).rejects.toMatchObject({
        code: "invalid-configuration",
        message: expect.stringMatching(/HOST.*0\.0\.0\.0.*mathllm keys add/),
      });
      const local = await start({});
      const store = new ApiKeys(own.connect());
      try {
        expect((await fetch(`${local.url}/gpu`, { headers: bearer("ignored") })).status).toBe(200);
        await store.add("first", ["read"], { ratePerS: null, maxJobs: null });
        await expect.poll(async () => (await fetch(`${local.url}/gpu`)).status, { timeout: 5000 }).toBe(401);
        await store.revoke("first");
        expect((await fetch(`${local.url}/gpu`)).status).toBe(401);
        await expect(start({ HOST: "0.0.0.0" })).rejects.toMatchObject({ code: "invalid-configuration" });
        const others = await start({ HOST: "0.0.0.0", API_KEYS: `ann:admin:${SECRETS.admin}` });
        const { statusCode, body } = await request(`http://127.0.0.1:${others.port}/gpu`, {
          headers: { host: "mathllm.example.org", ...bearer(SECRETS.admin) },
        });
        await body.dump();
        await others.close();
        expect(statusCode).toBe(200);
        await store.clear();
        await expect.poll(async () => (await fetch(`${local.url}/gpu`)).status, { timeout: 5000 }).toBe(200);
      } finally {
        await local.close();
      }
    } finally {
      await own.stop();
    }
  });
});
