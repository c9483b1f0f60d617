import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readConfig } from "../../queues/config.ts";
import { engineFactory } from "../../workers/engines/engines.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

/** A stand-in for a server that someone else runs: Ollama's API and the OpenAI one, and what is in its memory. */
class ElsewhereServer {
  readonly loaded = new Set<string>();
  readonly log: string[] = [];
  readonly keys: (string | undefined)[] = [];
  models = ["student-model", "talker-model"];
  /** What of a model comes with each line of a pull, bytes; its end is a line of its own. */
  pulls: Record<string, { lines: object[] }> = {};
  /** How often `/api/ps` still shows a model after it was told to go. */
  lingers = 0;
  maxLoaded = 0;
  #server: http.Server | undefined;

  async start(): Promise<string> {
    this.#server = http.createServer((request, response) => void this.#answer(request, response));
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  stop(): void {
    this.#server?.closeAllConnections();
    this.#server?.close();
  }

  async #answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    let text = "";
    for await (const chunk of request) text += chunk;
    const body = text === "" ? {} : JSON.parse(text);
    const json = (status: number, value: unknown) =>
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    this.keys.push(request.headers.authorization);
    switch (`${request.method} ${request.url}`) {
      case "GET /api/version":
        return void json(200, { version: "0.12.0" });
      case "GET /api/ps": {
        const models = [...this.loaded].map((name) => ({ name: `${name}:latest` }));
        return void json(200, { models: this.lingers-- > 0 ? [...models, { name: "student-model:latest" }] : models });
      }
      case "POST /api/show":
        return void json(this.models.includes(body.model) ? 200 : 404, {});
      case "POST /api/pull": {
        this.log.push(`pull ${body.model}`);
        const { lines } = this.pulls[body.model] ?? { lines: [{ error: "pull model manifest: file does not exist" }] };
        if (this.pulls[body.model] !== undefined) this.models.push(body.model);
        return void response.writeHead(200).end(lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
      }
      case "POST /api/generate":
        if (!this.models.includes(body.model)) return void json(404, { error: `model '${body.model}' not found` });
        this.log.push(`${body.keep_alive === 0 ? "unload" : "load"} ${body.model}`);
        if (body.keep_alive === 0) this.loaded.delete(body.model);
        else this.loaded.add(body.model);
        this.maxLoaded = Math.max(this.maxLoaded, this.loaded.size);
        return void json(200, { done: true });
      case "GET /v1/models":
        return void json(200, { data: this.models.map((id) => ({ id })) });
      case "POST /v1/chat/completions": {
        const send = (value: unknown) => response.write(`data: ${JSON.stringify(value)}\n\n`);
        response.writeHead(200, { "content-type": "text/event-stream" });
        send({ choices: [{ delta: { content: `\\boxed{1} by ${body.model}` }, finish_reason: null }] });
        send({ choices: [{ delta: {}, finish_reason: "stop" }] });
        send({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 2 } });
        return void response.end("data: [DONE]\n\n");
      }
      default:
        return void json(404, { error: "not found" });
    }
  }
}

const log = pino({ level: process.env.TEST_LOG ?? "silent" });
let system: GpuSystem;
let server: ElsewhereServer;
let url: string;
let worker: GpuWorker | undefined;

beforeEach(async () => {
  system = await startGpuSystem();
  server = new ElsewhereServer();
  url = await server.start();
});

afterEach(async () => {
  await worker?.stop(2000);
  worker = undefined;
  server.stop();
  await system.stop();
});

const environment = (mode: string) => ({
  STUDENT_MODE: mode,
  TALKER_MODE: mode,
  STUDENT_MODEL: "student-model",
  TALKER_MODEL: "talker-model",
  STUDENT_URL: url,
  TALKER_URL: url,
  STUDENT_API_KEY: "secret",
});

async function startWorker(mode: string): Promise<GpuWorker> {
  const config = system.configured(environment(mode));
  worker = await startGpuWorker({ config, redisUrl: system.redis.url, createEngine: engineFactory(config, log), log, onFatal: () => {} });
  return worker;
}

