import { UnrecoverableError } from "bullmq";
import { pino } from "pino";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { readConfig } from "../../queues/config.ts";
import { type JobView, jobViewSchema, type StageResult } from "../../queues/contracts.ts";
import { CLASS_PRIORITY, keys, type Role, studentStageId } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { expectProblem } from "../problem-document.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { endingJobs, stageResult } from "../stand-in-worker.ts";

let redis: RedisFixture;
let api: RunningApi;
let queues: Queues;

beforeAll(async () => {
  redis = await startRedisFixture();
  const config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir, JOB_ATTEMPTS: "2", JOB_RETENTION_SECONDS: "600" });
  api = await startApi({ config, redisUrl: redis.url, log: pino({ level: "silent" }) });
  queues = openQueues(redis.connect(), () => {});
});
afterAll(async () => {
  await queues?.close();
  await api?.close();
  await redis?.stop();
});
beforeEach(async () => {
  await queues.redis.flushall();
});

const send = (body: RequestInit["body"], headers: Record<string, string>) =>
  fetch(`${api.url}/solve`, { method: "POST", headers, body, duplex: "half" } as RequestInit);
const post = (body: unknown, headers: Record<string, string> = {}) =>
  send(JSON.stringify(body), { "content-type": "application/json", ...headers });
const acceptedId = async (response: Response): Promise<string> => {
  expect(response.status).toBe(202);
  return ((await response.json()) as { jobId: string }).jobId;
};
const view = async (jobId: string, query = ""): Promise<JobView> =>
  jobViewSchema.parse(await (await fetch(`${api.url}/jobs/${jobId}${query}`)).json());

const ending = <T>(role: Role, processor: () => Promise<StageResult>, body: () => Promise<T>) => endingJobs(redis, role, processor, body);

describe("what stands in the queues", () => {
  test.each([
    ["interactive", CLASS_PRIORITY.interactive],
    ["normal", CLASS_PRIORITY.normal],
    ["batch", CLASS_PRIORITY.batch],
    [undefined, CLASS_PRIORITY.normal],
  ])("class %s is priority %i, with the configured attempts and retention", async (priority, number) => {
    const job = (await queues.student.getJob(await acceptedId(await post({ problem: "1", priority }))))!;
    expect([job.priority, await job.getState()]).toEqual([number, "prioritized"]);
    expect(job.opts).toMatchObject({ attempts: 2, removeOnComplete: { age: 600 }, removeOnFail: { age: 600 } });
  });

  test("interactive runs before normal before batch, each in the order it came", async () => {
    const ids: Record<string, string> = {};
    for (const name of ["batch", "normal", "interactive", "normal2"])
      ids[name] = await acceptedId(await post({ problem: "1", priority: name.replace("2", "") }));
    expect(await queues.redis.zrange(queues.student.toKey("prioritized"), 0, "-1")).toEqual(
      ["interactive", "normal", "normal2", "batch"].map((name) => ids[name]),
    );
    expect((await view(ids.batch!)).position).toBe(3);
  });

  test("explain: the same data and priority in both stages, and the Talker gets the Student's result", async () => {
    const jobId = await acceptedId(await post({ problem: "1", explain: true, priority: "interactive", metadata: { user: "u" } }));
    const [parent, child] = await Promise.all([queues.talker.getJob(jobId), queues.student.getJob(studentStageId(jobId))]);
    expect(child?.data).toEqual(parent?.data);
    expect(child?.data).toMatchObject({ kind: "explain", problem: "1", metadata: { user: "u" } });
    expect([child?.priority, child?.parent?.id]).toEqual([CLASS_PRIORITY.interactive, jobId]);
    await ending(
      "student",
      async () => stageResult("student"),
      () => expect.poll(() => queues.talker.getJobState(jobId)).toBe("prioritized"),
    );
    expect(Object.values(await parent!.getChildrenValues())).toEqual([stageResult("student")]);
  });

  test("a Talker that failed leaves the job completed: the solution stands, its stage says what was wrong", async () => {
    const jobId = await acceptedId(await post({ problem: "1", explain: true }));
    const fail = async () => {
      throw new UnrecoverableError("engine-refused: not this one");
    };
    const seen = await ending(
      "student",
      async () => stageResult("student"),
      () => ending("talker", fail, () => view(jobId, "?wait=30")),
    );
    expect(seen).toMatchObject({
      status: "completed",
      result: { answer: "1", solution: "by the student", explanation: null },
      error: null,
      stages: [
        { model: "student", status: "completed", error: null },
        { model: "talker", status: "failed", error: { code: "engine-refused", detail: "not this one" } },
      ],
    });
  });
});

