import net from "node:net";
import { UnrecoverableError, Worker } from "bullmq";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { submit } from "../../api/submission.ts";
import { createBoard } from "../../dashboards/board.ts";
import { readConfig } from "../../queues/config.ts";
import type { SolveRequest } from "../../queues/contracts.ts";
import { CLASS_PRIORITY, KEY_PREFIX, studentStageId } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

let redis: RedisFixture;
let queues: Queues;
let api: RunningApi;
const logged: Record<string, unknown>[] = [];
const config = () => readConfig({ PORT: "0", DATA_DIR: redis.dataDir });

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  const log = pino({ level: "info" }, { write: (line: string) => void logged.push(JSON.parse(line)) });
  api = await startApi({ config: config(), redisUrl: redis.url, log, createBoard });
});
afterAll(async () => {
  await api.close();
  await queues.close();
  await redis.stop();
});

const post = (body: string) => fetch(`${api.url}/solve`, { method: "POST", headers: { "content-type": "application/json" }, body });
const board = (address: string, method = "GET") =>
  fetch(`${api.url}/dashboards/queues${address}`, {
    method,
    headers: { "content-type": "application/json" },
    body: method === "GET" ? undefined : "{}",
  });

describe("a refusal stays small and clear", () => {
  const many = (value: unknown) => Object.fromEntries(Array.from({ length: 15_000 }, (_, index) => [`k${index}`, value]));
  test.each([
    ["lists nested a hundred thousand deep", `{"problem":${"[".repeat(100_000)}${"]".repeat(100_000)}}`],
    ["an unknown field with a long name", JSON.stringify({ problem: "1", ["k".repeat(200_000)]: 1 })],
    ["thousands of unknown fields", JSON.stringify({ problem: "1", ...many(1) })],
    ["thousands of wrong entries", JSON.stringify({ problem: "1", metadata: many(1) })],
  ])("%s", async (_name, body) => {
    const response = await post(body);
    const text = await response.text();
    expect([response.status, JSON.parse(text).code]).toEqual([400, "invalid-request"]);
    expect(text.length).toBeLessThan(20_000);
  });

  test("no body at all is told apart from another content type", async () => {
    const socket = net.connect(api.port, "127.0.0.1");
    socket.write("POST /solve HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n");
    let answer = "";
    for await (const chunk of socket) answer += chunk;
    expect(answer).toMatch(/^HTTP\/1.1 400 /);
    expect(answer).toContain("got nothing");
  });
});

test("a request's log line carries the id the client got, and nothing of the problem", async () => {
  const response = await post('{"problem":"a private text"}');
  const { jobId } = (await response.json()) as { jobId: string };
  const requestId = response.headers.get("x-request-id");
  const line = () => logged.find((entry) => entry.requestId === requestId);
  await expect.poll(line).toMatchObject({ level: 30, method: "POST", path: "/solve", status: 202, ms: expect.any(Number) });
  const leaving = new AbortController();
  const left = fetch(`${api.url}/jobs/${jobId}?wait=30`, { signal: leaving.signal }).catch(() => "left");
  await fetch(`${api.url}/jobs/${jobId}?wait=0.05`);
  leaving.abort();
  await left;
  await expect.poll(() => logged.find((entry) => entry.clientLeft)).toMatchObject({ method: "GET", path: `/jobs/${jobId}` });
  expect(JSON.stringify(logged)).not.toContain("private");
});

describe("the board", () => {
  test.each([
    ["PUT", "pause"],
    ["PUT", "empty"],
    ["PUT", "obliterate"],
    ["PUT", "retry/failed"],
    ["PUT", "clean/failed"],
    ["PUT", "promote"],
    ["POST", "add"],
    ["PUT", "solve-1/retry"],
    ["PUT", "solve-1/clean"],
  ])("answers 405 to %s %s on both queues", async (method, change) => {
    for (const queue of ["student", "talker"]) expect((await board(`/api/queues/${queue}/${change}`, method)).status).toBe(405);
  });

  test("pausing all queues pauses none", async () => {
    await board("/api/queues/pause", "PUT");
    expect([await queues.student.isPaused(), await queues.talker.isPaused()]).toEqual([false, false]);
  });

  test("its pages are HTML, its data JSON, and what it does not know is our 404", async () => {
    expect((await board("")).headers.get("content-type")).toContain("text/html");
    const { queues: listed } = (await (await board("/api/queues")).json()) as { queues: { name: string; readOnlyMode: boolean }[] };
    expect(listed.map(({ name, readOnlyMode }) => [name, readOnlyMode])).toEqual([
      ["student", true],
      ["talker", true],
    ]);
    expect((await board("/api/nothing")).headers.get("content-type")).toContain("application/problem+json");
  });
});

describe("a flow that is added twice (two requests with one key at once)", () => {
  const request: SolveRequest = {
    problem: "1",
    explain: true,
    model: "student",
    priority: "batch",
    cache: "auto" as const,
    samples: 1,
    sampling: { temperature: 0 },
  };
  /** The state in which the second request saw no job yet although it is there by now. */
  const blind = (): Queues => ({ ...queues, talker: Object.create(queues.talker, { getJob: { value: async () => undefined } }) });
  const runUntil = async (role: "student" | "talker", processor: () => Promise<unknown>, id: string, state: string) => {
    const worker = new Worker(role, processor, { connection: redis.connect(), prefix: KEY_PREFIX });
    await expect.poll(() => queues[role].getJobState(id)).toBe(state);
    await worker.close();
  };
  const states = async (jobId: string) => [
    await queues.student.getJobState(studentStageId(jobId)),
    await queues.talker.getJobState(jobId),
    (await queues.talker.getJob(jobId))?.priority,
  ];
  const refuse = async () => {
    throw new UnrecoverableError("engine-refused: no");
  };

  test.each([
    ["done", async () => 1, "completed", "completed"],
    ["failed", refuse, "failed", "failed"],
  ])("changes nothing once its Student is %s", async (outcome, processor, studentState, talkerState) => {
    const { jobId } = await submit(queues, config(), request, { idempotencyKey: `flow-${outcome}` });
    await runUntil("student", processor, studentStageId(jobId), studentState);
    const before = [studentState, "prioritized", CLASS_PRIORITY.batch];
    expect(await states(jobId)).toEqual(before);
    expect((await submit(blind(), config(), request, { idempotencyKey: `flow-${outcome}` })).jobId).toBe(jobId);
    expect(await states(jobId)).toEqual(before);
    await runUntil("talker", async () => 1, jobId, talkerState);
    await submit(blind(), config(), request, { idempotencyKey: `flow-${outcome}` });
    expect(await states(jobId)).toEqual([studentState, talkerState, CLASS_PRIORITY.batch]);
  });
});
