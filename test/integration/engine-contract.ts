import { once } from "node:events";
import { readFileSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { lastBoxed } from "../../maths/answers.ts";
import type { ModelProfile } from "../../queues/config.ts";
import { isAlive } from "../../queues/process-identity.ts";
import { bearer } from "../../workers/engines/authorization.ts";
import { ChatClient } from "../../workers/engines/chat-client.ts";
import type { Endpoint, Engine } from "../../workers/engines/engine.ts";
import { readIntoPageCache } from "../../workers/gpu/page-cache.ts";
import { solvePrompt } from "../../workers/solve/prompts.ts";

const START_TIMEOUT_MS = 120_000;
/** What the worker's own environment may have and no model server gets. */
const SECRETS = {
  API_KEY: "k".repeat(20),
  API_KEYS: "a:admin:0123456789",
  HF_TOKEN: "hf_secret",
  OPENAI_API_KEY: "sk-secret",
  REDIS_URL: "redis://:secret@127.0.0.1:1",
  STUDENT_API_KEY: "student-secret",
  VLLM_API_KEY_FILE_PASSWORD: "secret",
  WEBHOOK_SECRET: "whsec_secret",
};
const problems = readFileSync(path.join(import.meta.dirname, "../../models/held-out.jsonl"), "utf8")
  .split("\n", 24)
  .map((line) => JSON.parse(line) as { problem: string; answer: string; solution: string });
const longest = problems.reduce((a, b) => (b.solution.length > a.solution.length ? b : a)).problem;

/** What the worker relies on, whichever engine it is. `profile` runs a model that knows the shipped Student's problems. */
export function engineContract(name: string, createEngine: () => Engine, profile: ModelProfile): void {
  describe(`${name}: a running server`, () => {
    let engine: Engine;
    let endpoint: Endpoint;
    let client: ChatClient;
    const never = new AbortController().signal;
    const solve = (problem: string, signal = never) =>
      client.chat({ messages: solvePrompt(problem), maxTokens: 300, temperature: 0 }, { signal });

    beforeAll(async () => {
      for (const [secret, value] of Object.entries(SECRETS)) vi.stubEnv(secret, value);
      engine = createEngine();
      endpoint = await engine.start(profile);
      client = new ChatClient(endpoint.baseUrl, { apiKey: endpoint.apiKey });
    });
    afterAll(async () => {
      await client.close();
      await engine.stop(1000);
      vi.unstubAllEnvs();
    });

    test("ready tells the model, and then health is well", async () => {
      const model = await engine.ready(START_TIMEOUT_MS);
      expect(model.digest).toMatch(/^[0-9a-f]{64}$/);
      expect(model.contextTokens).toBeGreaterThan(100);
      expect((await fetch(`${endpoint.baseUrl}/health`)).status).toBe(200);
      const { data } = (await (await fetch(`${endpoint.baseUrl}/v1/models`, { headers: bearer(endpoint.apiKey) })).json()) as {
        data: { id: string }[];
      };
      expect(data[0]?.id).toBe(model.modelId);
    });

    test("who has not its key gets no completion: another user of the machine, or a web page", async () => {
      const post = async (headers: Record<string, string>) => {
        const body = JSON.stringify({ messages: solvePrompt("What is 17 + 25?"), max_tokens: 1, temperature: 0 });
        const response = await fetch(`${endpoint.baseUrl}/v1/chat/completions`, { method: "POST", headers, body });
        await response.arrayBuffer();
        return response.status;
      };
      const json = { "content-type": "application/json" };
      const page = { origin: "https://page.example", "sec-fetch-site": "cross-site" };
      expect(await post({ ...json, ...bearer(endpoint.apiKey) })).toBe(200);
      expect(await post(json)).toBe(401);
      expect(await post({ ...json, ...bearer(`${endpoint.apiKey}0`) })).toBe(401);
      // What a page can send without being asked first.
      expect(await post({ ...page, "content-type": "text/plain" })).toBeGreaterThanOrEqual(401);
      expect(await post({ ...page, ...json })).toBeGreaterThanOrEqual(401);
    });

    test("it has none of our secrets, and its key stands in no command line", async () => {
      const read = async (file: string) => (await readFile(`/proc/${endpoint.pid}/${file}`, "latin1")).split("\0");
      const names = (await read("environ")).map((entry) => entry.split("=")[0]);
      for (const name of Object.keys(SECRETS)) expect(names).not.toContain(name);
      expect(names).toContain("PATH");
      expect((await read("cmdline")).join(" ")).not.toContain(endpoint.apiKey);
    });

    test("the health check fails while the process is stopped, and not after", async () => {
      await engine.health(5000);
      process.kill(endpoint.pid!, "SIGSTOP");
      await expect(engine.health(200)).rejects.toThrow();
      process.kill(endpoint.pid!, "SIGCONT");
      await engine.health(5000);
    });

    test("a preparation tells the files that a load reads", async () => {
      const { files } = await createEngine().prepare(profile);
      const sizes = files.map((file) => statSync(file).size);
      expect(Math.min(...sizes)).toBeGreaterThan(100_000);
      expect(await readIntoPageCache(files, never)).toBe(sizes.reduce((a, b) => a + b));
      expect(await readIntoPageCache(files, AbortSignal.abort())).toBe(0);
    });

    test("a streamed answer comes in pieces, with usage", async () => {
      const pieces: string[] = [];
      const reply = await client.chat(
        { messages: solvePrompt("What is 17 + 25?"), maxTokens: 300, temperature: 0 },
        { signal: never, onText: (text) => pieces.push(text) },
      );
      expect(pieces.length).toBeGreaterThan(3);
      expect(pieces.join("")).toBe(reply.text);
      expect(reply).toMatchObject({ finishReason: "stop" });
      expect(lastBoxed(reply.text)).toBe("42");
      expect(reply.promptTokens).toBeGreaterThan(10);
      expect(reply.completionTokens).toBeGreaterThan(10);
    });

    test("the same unstreamed", async () => {
      const response = await fetch(`${endpoint.baseUrl}/v1/chat/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", ...bearer(endpoint.apiKey) },
        body: JSON.stringify({ messages: solvePrompt("What is 17 + 25?"), temperature: 0 }),
      });
      const body = (await response.json()) as {
        choices: { message: { content: string }; finish_reason: string }[];
        usage: { total_tokens: number };
      };
      expect(lastBoxed(body.choices[0]!.message.content)).toBe("42");
      expect(body.usage.total_tokens).toBeGreaterThan(20);
    });

    test("answers at once in parallel are as right as one after the other, and the same", async () => {
      const inTurn: string[] = [];
      for (const { problem } of problems) inTurn.push((await solve(problem)).text);
      const together = (await Promise.all(problems.map(({ problem }) => solve(problem)))).map((reply) => reply.text);
      expect(together).toEqual(inTurn);
      expect(together.filter((text, i) => lastBoxed(text) === problems[i]!.answer).length).toBeGreaterThanOrEqual(problems.length - 1);
    });

    test("the token limit cuts with finish reason length; a stop text ends before it", async () => {
      expect(
        await client.chat({ messages: solvePrompt("What is 17 + 25?"), maxTokens: 5, temperature: 0 }, { signal: never }),
      ).toMatchObject({
        finishReason: "length",
        completionTokens: 5,
      });
      const stopped = await client.chat(
        { messages: solvePrompt("What is 17 + 25?"), maxTokens: 300, temperature: 0, stop: ["\\boxed"] },
        { signal: never },
      );
      expect(stopped.text).not.toContain("\\boxed");
    });

    test("requests without a seed get answers of their own, with the same seed the same", async () => {
      const texts = async (seeds: (number | undefined)[]) => {
        const replies = seeds.map((seed) =>
          client.chat(
            { messages: [{ role: "user", content: "Hello there" }], maxTokens: 20, temperature: 2, topP: 1, seed },
            { signal: never },
          ),
        );
        return new Set((await Promise.all(replies)).map((reply) => reply.text));
      };
      expect((await texts(Array(6).fill(undefined))).size).toBeGreaterThan(1);
      expect((await texts([7, 7, 7])).size).toBe(1);
    });

    test("a prompt that does not fit is refused with the reason", async () => {
      await expect(solve("1 + ".repeat(4000))).rejects.toMatchObject({
        code: "problem-too-long",
        message: expect.stringMatching(/\d+ tokens.*\d+/),
      });
    });

    test("a token limit beyond the context is no reason to refuse: the context is the limit", async () => {
      const messages = solvePrompt("What is 17 + 25?");
      const reply = await client.chat({ messages, maxTokens: 100_000, temperature: 0 }, { signal: never });
      expect(lastBoxed(reply.text)).toBe("42");
    });

    test("a malformed request gets OpenAI's error envelope", async () => {
      const post = async (body: string) =>
        fetch(`${endpoint.baseUrl}/v1/chat/completions`, {
          method: "POST",
          headers: { "content-type": "application/json", ...bearer(endpoint.apiKey) },
          body,
        });
      for (const body of ["{", "{}", '{"messages":[{"role":"user","content":"1"}],"max_tokens":"many"}']) {
        const response = await post(body);
        expect(response.status).toBeGreaterThanOrEqual(400);
        expect(await response.json()).toMatchObject({ error: { message: expect.any(String) } });
      }
    });

    test("an abort frees its place", async () => {
      const leave = new AbortController();
      const left = Array.from({ length: profile.maxNumSeqs * 2 }, () =>
        client.chat(
          { messages: solvePrompt("What is 17 + 25?"), maxTokens: 300, temperature: 1.5 },
          { signal: leave.signal, onText: () => leave.abort(new Error("left")) },
        ),
      );
      for (const outcome of await Promise.allSettled(left))
        expect(outcome).toMatchObject({ status: "rejected", reason: { message: "left" } });
      expect(lastBoxed((await solve("What is 17 + 25?")).text)).toBe("42");
      await expect.poll(async () => (await engine.metrics()).requestsRunning).toBe(0);
    });

    test("an abort ends the generation: the rest is not generated", async () => {
      const before = await engine.metrics();
      const whole = await solve(longest);
      const between = await engine.metrics();
      expect(between.completionTokensTotal - before.completionTokensTotal).toBe(whole.completionTokens);
      // As many as run at once: together they take far longer than the abort takes to arrive.
      const leave = new AbortController();
      const left = Array.from({ length: profile.maxNumSeqs }, () =>
        client.chat(
          { messages: solvePrompt(longest), maxTokens: 300, temperature: 0 },
          { signal: leave.signal, onText: () => leave.abort(new Error("left")) },
        ),
      );
      await Promise.allSettled(left);
      await expect.poll(async () => (await engine.metrics()).requestsRunning).toBe(0);
      const after = await engine.metrics();
      expect(after.completionTokensTotal - between.completionTokensTotal).toBeLessThan(profile.maxNumSeqs * whole.completionTokens);
    });

    test("metrics count tokens", async () => {
      await expect.poll(async () => (await engine.metrics()).requestsRunning, { timeout: 10_000 }).toBe(0);
      const before = await engine.metrics();
      const reply = await solve("What is 17 + 25?");
      const after = await engine.metrics();
      expect(after.completionTokensTotal - before.completionTokensTotal).toBe(reply.completionTokens);
      // Some count only those that their prefix cache did not know.
      const promptTokens = after.promptTokensTotal - before.promptTokensTotal;
      expect(promptTokens).toBeGreaterThan(0);
      expect(promptTokens).toBeLessThanOrEqual(reply.promptTokens);
    });

    test("a crash shows: the request breaks off as retryable, exited tells the signal", async () => {
      // As many as run at once: one alone can be answered before the signal arrives.
      const running = Array.from({ length: profile.maxNumSeqs }, () =>
        client.chat(
          { messages: solvePrompt(longest), maxTokens: 300, temperature: 0 },
          { signal: never, onText: () => process.kill(endpoint.pid!, "SIGKILL") },
        ),
      );
      const broken = (await Promise.allSettled(running)).filter(({ status }) => status === "rejected");
      expect(broken.length).toBeGreaterThan(0);
      for (const outcome of broken) expect(outcome).toMatchObject({ reason: { code: "engine-failed", retryable: true } });
      expect(await engine.exited).toMatchObject({ signal: "SIGKILL" });
      await engine.stop(1000);
    });
  });

  describe(`${name}: starting and stopping`, () => {
    test("stop resolves when the process is gone, and again", async () => {
      const engine = createEngine();
      const { pid, startTicks } = await engine.start(profile);
      await engine.ready(START_TIMEOUT_MS);
      expect(isAlive({ pid: pid!, startTicks })).toBe(true);
      await engine.stop(5000);
      expect(isAlive({ pid: pid!, startTicks })).toBe(false);
      await engine.stop(5000);
    });

    test("stop while it starts: nothing is left running", async () => {
      const engine = createEngine();
      const starting = engine.start(profile);
      const refused = expect(starting).rejects.toMatchObject({ code: "engine-failed" });
      await engine.stop(1000);
      await refused;
    });

    test("stop while it loads", async () => {
      const engine = createEngine();
      const { pid, startTicks } = await engine.start(profile);
      const ready = engine.ready(START_TIMEOUT_MS);
      ready.catch(() => {});
      await engine.stop(5000);
      expect(isAlive({ pid: pid!, startTicks })).toBe(false);
      // A tiny model may be there before the stop is.
      const [outcome] = await Promise.allSettled([ready]);
      if (outcome.status === "rejected") expect(outcome.reason).toMatchObject({ code: "engine-failed" });
    });

    test("a kill -9 while it loads fails ready with the signal", async () => {
      const engine = createEngine();
      const { pid } = await engine.start(profile);
      const ready = engine.ready(START_TIMEOUT_MS);
      process.kill(pid!, "SIGKILL");
      await expect(ready).rejects.toMatchObject({ code: "engine-failed", message: expect.stringContaining("SIGKILL") });
    });

    test("a taken port is said before anything is loaded", async () => {
      const taken = net.createServer().listen(0, "127.0.0.1");
      await once(taken, "listening");
      const { port } = taken.address() as net.AddressInfo;
      const engine = createEngine();
      await expect(engine.start({ ...profile, port })).rejects.toMatchObject({
        code: "port-in-use",
        message: expect.stringContaining(String(port)),
      });
      await engine.stop(1000);
      taken.close();
    });

    test("a missing model", async () => {
      const missing = { ...profile, model: "/nowhere/model.gguf" };
      await expect(createEngine().prepare(missing)).rejects.toMatchObject({ code: "model-missing" });
      await expect(createEngine().start(missing)).rejects.toMatchObject({ code: "model-missing" });
    });

    test("the footprint is known before loading", async () => {
      const { weightsBytes, contextBytes } = await createEngine().footprint(profile);
      expect(weightsBytes).toBeGreaterThan(1_000_000);
      expect(contextBytes).toBeGreaterThan(1_000_000);
    });
  });
}
