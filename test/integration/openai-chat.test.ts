import OpenAI, { APIError, APIUserAbortError } from "openai";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { CLASS_PRIORITY, keys } from "../../queues/names.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { startGpuWorker } from "../../workers/main.ts";
import { FakeGpu } from "../fakes/fake-engine.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";
import { type ScriptedStage, ScriptedWorkers } from "../scripted-workers.ts";

const log = pino({ level: "silent" });
const published = JSON.stringify({ modelId: "m", digest: "d", promptVersion: "p", maxTokens: 100 });

let redis: RedisFixture;
let queues: Queues;
let config: Config;
let api: RunningApi;
let client: OpenAI;
let workers: ScriptedWorkers | undefined;

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
});
afterAll(async () => {
  await queues.close();
  await redis.stop();
});
beforeEach(async () => {
  config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir, NORMAL_MAX_DEPTH: "3", GPU_ID: "openai" });
  api = await startApi({ config, redisUrl: redis.url, log });
  client = new OpenAI({ apiKey: "none", baseURL: `${api.url}/v1`, maxRetries: 0 });
});
afterEach(async () => {
  await workers?.close();
  workers = undefined;
  await api.close();
  await queues.redis.flushall();
});

const hello = [{ role: "user" as const, content: "Say hello." }];
const ask = (body: Partial<OpenAI.ChatCompletionCreateParamsNonStreaming> = {}, options?: OpenAI.RequestOptions) =>
  client.chat.completions.create({ model: "talker", messages: hello, ...body }, options);
/** What every stage does by itself. */
const serve = (script: (stage: ScriptedStage) => void) => {
  workers ??= new ScriptedWorkers(redis);
  workers.script = script;
};
const jobs = async () => (await Promise.all([queues.student.getJobs(), queues.talker.getJobs()])).flat();
const onlyJob = async () => {
  await expect.poll(async () => (await jobs()).length, { timeout: 15_000, interval: 10 }).toBe(1);
  return (await jobs())[0]!;
};
const refused = async (answer: Promise<unknown>): Promise<APIError> => {
  const error = await answer.then(
    () => undefined,
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(APIError);
  return error;
};

describe("the official client", () => {
  test("models: the two roles; another is not found", async () => {
    const { data } = await client.models.list();
    expect(data.map(({ id, object }) => [id, object])).toEqual([
      ["student", "model"],
      ["talker", "model"],
    ]);
    expect((await client.models.retrieve("student")).id).toBe("student");
    expect(await refused(client.models.retrieve("gpt-5"))).toMatchObject({ status: 404, code: "model_not_found", param: "model" });
  });

  test("a whole answer: text, usage, finish reason, and the wait in the headers", async () => {
    serve((stage) => stage.complete({ text: "Hello.", usage: { promptTokens: 3, completionTokens: 2 } }));
    const { data, response } = await ask().withResponse();
    expect(data).toMatchObject({
      object: "chat.completion",
      model: "talker",
      choices: [{ index: 0, message: { role: "assistant", content: "Hello." }, finish_reason: "stop", logprobs: null }],
      usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 },
    });
    const jobId = response.headers.get("x-mathllm-job-id");
    expect(data.id).toBe(`chatcmpl-${jobId}`);
    const { timestamps } = (await (await fetch(`${api.url}/jobs/${jobId}`)).json()) as { timestamps: Record<string, number> };
    expect(Number(response.headers.get("x-mathllm-queue-wait-ms"))).toBe(timestamps.pickedAt! - timestamps.acceptedAt!);
    expect(response.headers.get("x-mathllm-cache")).toBe("miss");
    serve((stage) => stage.complete({ text: "Hel", truncated: true }));
    expect((await ask({ model: "student", max_tokens: 1 })).choices[0]!.finish_reason).toBe("length");
  });

  test("a stream: the role, each piece as it comes, the finish reason, the usage where it was asked for", async () => {
    serve(() => {});
    const request = { model: "talker", messages: hello, stream: true, stream_options: { include_usage: true } } as const;
    const opening = client.chat.completions.create(request).withResponse();
    const stage = await workers!.picked((await onlyJob()).id!);
    stage.write("Hel");
    const { data: stream, response } = await opening;
    expect(Number(response.headers.get("x-mathllm-queue-wait-ms"))).toBeGreaterThanOrEqual(0);
    const chunks: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of stream) {
      chunks.push(chunk);
      if (chunk.choices[0]?.delta.content === "Hel") stage.write("lo.");
      if (chunk.choices[0]?.delta.content === "lo.") stage.complete({ usage: { promptTokens: 3, completionTokens: 2 } });
    }
    expect(chunks.map(({ choices: [choice], usage }) => [choice?.delta, choice?.finish_reason, usage?.total_tokens])).toEqual([
      [{ role: "assistant", content: "" }, null, undefined],
      [{ content: "Hel" }, null, undefined],
      [{ content: "lo." }, null, undefined],
      [{}, "stop", undefined],
      [undefined, undefined, 5],
    ]);
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
    serve((next) => next.complete({ text: "Hello." }));
    const plain = await client.chat.completions.create({ ...request, stream_options: undefined });
    const usages: unknown[] = [];
    for await (const chunk of plain) usages.push("usage" in chunk);
    expect(usages).toEqual([false, false, false]);
  });

  test("aborted by the client, streamed or not, before or while it is answered: the job is cancelled", async () => {
    const flag = async (jobId: string) => queues.redis.get(keys.cancelled(jobId));
    for (const stream of [true, false]) {
      for (const isPicked of [true, false]) {
        await queues.redis.flushall();
        if (isPicked) serve((stage) => stage.write("Hel"));
        const left = new AbortController();
        const answer = (async () => {
          const stream_ = await client.chat.completions.create(
            // Of a class whose depth is not the subject: what was emptied a moment ago may still be counted.
            { model: "talker", messages: hello, stream, service_tier: "flex" },
            { signal: left.signal },
          );
          if (stream) for await (const _ of stream_ as AsyncIterable<unknown>) left.abort();
        })();
        const { id } = await onlyJob();
        if (isPicked) await workers!.picked(id!);
        // What is streamed is aborted at its first text, which may have come by now.
        if (!(stream && isPicked)) {
          expect(await flag(id!)).toBeNull();
          left.abort();
        }
        // The iteration of an aborted stream just ends.
        await answer.catch((error) => expect(error).toBeInstanceOf(APIUserAbortError));
        await expect.poll(() => flag(id!), { timeout: 15_000, interval: 10 }).not.toBeNull();
        await workers?.close();
        workers = undefined;
      }
    }
  });
});