test("Ollama: one model in its memory at a time, brought in and out through its API", async () => {
  server.lingers = 0;
  const worker = await startWorker("ollama");
  expect(await system.end(await system.send())).toMatchObject({ status: "completed", result: { solution: "\\boxed{1} by student-model" } });
  expect((await system.end(await system.send({ model: "talker" }))).result?.explanation).toBe("\\boxed{1} by talker-model");
  server.lingers = 0;
  expect((await system.end(await system.send())).status).toBe("completed");
  expect(server.maxLoaded).toBe(1);
  await worker.stop(2000);
  expect(server.log).toEqual([
    "load student-model",
    "unload student-model",
    "load talker-model",
    "unload talker-model",
    "load student-model",
    "unload student-model",
  ]);
  expect([...server.loaded]).toEqual([]);
});

test("Ollama: a model that it does not have is pulled before anything is unloaded, with progress; one that can't be had is said", async () => {
  const profile = (model: string) => ({ ...system.configured(environment("ollama")).profiles.student, model });
  const engine = engineFactory(system.configured(environment("ollama")), log)(profile("new"));
  server.pulls.new = { lines: [{ status: "pulling manifest" }, { status: "pulling", total: 100, completed: 40 }, { status: "success" }] };
  const progress: unknown[] = [];
  let turns = 0;
  const downloadTurn = async () => void turns++;
  await engine.prepare(profile("new"), { onProgress: (at) => progress.push(at), downloadTurn });
  await engine.prepare(profile("new"), { downloadTurn });
  expect(progress).toEqual([{ doing: "downloading", doneBytes: 40, totalBytes: 100 }]);
  expect([server.log, turns]).toEqual([["pull new"], 1]);
  await expect(engine.prepare(profile("nowhere"))).rejects.toMatchObject({
    code: "model-download-failed",
    message: expect.stringContaining("file does not exist"),
  });
});

test("Ollama: what a worker that was killed left in memory goes before anything is loaded", async () => {
  server.loaded.add("talker-model");
  await startWorker("ollama");
  expect((await system.end(await system.send())).status).toBe("completed");
  expect(server.log.slice(0, 2)).toEqual(["unload talker-model", "load student-model"]);
  expect(server.maxLoaded).toBe(1);
});

test("Ollama: a stop resolves only when the model is seen to be out of memory", async () => {
  const config = readConfig(environment("ollama"));
  const engine = engineFactory(config, log)(config.profiles.student);
  await engine.start(config.profiles.student);
  await engine.ready(10_000);
  server.lingers = 4;
  await engine.stop(1000);
  expect(server.lingers).toBeLessThanOrEqual(0);
  expect(await engine.exited).toMatchObject({ code: 0 });
});

test("remote: nothing is loaded or freed, its key is sent, and a model that it does not serve is said", async () => {
  await startWorker("remote");
  expect((await system.end(await system.send({ explain: true }))).status).toBe("completed");
  expect(server.log).toEqual([]);
  expect(server.keys).toContain("Bearer secret");
  const config = readConfig({ ...environment("remote"), STUDENT_MODEL: "another" });
  const engine = engineFactory(config, log)(config.profiles.student);
  await engine.start(config.profiles.student);
  await expect(engine.ready(5000)).rejects.toMatchObject({
    code: "model-missing",
    message: expect.stringContaining("it serves student-model, talker-model"),
  });
});

test.each(["ollama", "remote"])("%s: a server that is not there is said with its address", async (mode) => {
  const config = readConfig({ ...environment(mode), STUDENT_URL: "http://127.0.0.1:9999" });
  const engine = engineFactory(config, log)(config.profiles.student);
  await expect(engine.start(config.profiles.student)).rejects.toMatchObject({
    code: "engine-failed",
    message: expect.stringMatching(/Expected a model server at http:\/\/127\.0\.0\.1:9999.*STUDENT_URL/),
  });
  await engine.stop(0);
});
