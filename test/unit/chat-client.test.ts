import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { setImmediate } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { ChatClient } from "../../workers/engines/chat-client.ts";

/** A model server that answers as one test says. */
let server: http.Server;
let client: ChatClient;

async function serve(handler: (request: http.IncomingMessage, response: http.ServerResponse) => void): Promise<void> {
  server = http.createServer((request, response) => {
    request.resume();
    request.once("end", () => handler(request, response));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  client = new ChatClient(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
}

afterEach(async () => {
  await client.close();
  server.closeAllConnections();
  server.close();
});

const ask = (options: { signal?: AbortSignal; onText?: (text: string) => void } = {}) =>
  client.chat({ messages: [{ role: "user", content: "1 + 1" }], maxTokens: 10 }, { signal: new AbortController().signal, ...options });

const event = (body: unknown) => `data: ${typeof body === "string" ? body : JSON.stringify(body)}\n\n`;
const piece = (content: string) => event({ choices: [{ delta: { content }, finish_reason: null }] });
const end = (finish_reason: string) => event({ choices: [{ delta: {}, finish_reason }] });
const usage = event({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 3 } });

/** Each byte arrives by itself, in a turn of the event loop of its own: characters, lines and events are all cut. */
async function writeByBytes(response: http.ServerResponse, text: string): Promise<void> {
  response.writeHead(200, { "content-type": "text/event-stream" });
  for (const byte of Buffer.from(text)) {
    response.write(Buffer.of(byte));
    for (let turn = 0; turn < 3; turn++) await setImmediate();
  }
  response.end();
}

function answer(status: number, body: unknown) {
  return serve((_, response) => {
    response.writeHead(status).end(typeof body === "string" ? body : JSON.stringify(body));
  });
}

test("a stream cut at every byte is put together again, with usage and finish reason", async () => {
  await serve((_, response) => void writeByBytes(response, piece("250 ÷ ") + piece("10 ≤ 😀") + end("length") + usage + event("[DONE]")));
  const pieces: string[] = [];
  const reply = await ask({ onText: (text) => pieces.push(text) });
  expect(reply).toEqual({ text: "250 ÷ 10 ≤ 😀", finishReason: "length", promptTokens: 7, completionTokens: 3 });
  expect(pieces).toEqual(["250 ÷ ", "10 ≤ 😀"]);
});

test("a connection that the server closes just as it is used again is no failure; one that breaks every time is", async () => {
  let asked = 0;
  await serve((request, response) => {
    asked++;
    if (asked <= 2) request.socket.destroy();
    else response.end(piece("2") + end("stop") + usage + event("[DONE]"));
  });
  expect((await ask()).text).toBe("2");
  expect(asked).toBe(3);
  asked = -10;
  await expect(ask()).rejects.toMatchObject({ code: "engine-failed", retryable: true });
  expect(asked).toBe(-7);
});

test("comments and a stop reason are taken, as other servers send them", async () => {
  await serve((_, response) => response.end(`: keep-alive\r\n\r\n${piece("4")}${end("stop")}${event("[DONE]")}`));
  expect(await ask()).toMatchObject({ text: "4", finishReason: "stop" });
});

test("the request asks for a stream with usage in OpenAI's names and leaves out what was not given", async () => {
  let sent: unknown;
  server = http.createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      sent = { address: `${request.method} ${request.url}`, body: JSON.parse(Buffer.concat(chunks).toString()) };
      response.end(end("stop") + event("[DONE]"));
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  client = new ChatClient(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  await client.chat(
    { messages: [{ role: "user", content: "1" }], maxTokens: 5, temperature: 0, topP: 0.9, minP: 0.1, stop: ["x"] },
    { signal: new AbortController().signal },
  );
  expect(sent).toEqual({
    address: "POST /v1/chat/completions",
    body: {
      messages: [{ role: "user", content: "1" }],
      max_tokens: 5,
      temperature: 0,
      top_p: 0.9,
      min_p: 0.1,
      stop: ["x"],
      stream: true,
      stream_options: { include_usage: true },
    },
  });
});

test.each([
  ["cut by a closed connection", (response: http.ServerResponse) => response.write(piece("2"), () => response.destroy())],
  ["ended without [DONE]", (response: http.ServerResponse) => response.end(piece("2") + end("stop"))],
  ["ended without a finish reason", (response: http.ServerResponse) => response.end(piece("2") + event("[DONE]"))],
  ["that is not JSON", (response: http.ServerResponse) => response.end(event("{oops"))],
])("a stream %s is engine-failed, which is tried again", async (_, write) => {
  await serve((_, response) => void write(response));
  await expect(ask()).rejects.toMatchObject({ code: "engine-failed", retryable: true });
});

test("an error in the middle of a stream is reported with its text", async () => {
  await serve((_, response) => response.end(piece("2") + event({ error: { message: "out of memory" } })));
  await expect(ask()).rejects.toMatchObject({ code: "engine-failed", message: expect.stringContaining("out of memory") });
});

test("a prompt beyond the context is problem-too-long, with the server's numbers", async () => {
  await answer(400, { error: { message: "9000 tokens, but only 4096 fit", code: "context_length_exceeded" } });
  await expect(ask()).rejects.toMatchObject({ code: "problem-too-long", message: expect.stringContaining("9000"), retryable: false });
});

test("a prompt beyond the context is known by other servers' words, too", async () => {
  await answer(400, { error: { message: "This model's maximum context length is 4096 tokens.", code: 400 } });
  await expect(ask()).rejects.toMatchObject({ code: "problem-too-long" });
});

test("another 4xx is engine-refused and not tried again", async () => {
  await answer(422, "temperature is out of range");
  await expect(ask()).rejects.toMatchObject({
    code: "engine-refused",
    message: expect.stringContaining("422: temperature is out of range"),
    retryable: false,
  });
});

test("a 500 is engine-failed, even if it speaks of the context", async () => {
  await answer(500, { error: { message: "context size exceeded while decoding" } });
  await expect(ask()).rejects.toMatchObject({ code: "engine-failed", retryable: true });
});

test("a server that is gone is engine-failed", async () => {
  await answer(200, "");
  server.close();
  await once(server, "close");
  await expect(ask()).rejects.toMatchObject({ code: "engine-failed" });
});

test("an abort throws the signal's own reason and closes the connection", async () => {
  const { promise: closed, resolve } = Promise.withResolvers<void>();
  await serve((_, response) => {
    response.write(piece("2"));
    response.once("close", resolve);
  });
  const controller = new AbortController();
  const reason = new Error("cancelled by its owner");
  await expect(ask({ signal: controller.signal, onText: () => controller.abort(reason) })).rejects.toBe(reason);
  await closed;
});

test("a signal that is aborted already sends nothing", async () => {
  let requests = 0;
  await serve(() => {
    requests++;
  });
  const reason = new Error("too late");
  await expect(ask({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  expect(requests).toBe(0);
});