describe("the same queues, cache and limits", () => {
  test("the conversation reaches the model as it was sent, with its sampling; parts are joined", async () => {
    const gpu = new FakeGpu();
    const worker = await startGpuWorker({
      config,
      redisUrl: redis.url,
      createEngine: gpu.create,
      log,
      onFatal: (error) => gpu.violations.push(error.message),
    });
    try {
      const answer = await ask({
        model: "student",
        messages: [
          { role: "developer", content: "Be short." },
          {
            role: "user",
            content: [
              { type: "text", text: "What is " },
              { type: "text", text: "1 + 0?" },
            ],
          },
          { role: "assistant", content: "1" },
          { role: "user", content: "Sure?" },
        ],
        max_completion_tokens: 7,
        temperature: 0.5,
        top_p: 0.9,
        seed: 4,
        stop: "\n\n",
      });
      expect(answer.choices[0]!.message.content).toBe("It is 1.\n\\boxed{1}");
      expect(gpu.lastRequest).toMatchObject({
        messages: [
          { role: "system", content: "Be short." },
          { role: "user", content: "What is 1 + 0?" },
          { role: "assistant", content: "1" },
          { role: "user", content: "Sure?" },
        ],
        max_tokens: 7,
        temperature: 0.5,
        top_p: 0.9,
        seed: 4,
        stop: ["\n\n"],
      });
    } finally {
      await worker.stop(0);
    }
    expect(gpu.violations).toEqual([]);
  });

  test("an answer from the cache comes at once, whole or streamed, with its size; another conversation is another answer", async () => {
    await queues.redis.hset(keys.publishedModels, "talker", published);
    const { AnswerCache } = await import("../../queues/answer-cache.ts");
    const { talkKey } = await import("../../queues/cache-key.ts");
    const { stageResult } = await import("../stand-in-worker.ts");
    const cache = new AnswerCache(queues.redis, { ttlSeconds: 60, maxBytes: 1e6 }, () => {});
    const result = { ...stageResult("talker"), text: "Hello.", usage: { promptTokens: 3, completionTokens: 2 } };
    await cache.put(talkKey(JSON.parse(published), { problem: "", messages: hello, sampling: { temperature: 0 } }), { result });
    const { data, response } = await ask().withResponse();
    expect(data.choices[0]!.message.content).toBe("Hello.");
    expect(data.usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 2, prompt_tokens_details: { cached_tokens: 3 } });
    expect([response.headers.get("x-mathllm-cache"), response.headers.get("x-mathllm-queue-wait-ms")]).toEqual(["hit", "0"]);
    let text = "";
    for await (const chunk of await client.chat.completions.create({ model: "talker", messages: hello, stream: true })) {
      text += chunk.choices[0]?.delta.content ?? "";
    }
    expect(text).toBe("Hello.");
    serve((stage) => stage.complete({ text: "Another." }));
    const other = [{ role: "system" as const, content: "" }, ...hello];
    for (const answer of [ask({ messages: other }), ask({ temperature: 1 }), ask({}, { headers: { "X-Mathllm-Cache": "off" } })]) {
      expect((await answer).choices[0]!.message.content).toBe("Another.");
    }
  });

  test("one that leaves takes nothing from another with the same conversation", async () => {
    await queues.redis.hset(keys.publishedModels, "talker", published);
    const left = new AbortController();
    const first = ask({}, { signal: left.signal });
    const leader = await onlyJob();
    const second = ask().withResponse();
    await expect.poll(() => queues.redis.keys(keys.follower("*")), { timeout: 15_000, interval: 10 }).toHaveLength(1);
    left.abort();
    await first.catch(() => {});
    await expect.poll(() => queues.redis.get(keys.cancelled(leader.id!)), { timeout: 15_000, interval: 10 }).not.toBeNull();
    serve((stage) => {
      if (stage.job.id === leader.id) stage.fail(Object.assign(new Error("cancelled: on request"), { name: "UnrecoverableError" }));
      else stage.complete({ text: "Hello." });
    });
    expect((await second).data.choices[0]!.message.content).toBe("Hello.");
  });

  test("the class: a service tier, or a header, which wins", async () => {
    for (const [priority, body, header] of [
      ["normal", {}, undefined],
      ["batch", { service_tier: "flex" }, undefined],
      ["interactive", { service_tier: "priority" }, undefined],
      ["interactive", { service_tier: "flex" }, "interactive"],
    ] as const) {
      await queues.redis.flushall();
      const left = new AbortController();
      const headers = header === undefined ? {} : { "X-Mathllm-Priority": header };
      const answer = ask(body, { headers, signal: left.signal });
      expect((await onlyJob()).priority).toBe(CLASS_PRIORITY[priority]);
      left.abort();
      await answer.catch(() => {});
    }
  });

  test("a full queue is 429 with Retry-After; a failed job has a status of its own, streamed or not, and says whether to send it again", async () => {
    const left = new AbortController();
    const waiting = [1, 2, 3].map((i) => ask({ messages: [{ role: "user", content: `${i}` }] }, { signal: left.signal }).catch(() => {}));
    await expect.poll(async () => (await jobs()).length, { timeout: 15_000, interval: 10 }).toBe(3);
    const full = await refused(ask());
    expect(full).toMatchObject({ status: 429, code: "queue-full", type: "rate_limit_error" });
    expect(Number(full.headers!.get("retry-after"))).toBeGreaterThan(0);
    left.abort();
    await Promise.all(waiting);
    await queues.redis.flushall();
    const late = await refused(ask({ service_tier: "flex" }, { headers: { "X-Mathllm-Timeout-Ms": "1" } }));
    expect(late).toMatchObject({ status: 504, code: "deadline-exceeded" });
    serve((stage) => stage.fail(Object.assign(new Error("problem-too-long: 9 tokens"), { name: "UnrecoverableError" })));
    for (const stream of [false, true]) {
      const error = await refused(client.chat.completions.create({ model: "talker", messages: hello, stream, service_tier: "flex" }));
      expect(error).toMatchObject({ status: 400, code: "context_length_exceeded", type: "invalid_request_error" });
      expect(error.message).toContain("9 tokens");
      expect(error.headers!.get("x-should-retry")).toBe("false");
    }
  });

  test("a stream whose model dies: the same text goes on where it was; another one ends in an error", async () => {
    for (const again of ["Hello.", "Good day."]) {
      await queues.redis.flushall();
      serve((stage) => {
        if (stage.job.attemptsStarted > 1) {
          stage.write(again);
          stage.complete({ text: again });
        }
      });
      const stream = client.chat.completions.create({ model: "talker", messages: hello, stream: true });
      const first = await workers!.picked((await onlyJob()).id!);
      first.write("Hell");
      let text = "";
      const reading = (async () => {
        for await (const chunk of await stream) {
          text += chunk.choices[0]?.delta.content ?? "";
          if (text === "Hell") first.fail(new Error("engine-failed: it died"));
        }
      })();
      if (again === "Hello.") await reading;
      else expect((await refused(reading)).message).toContain("differs");
      expect(text).toBe(again === "Hello." ? "Hello." : "Hell");
    }
  });

  test("an API that is being stopped says so, and cancels", async () => {
    const answer = refused(ask());
    const { id } = await onlyJob();
    await api.close();
    expect(await answer).toMatchObject({ status: 503, code: "shutting-down" });
    expect(await queues.redis.get(keys.cancelled(id!))).not.toBeNull();
  });
});

