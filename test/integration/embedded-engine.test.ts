import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import readline from "node:readline";
import { afterAll, beforeAll, expect, test } from "vitest";
import { lastBoxed } from "../../maths/answers.ts";
import { type ModelProfile, readConfig } from "../../queues/config.ts";
import { isAlive, startTicksOf } from "../../queues/process-identity.ts";
import { bearer } from "../../workers/engines/authorization.ts";
import { ChatClient } from "../../workers/engines/chat-client.ts";
import { createEmbeddedEngine } from "../../workers/engines/embedded.ts";
import { solvePrompt } from "../../workers/solve/prompts.ts";
import { TINY_SHAPE, writeRandomModel } from "../fixtures/random-model.ts";
import { engineContract } from "./engine-contract.ts";

const models = path.join(import.meta.dirname, "../../models");
let folder: string;
const profile: ModelProfile = readConfig({ STUDENT_PORT: "0" }).profiles.student;
const createEngine = () => createEmbeddedEngine({ dataDir: folder });

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-engine-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

engineContract("embedded", createEngine, profile);

async function answer(given: ModelProfile, problems: string[]) {
  const engine = createEngine();
  const { baseUrl, apiKey } = await engine.start(given);
  await engine.ready(60_000);
  const client = new ChatClient(baseUrl, { apiKey });
  const signal = AbortSignal.timeout(60_000);
  const replies = await Promise.all(
    problems.map((problem) => client.chat({ messages: solvePrompt(problem), maxTokens: 300, temperature: 0 }, { signal })),
  );
  const metrics = await engine.metrics();
  await client.close();
  await engine.stop(1000);
  return { texts: replies.map((reply) => reply.text), metrics };
}

test("64 different problems at once get the answers that they get in turn", async () => {
  const lines = (await readFile(path.join(models, "held-out.jsonl"), "utf8")).split("\n", 64);
  const problems = lines.map((line) => (JSON.parse(line) as { problem: string }).problem);
  const inTurn = await answer({ ...profile, maxNumSeqs: 1 }, problems);
  const atOnce = await answer(profile, problems);
  expect(atOnce.texts).toEqual(inTurn.texts);
});

test("with the same seed an answer is the same, alone or beside others, its prompt read at once or in pieces", async () => {
  const model = path.join(folder, "random.gguf");
  await writeRandomModel(model, TINY_SHAPE);
  const engine = createEngine();
  const { baseUrl, apiKey } = await engine.start({ ...profile, model });
  await engine.ready(60_000);
  const client = new ChatClient(baseUrl, { apiKey });
  const ask = async (seed: number) => {
    const messages = [{ role: "user", content: `${"7 + ".repeat(300)}1` }];
    return (await client.chat({ messages, maxTokens: 40, temperature: 1, seed }, { signal: AbortSignal.timeout(60_000) })).text;
  };
  const alone = await ask(1);
  const beside = await Promise.all([1, 2, 3, 4, 5, 6, 7, 1].map(ask));
  expect([beside[0], beside[7]]).toEqual([alone, alone]);
  expect(new Set(beside).size).toBe(7);
  await client.close();
  await engine.stop(1000);
});

test("an 8-bit KV cache serves the same problems", async () => {
  const { texts } = await answer({ ...profile, kvCacheBits: 8 }, ["What is 17 + 25?", "What is 6 * 7?"]);
  expect(texts.map(lastBoxed)).toEqual(["42", "42"]);
});

test("a draft changes no answer and its tokens are counted, also with more requests than places", async () => {
  const problems = Array.from({ length: 12 }, (_, i) => `What is ${37 + i} + ${58 - i}?`);
  const without = await answer(profile, problems);
  const withDraft = await answer({ ...profile, speculative: { enabled: true, draftModel: path.join(models, "draft.gguf") } }, problems);
  expect(withDraft.texts).toEqual(without.texts);
  expect(without.metrics.draftTokensTotal).toBe(0);
  expect(withDraft.metrics.draftTokensTotal).toBeGreaterThan(0);
  expect(withDraft.metrics.draftAcceptedTokensTotal).toBeGreaterThan(0);
});

test("requests are counted by how they ended", async () => {
  const engine = createEngine();
  const { baseUrl, apiKey } = await engine.start(profile);
  await engine.ready(60_000);
  const client = new ChatClient(baseUrl, { apiKey });
  const ask = (content: string) =>
    client.chat({ messages: [{ role: "user", content }], maxTokens: 20, temperature: 0 }, { signal: AbortSignal.timeout(10_000) });
  await ask("What is 1 + 1?");
  await expect(ask("1 + ".repeat(4000))).rejects.toMatchObject({ code: "problem-too-long" });
  const text = await (await fetch(`${baseUrl}/metrics`, { headers: bearer(apiKey) })).text();
  // One of the completed is the warm-up.
  expect(text).toContain('mathllm_engine_requests_total{outcome="completed"} 2');
  expect(text).toContain('mathllm_engine_requests_total{outcome="refused"} 1');
  await client.close();
  await engine.stop(1000);
});

