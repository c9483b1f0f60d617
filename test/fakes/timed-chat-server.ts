import http from "node:http";
import type { AddressInfo } from "node:net";

/** How a fixture server answers; its clock starts with `startClock`. All times in milliseconds. */
export interface TimedChat {
  /** From a request's begin to its first piece of text, and between pieces. */
  firstMs: number;
  pieces?: number;
  gapMs?: number;
  /** Requests served at once, the others in order behind; default: all. */
  slots?: number;
  /** Everything stands still from here on for so long. */
  stall?: { fromMs: number; lengthMs: number };
  finishReason?: "stop" | "length";
  /** Answers the n-th request (from 0) with this status instead; undefined: serves it. */
  refuse?: (n: number) => number | undefined;
  text?: (prompt: string) => string;
  promptTokens?: (prompt: string) => number;
  /** Default: one a piece. */
  completionTokens?: number;
}

/** An OpenAI-style chat server whose times are known beforehand. */
export async function startTimedChat(options: TimedChat) {
  const { firstMs, pieces = 1, gapMs = 0, slots = Number.POSITIVE_INFINITY, stall, finishReason = "stop", refuse } = options;
  const prompts: string[] = [];
  const bodies: { model?: string; seed?: number; max_tokens?: number; temperature?: number }[] = [];
  const waiting: (() => void)[] = [];
  let startedAt = performance.now();
  let serving = 0;
  const now = () => performance.now() - startedAt;
  const until = async (at: number) => {
    for (let leftMs = at - now(); leftMs > 0; leftMs = at - now()) await new Promise((resolve) => setTimeout(resolve, leftMs));
  };
  /** When something ends that begins now and takes so long, the stall included. */
  const endOf = (beginMs: number, takesMs: number) => {
    if (stall === undefined) return beginMs + takesMs;
    const stallEndMs = stall.fromMs + stall.lengthMs;
    const begin = beginMs >= stall.fromMs && beginMs < stallEndMs ? stallEndMs : beginMs;
    const end = begin + takesMs;
    return begin < stall.fromMs && end > stall.fromMs ? end + stall.lengthMs : end;
  };
  const server = http.createServer(async (request, response) => {
    if (request.url?.endsWith("/models")) {
      response.end(JSON.stringify({ data: [{ id: "timed" }] }));
      return;
    }
    let text = "";
    for await (const chunk of request) text += chunk;
    const body = JSON.parse(text) as (typeof bodies)[number] & { messages: { content: string }[] };
    const prompt = body.messages.at(-1)!.content;
    const status = refuse?.(bodies.length);
    bodies.push(body);
    prompts.push(prompt);
    if (status !== undefined) {
      response.writeHead(status, { "content-type": "application/json" });
      response.end(JSON.stringify({ error: { message: `refused with ${status}`, code: null } }));
      return;
    }
    if (serving >= slots) await new Promise<void>((resolve) => waiting.push(resolve));
    serving++;
    const beginMs = now();
    response.writeHead(200, { "content-type": "text/event-stream" });
    const send = (value: unknown) => response.write(`data: ${JSON.stringify(value)}\n\n`);
    const answer = options.text?.(prompt) ?? "\\boxed{1}";
    for (let piece = 0; piece < pieces; piece++) {
      await until(endOf(beginMs, firstMs + piece * gapMs));
      send({ choices: [{ delta: { content: piece === pieces - 1 ? answer : "so " } }] });
    }
    send({ choices: [{ delta: {}, finish_reason: finishReason }] });
    send({
      choices: [],
      usage: { prompt_tokens: options.promptTokens?.(prompt) ?? 10, completion_tokens: options.completionTokens ?? pieces },
    });
    response.end("data: [DONE]\n\n");
    serving--;
    waiting.shift()?.();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`,
    prompts,
    bodies,
    startClock: () => {
      startedAt = performance.now();
    },
    stop: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