describe("what is refused", () => {
  const jsonType = { "content-type": "application/json" };

  test("10 MB are refused, told beforehand or in chunks", async () => {
    await expectProblem(await send(" ".repeat(10_000_000), jsonType), 413, "body-too-large");
    const chunks = new ReadableStream({
      start(controller) {
        for (let sent = 0; sent < 10_000_000; sent += 100_000) controller.enqueue(new TextEncoder().encode(" ".repeat(100_000)));
        controller.close();
      },
    });
    await expectProblem(await send(chunks, jsonType), 413, "body-too-large");
  });

  test("every content type but JSON, none at all, and a compressed body", async () => {
    const body = '{"problem":"1"}';
    expect((await expectProblem(await send(body, { "content-type": "text/plain" }), 415, "unsupported-media-type")).detail).toContain(
      "text/plain",
    );
    expect((await expectProblem(await send(undefined, {}), 415, "unsupported-media-type")).detail).toContain("none");
    await expectProblem(await send(body, { ...jsonType, "content-encoding": "gzip" }), 415, "unsupported-media-type");
    await acceptedId(await send(body, { "content-type": "application/json; charset=utf-8" }));
  });

  test.each(["[".repeat(100_000), '{"problem":"1"', '{"problem":"1"}x', "{'problem':1}", "null"])("malformed JSON: %.20s", async (body) => {
    await expectProblem(await send(body, jsonType), 400, "malformed-json");
  });

  test("a name that is no name of ours changes no object of the server", async () => {
    await post(JSON.parse('{"problem":"1","metadata":{"__proto__":{"polluted":"1"}}}'));
    await expectProblem(await send('{"problem":"1","__proto__":{"polluted":true}}', jsonType), 400, "invalid-request");
    expect("polluted" in {}).toBe(false);
  });

  test.each([
    ["PUT", "/solve", "POST"],
    ["GET", "/solve?a=b", "POST"],
    ["PATCH", "/jobs/x", "GET, DELETE"],
    ["POST", "/readyz", "GET"],
    ["DELETE", "/healthz", "GET"],
    ["POST", "/", "GET"],
  ])("%s %s is 405 and names the address and the methods it takes", async (method, address, allow) => {
    const response = await fetch(api.url + address, { method });
    expect(response.headers.get("allow")).toBe(allow);
    const { detail } = await expectProblem(response, 405, "method-not-allowed");
    expect(detail).toBe(`${address.split("?")[0]} takes ${allow}; got ${method}.`);
  });

  test.each([
    ["GET", "/solve/x"],
    ["POST", "/jobs"],
    ["GET", "/../../etc/passwd"],
  ])("%s %s is 404", async (method, address) => {
    await expectProblem(await fetch(api.url + address, { method }), 404, "not-found");
  });
});

describe("Idempotency-Key", () => {
  const key = { "idempotency-key": "a-secret-of-the-client" };

  test("of twenty at once with different bodies one is accepted, the others are told its job", async () => {
    const responses = await Promise.all(Array.from({ length: 20 }, (_, index) => post({ problem: `${index}` }, key)));
    expect(responses.map(({ status }) => status).sort()).toEqual([202, ...Array.from({ length: 19 }, () => 409)]);
    const ids = await Promise.all(responses.map(async (response) => ((await response.json()) as { jobId: string }).jobId));
    expect(new Set(ids).size).toBe(1);
    expect(await queues.student.getJobCountByTypes("prioritized")).toBe(1);
  });

  test("a refused request does not use the key up", async () => {
    await expectProblem(await post({ problem: 7 }, key), 400, "invalid-request");
    await acceptedId(await post({ problem: "7" }, key));
  });

  test("a repeat after the end gives the status of the end", async () => {
    const jobId = await acceptedId(await post({ problem: "1" }, key));
    await ending(
      "student",
      async () => stageResult("student"),
      () => view(jobId, "?wait=30"),
    );
    expect(await (await post({ problem: "1" }, key)).json()).toMatchObject({ jobId, status: "completed" });
  });

  test("a crash before an explained job stood is made up for with both stages", async () => {
    const jobId = await acceptedId(await post({ problem: "1", explain: true }, key));
    await (await queues.talker.getJob(jobId))!.remove();
    expect(await queues.student.getJob(studentStageId(jobId))).toBeUndefined();
    expect(await acceptedId(await post({ problem: "1", explain: true }, key))).toBe(jobId);
    expect(await view(jobId)).toMatchObject({ status: "waiting", stages: [{ model: "student" }, { model: "talker" }] });
    expect(await queues.student.getJobCountByTypes("prioritized")).toBe(1);
  });

  test("the record stays for as long as the job waits, and does not hold the key itself", async () => {
    await acceptedId(await post({ problem: "1" }, key));
    const records = await queues.redis.keys(keys.idempotency("*"));
    expect(records).toHaveLength(1);
    expect(records[0]).not.toContain("secret");
    expect(await queues.redis.ttl(records[0]!)).toBe(-1);
  });
});