test("only its own client is served: not another name for this machine, no page, nothing without the key", async () => {
  const engine = createEngine();
  const { baseUrl, apiKey } = await engine.start(profile);
  await engine.ready(60_000);
  const ask = async (method: string, address: string, headers: http.OutgoingHttpHeaders) => {
    const request = http.request(baseUrl + address, { method, headers });
    request.end(method === "POST" ? JSON.stringify({ messages: [{ role: "user", content: "1 + 1" }], max_tokens: 1 }) : undefined);
    const [response] = (await once(request, "response")) as [http.IncomingMessage];
    const text = (await response.toArray()).join("");
    expect(response.headers["access-control-allow-origin"]).toBeUndefined();
    return [response.statusCode, text] as const;
  };
  const json = { "content-type": "application/json", ...bearer(apiKey) };
  const chat = "/v1/chat/completions";
  expect((await ask("POST", chat, json))[0]).toBe(200);
  expect((await ask("POST", chat, { ...json, host: "localhost:8009" }))[0]).toBe(200);
  // A name of the attacker's that was rebound to 127.0.0.1.
  expect(await ask("POST", chat, { ...json, host: "rebound.example" })).toEqual([403, expect.stringContaining("rebound.example")]);
  expect((await ask("GET", "/health", { host: "rebound.example" }))[0]).toBe(403);
  expect(await ask("POST", chat, { ...json, origin: "http://localhost:4566" })).toEqual([403, expect.stringContaining("4566")]);
  expect(await ask("POST", chat, { ...json, "content-type": "text/plain" })).toEqual([415, expect.stringContaining("text/plain")]);
  expect((await ask("OPTIONS", chat, { origin: "https://page.example" }))[0]).toBe(403);
  for (const address of ["/metrics", "/v1/models", chat]) expect((await ask("GET", address, {}))[0]).toBe(401);
  expect((await ask("GET", "/health", {}))[0]).toBe(200);
  await engine.stop(1000);
});

test("an owner's key is the server's", async () => {
  const engine = createEngine();
  const { baseUrl, apiKey } = await engine.start({ ...profile, apiKey: "chosen by the owner" });
  expect(apiKey).toBe("chosen by the owner");
  expect((await fetch(`${baseUrl}/metrics`, { headers: bearer("chosen by the owner") })).status).toBe(200);
  await engine.stop(1000);
});

test("health fails until the model is loaded", async () => {
  const engine = createEngine();
  const { baseUrl } = await engine.start(profile);
  expect((await fetch(`${baseUrl}/health`)).status).toBe(503);
  await expect(engine.health(5000)).rejects.toMatchObject({ code: "engine-failed" });
  await engine.ready(60_000);
  await engine.health(5000);
  await engine.stop(1000);
});

test("a draft with another vocabulary is refused before it serves, with the reason", async () => {
  const bytes = await readFile(path.join(models, "draft.gguf"));
  const at = bytes.indexOf(Buffer.from("The"));
  bytes.write("Xhe", at);
  const draftModel = path.join(folder, "other-vocabulary.gguf");
  await writeFile(draftModel, bytes);
  const engine = createEngine();
  await engine.start({ ...profile, speculative: { enabled: true, draftModel } });
  await expect(engine.ready(60_000)).rejects.toMatchObject({
    code: "model-invalid",
    message: expect.stringMatching(/another vocabulary.*token \d+ differs/),
  });
  await engine.stop(1000);
});

test.each([
  ["text", async () => Buffer.from("this is no model")],
  ["a file cut in half", async () => (await readFile(path.join(models, "student.gguf"))).subarray(0, 2_000_000)],
])("%s is no model: said before loading", async (_name, content) => {
  const model = path.join(folder, "broken.gguf");
  await writeFile(model, await content());
  await expect(createEngine().start({ ...profile, model })).rejects.toMatchObject({
    code: "model-invalid",
    message: expect.stringContaining(model),
  });
});

test("a model that lacks only its last bytes is said when it is loaded", async () => {
  const model = path.join(folder, "cut.gguf");
  await writeFile(model, (await readFile(profile.model)).subarray(0, -64));
  const engine = createEngine();
  await engine.start({ ...profile, model });
  await expect(engine.ready(60_000)).rejects.toMatchObject({ code: "model-invalid", message: expect.stringContaining(model) });
  await engine.stop(1000);
});

test("the server ends with its parent, killed with -9", async () => {
  const script = path.join(folder, "parent.ts");
  const engines = path.join(import.meta.dirname, "../../workers/engines/embedded.ts");
  const given = JSON.stringify(profile);
  await writeFile(
    script,
    `import { createEmbeddedEngine } from ${JSON.stringify(engines)};
const engine = createEmbeddedEngine({ dataDir: ${JSON.stringify(folder)} });
const { pid } = await engine.start(${given});
await engine.ready(60000);
console.log(pid);`,
  );
  const parent = spawn(process.execPath, [script], { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = (await once(readline.createInterface({ input: parent.stdout! }), "line")) as [string];
  const server = { pid: Number(line), startTicks: startTicksOf(Number(line)) };
  expect(isAlive(server)).toBe(true);
  parent.kill("SIGKILL");
  await expect.poll(() => isAlive(server), { timeout: 5000 }).toBe(false);
});
