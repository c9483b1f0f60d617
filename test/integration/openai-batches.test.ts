import { readdir, writeFile } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import OpenAI, { APIError, toFile } from "openai";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { FileStore } from "../../api/openai/file-store.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { type ScriptedStage, ScriptedWorkers } from "../scripted-workers.ts";

const log = pino({ level: "silent" });

let redis: RedisFixture;
let queues: Queues;
let config: Config;
let api: RunningApi;
let client: OpenAI;
let workers: ScriptedWorkers | undefined;

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
  config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir, FILE_LIMIT_BYTES: "20000", FILES_MAX_BYTES: "30000", BATCH_MAX_DEPTH: "50" });
});
afterAll(async () => {
  await queues.close();
  await redis.stop();
});
const start = async () => {
  api = await startApi({ config, redisUrl: redis.url, log });
  client = new OpenAI({ apiKey: "none", baseURL: `${api.url}/v1`, maxRetries: 0 });
};
beforeEach(start);
afterEach(async () => {
  await workers?.close();
  workers = undefined;
  for await (const file of client.files.list()) await client.files.delete(file.id);
  await api.close();
  await queues.redis.flushall();
});

const serve = (script: (stage: ScriptedStage) => void) => {
  workers ??= new ScriptedWorkers(redis);
  workers.script = script;
};
const line = (customId: string, content: string, body: object = {}) => ({
  custom_id: customId,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model: "talker", messages: [{ role: "user", content }], ...body },
});
const upload = async (lines: unknown[], filename = "requests.jsonl") => {
  const text = lines.map((each) => (typeof each === "string" ? each : JSON.stringify(each))).join("\n");
  return client.files.create({ file: await toFile(Buffer.from(text), filename), purpose: "batch" });
};
const batchOf = async (lines: unknown[], metadata?: Record<string, string>) => {
  const { id } = await upload(lines);
  return client.batches.create({ input_file_id: id, endpoint: "/v1/chat/completions", completion_window: "24h", metadata });
};
const ended = async (id: string) => {
  await expect
    .poll(async () => (await client.batches.retrieve(id)).status, { timeout: 15_000, interval: 50 })
    .toMatch(/^(completed|cancelled)$/);
  return client.batches.retrieve(id);
};
const linesOf = async (fileId: string | null | undefined) => {
  const text = await (await client.files.content(fileId!)).text();
  return text
    .split("\n")
    .filter((each) => each !== "")
    .map((each) => JSON.parse(each));
};
const refused = async (answer: Promise<unknown>): Promise<APIError> => {
  const error = await answer.then(
    () => undefined,
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(APIError);
  return error;
};

describe("batches", () => {
  test("a file, a batch of it, its states and counts, the answers in order; and through a restart of the API", async () => {
    const batch = await batchOf([line("a", "one"), line("b", "two", { model: "student", max_tokens: 5 }), line("c", "three")], {
      for: "test",
    });
    expect(batch).toMatchObject({
      object: "batch",
      endpoint: "/v1/chat/completions",
      status: "in_progress",
      request_counts: { total: 3, completed: 0, failed: 0 },
      metadata: { for: "test" },
      completion_window: "24h",
      output_file_id: null,
      error_file_id: null,
      errors: null,
    });
    const page = await client.batches.list({ limit: 1 });
    expect(page.data).toMatchObject([{ id: batch.id, input_file_id: batch.input_file_id }]);
    await api.close();
    await start();
    serve((stage) => stage.complete({ text: `${stage.job.data.messages![0]!.content}!`, usage: { promptTokens: 3, completionTokens: 2 } }));
    const done = await ended(batch.id);
    expect(done).toMatchObject({ status: "completed", request_counts: { total: 3, completed: 3, failed: 0 }, error_file_id: null });
    expect(done.completed_at).toBeGreaterThanOrEqual(done.created_at);
    const lines = await linesOf(done.output_file_id);
    expect(
      lines.map(({ custom_id, response, error }) => [custom_id, response.status_code, response.body.choices[0].message.content, error]),
    ).toEqual([
      ["a", 200, "one!", null],
      ["b", 200, "two!", null],
      ["c", 200, "three!", null],
    ]);
    expect(lines[1].response.body).toMatchObject({ object: "chat.completion", model: "student", usage: { total_tokens: 5 } });
    const file = await client.files.retrieve(done.output_file_id!);
    expect(file).toMatchObject({ object: "file", purpose: "batch_output" });
    expect(file.bytes).toBe(Buffer.byteLength(await (await client.files.content(file.id)).text()));
    await client.files.delete(file.id);
    expect(await refused(client.files.content(file.id) as unknown as Promise<unknown>)).toMatchObject({ status: 404 });
    const data = await (await workers!.picked((await queues.student.getJobs())[0]!.id!)).job.data;
    expect(data).toMatchObject({ priority: "batch", sampling: { maxTokens: 5, temperature: 0 } });
  });

  test("lines that are wrong and jobs that fail end in the error file; the others are answered", async () => {
    serve((stage) => {
      if (stage.job.data.messages![0]!.content === "fail") {
        stage.fail(Object.assign(new Error("problem-too-long: 9 tokens"), { name: "UnrecoverableError" }));
      } else stage.complete({ text: "Hello." });
    });
    const batch = await batchOf([
      line("a", "one"),
      "{",
      line("c", "fail"),
      line("d", "n", { n: 2 }),
      { ...line("e", "url"), url: "/v1/embeddings" },
      line("a", "again"),
      line("g", "stream", { stream: true }),
    ]);
    expect(batch.errors!.data!.map((error) => error.line)).toEqual([2, 4, 5, 6, 7]);
    const done = await ended(batch.id);
    expect(done.request_counts).toEqual({ total: 7, completed: 1, failed: 6 });
    expect((await linesOf(done.output_file_id)).map(({ custom_id }) => custom_id)).toEqual(["a"]);
    const errors = await linesOf(done.error_file_id);
    expect(errors.map(({ custom_id, response }) => [custom_id, response.status_code, response.body.error.type])).toEqual([
      [null, 400, "invalid_request_error"],
      ["d", 400, "invalid_request_error"],
      ["e", 400, "invalid_request_error"],
      ["a", 400, "invalid_request_error"],
      ["g", 400, "invalid_request_error"],
      ["c", 400, "invalid_request_error"],
    ]);
    expect(errors.at(-1).response.body.error).toMatchObject({ code: "context_length_exceeded", message: "9 tokens" });
  });

  test("cancelled: what was answered stays, what was not has no response", async () => {
    serve((stage) => {
      if (stage.job.data.messages![0]!.content === "one") stage.complete({ text: "Hello." });
    });
    const batch = await batchOf([line("a", "one"), line("b", "two")]);
    await expect.poll(async () => (await client.batches.retrieve(batch.id)).request_counts!.completed, { timeout: 15_000 }).toBe(1);
    const { status } = await client.batches.cancel(batch.id);
    expect(status).toMatch(/^cancell(ing|ed)$/);
    for (const job of await queues.talker.getActive()) {
      (await workers!.picked(job.id!)).fail(Object.assign(new Error("cancelled: on request"), { name: "UnrecoverableError" }));
    }
    const done = await ended(batch.id);
    expect(done).toMatchObject({ status: "cancelled", request_counts: { total: 2, completed: 1, failed: 0 }, completed_at: null });
    expect((await linesOf(done.output_file_id)).map(({ custom_id }) => custom_id)).toEqual(["a"]);
    expect(await linesOf(done.error_file_id)).toMatchObject([{ custom_id: "b", response: null, error: { code: "batch_cancelled" } }]);
  });

  test("what does not fit into the queue is refused whole, and none of it waits on", async () => {
    const lines = Array.from({ length: 60 }, (_, i) => line(`${i}`, `${i}`));
    const full = await refused(batchOf(lines));
    expect(full).toMatchObject({ status: 429, code: "queue-full" });
    expect(full.message).toContain("The batch was cancelled.");
    expect(Number(full.headers!.get("retry-after"))).toBeGreaterThan(0);
    const [left] = (await client.batches.list()).data;
    expect((await ended(left!.id)).status).toBe("cancelled");
    expect(await queues.talker.getJobCountByTypes("waiting", "prioritized")).toBe(0);
  }, 20_000);

  test.each([
    [{ endpoint: "/v1/embeddings" }, 400, "endpoint"],
    [{ completion_window: "1h" }, 400, "completion_window"],
    [{ input_file_id: "file-000000000000000000000000" }, 404, "input_file_id"],
    [{ input_file_id: "../../etc/passwd" }, 404, "input_file_id"],
  ])("%j is refused", async (body, status, param) => {
    const { id } = await upload([line("a", "one")]);
    const given = { input_file_id: id, endpoint: "/v1/chat/completions", completion_window: "24h", ...body };
    expect(await refused(client.batches.create(given as OpenAI.BatchCreateParams))).toMatchObject({ status, param });
    expect(await refused(client.batches.retrieve("batch-000000000000000000000000"))).toMatchObject({ status: 404 });
    expect(await refused(client.batches.cancel("nonsense"))).toMatchObject({ status: 404 });
  });
});

describe("files", () => {
  test("kept as they came, listed, deleted; still there after a restart", async () => {
    const text = JSON.stringify(line("a", "ü"));
    const file = await upload([text], '../..\\ünï "x".jsonl');
    expect(file).toMatchObject({ object: "file", purpose: "batch", bytes: Buffer.byteLength(text), status: "processed" });
    expect(file.filename).toContain("x");
    const second = await upload([text]);
    await api.close();
    await start();
    expect((await client.files.list()).data.map(({ id }) => id).sort()).toEqual([file.id, second.id].sort());
    const [first] = (await client.files.list({ limit: 1, order: "asc" })).data;
    const rest = await client.files.list({ after: first!.id, order: "asc" });
    expect([first!.id, ...rest.data.map(({ id }) => id)].sort()).toEqual([file.id, second.id].sort());
    expect(await (await client.files.content(file.id)).text()).toBe(text);
    expect(await client.files.delete(file.id)).toMatchObject({ id: file.id, deleted: true });
    expect(await refused(client.files.retrieve(file.id))).toMatchObject({ status: 404 });
  });

  test("too large, no room for it, another purpose, no file, broken off: refused, and nothing stays", async () => {
    const left = async () => (await readdir(path.join(redis.dataDir, "files"))).length;
    const kept = await upload(["x".repeat(15_000)]);
    const before = await left();
    expect(await refused(upload(["x".repeat(30_000)]))).toMatchObject({ status: 413 });
    expect(await refused(upload(["x".repeat(16_000)]))).toMatchObject({ status: 507, code: "files-full" });
    const small = await toFile(Buffer.from("{}"), "x.jsonl");
    expect(await refused(client.files.create({ file: small, purpose: "fine-tune" }))).toMatchObject({ status: 400, param: "purpose" });
    for (const [body, type, status] of [
      ["{}", "application/json", 415],
      ["", "multipart/form-data", 400],
      ["--x\r\nnonsense", "multipart/form-data; boundary=x", 400],
      ['--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n', "multipart/form-data; boundary=x", 400],
      ['--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{}', "multipart/form-data; boundary=x", 400],
    ] as const) {
      const response = await fetch(`${api.url}/v1/files`, { method: "POST", body, headers: { "content-type": type } });
      expect([response.status, await response.json()]).toEqual([
        status,
        { error: expect.objectContaining({ type: "invalid_request_error" }) },
      ]);
    }
    expect(await left()).toBe(before);
    const { port } = new URL(api.url);
    const leaving = net.connect(Number(port), "127.0.0.1");
    leaving.write(
      "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 5000\r\n\r\n" +
        '--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{}',
    );
    await expect.poll(left, { timeout: 15_000, interval: 10 }).toBe(before + 1);
    leaving.destroy();
    await expect.poll(left, { timeout: 15_000, interval: 10 }).toBe(before);
    await client.files.delete(kept.id);
    expect(await left()).toBe(before - 2);
  });

  test("expired files and what a process that died has left go with the next upload", async () => {
    const folder = path.join(redis.dataDir, "other-files");
    const store = new FileStore(folder, { fileLimitBytes: 100, filesMaxBytes: 1000, retentionSeconds: 60 });
    const { Readable } = await import("node:stream");
    const put = (now: number) => store.store(Readable.from([Buffer.from("{}")]), { filename: "f", owner: null }, now);
    const old = await put(Date.now() - 61_000);
    await writeFile(path.join(folder, "file-0123456789abcdef01234567.part"), "x");
    expect(await store.read(old.id)).toBeUndefined();
    const fresh = await put(Date.now());
    expect((await readdir(folder)).sort()).toEqual(["file-0123456789abcdef01234567.part", `${fresh.id}.json`, `${fresh.id}.jsonl`].sort());
    const { utimes } = await import("node:fs/promises");
    await utimes(path.join(folder, "file-0123456789abcdef01234567.part"), 1, 1);
    const last = await put(Date.now());
    expect((await store.list()).map(({ id }) => id).sort()).toEqual([fresh.id, last.id].sort());
    expect(await readdir(folder)).toHaveLength(4);
  });
});