describe("what is refused", () => {
  test.each([
    [{ n: 2 }, "n"],
    [{ logprobs: true }, "logprobs"],
    [{ top_logprobs: 3 }, "top_logprobs"],
    [{ tools: [{ type: "function", function: { name: "f" } }] }, "tools"],
    [{ response_format: { type: "json_object" } }, "response_format"],
    [{ presence_penalty: 1 }, "presence_penalty"],
    [{ logit_bias: { 1: 1 } }, "logit_bias"],
    [{ temperature: 3 }, "temperature"],
    [{ top_p: 0 }, "top_p"],
    [{ max_tokens: 0 }, "max_tokens"],
    [{ seed: 1.5 }, "seed"],
    [{ stop: ["1", "2", "3", "4", "5"] }, "stop"],
    [{ stream: "yes" }, "stream"],
    [{ messages: [] }, "messages"],
    [{ messages: [{ role: "tool", content: "1" }] }, "messages.0.role"],
    [{ messages: [{ role: "user", content: null }] }, "messages.0.content"],
    [{ messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "data:" } }] }] }, "messages.0.content.0.type"],
    [{ service_tier: "scale" }, "service_tier"],
  ])("%j", async (body, param) => {
    expect(await refused(ask(body as object))).toMatchObject({ status: 400, param, type: "invalid_request_error" });
    expect(await jobs()).toEqual([]);
  });

  test("an unknown model, a wrong header, address, method, content type and body: all in the envelope", async () => {
    expect(await refused(ask({ model: "gpt-5" }))).toMatchObject({ status: 404, code: "model_not_found", param: "model" });
    for (const [header, value] of Object.entries({ priority: "now", cache: "yes", "timeout-ms": "soon" })) {
      expect(await refused(ask({}, { headers: { [`X-Mathllm-${header}`]: value } }))).toMatchObject({
        status: 400,
        param: `x-mathllm-${header}`,
      });
    }
    const json = { "content-type": "application/json" };
    for (const [status, address, init] of [
      [404, "/v1/nothing", {}],
      [405, "/v1/models", { method: "POST" }],
      [405, "/v1/chat/completions", {}],
      [415, "/v1/chat/completions", { method: "POST", body: "{}" }],
      [400, "/v1/chat/completions", { method: "POST", body: "{", headers: json }],
      [400, "/v1/chat/completions", { method: "POST", body: "[]", headers: json }],
      [413, "/v1/chat/completions", { method: "POST", body: JSON.stringify("x".repeat(300_000)), headers: json }],
      [403, "/v1/models", { headers: { origin: "https://elsewhere.example" } }],
    ] as const) {
      const response = await fetch(api.url + address, init);
      const body = (await response.json()) as { error: { code: unknown } };
      expect([response.status, body]).toEqual([
        status,
        {
          error: {
            message: expect.any(String),
            type: expect.stringMatching(/^(invalid_request|permission)_error$/),
            param: null,
            code: body.error.code,
          },
        },
      ]);
      expect(response.headers.get("access-control-allow-origin")).toBeNull();
    }
  });
});
