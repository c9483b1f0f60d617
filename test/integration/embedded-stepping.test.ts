import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { TextPiece } from "../../workers/engines/answer-text.ts";
import type { CompletionRequest } from "../../workers/engines/completion-request.ts";
import { SequencePool } from "../../workers/engines/sequence-pool.ts";
import { TINY_SHAPE, writeRandomModel } from "../fixtures/random-model.ts";

/** The embedded engine's own generation, on a tiny model of random weights: it never ends by itself, so every length is the test's. */
const PLACES = 8;
let folder: string;
let pool: SequencePool;

async function load(file: string, chatTemplate?: string): Promise<SequencePool> {
  const modelPath = path.join(folder, file);
  await writeRandomModel(modelPath, TINY_SHAPE, chatTemplate);
  const contextTokens = TINY_SHAPE.contextTokens;
  const profile = { modelPath, modelId: "random", digest: "", apiKey: "", port: 0, maxModelLen: contextTokens, maxNumSeqs: PLACES };
  return SequencePool.load({ ...profile, kvCacheBits: 16, ngl: 0, threads: 1 });
}

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-stepping-"));
  pool = await load("random.gguf");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const request = (content: string, maxTokens: number, more: Partial<CompletionRequest> = {}): CompletionRequest => ({
  messages: [{ role: "user", content }],
  max_tokens: maxTokens,
  temperature: 0,
  ...more,
});
const never = new AbortController().signal;

test("eight at once are one decode a round: the tokens of all come from as many decodes as those of one", async () => {
  const before = { rounds: pool.rounds, decodes: pool.decodes };
  const written = await Promise.all(
    Array.from({ length: PLACES }, (_, i) => pool.complete(request(`What is ${i} + ${i}?`, 100), never, () => {})),
  );
  expect(written.map((each) => each.completionTokens)).toEqual(Array(PLACES).fill(100));
  const decodes = pool.decodes - before.decodes;
  expect(decodes).toBe(pool.rounds - before.rounds);
  expect(decodes).toBeLessThan(110);
});

test("more than there are places join as places become free, and rounds stay one decode", async () => {
  const before = { rounds: pool.rounds, decodes: pool.decodes };
  const lengths = Array.from({ length: 24 }, (_, i) => 5 + 7 * (i % 5));
  const written = await Promise.all(lengths.map((length, i) => pool.complete(request(`${i}?`, length), never, () => {})));
  expect(written.map((each) => each.completionTokens)).toEqual(lengths);
  expect(pool.decodes - before.decodes).toBe(pool.rounds - before.rounds);
});

test("while a long prompt is read the others write on, a token for each piece of it", async () => {
  const leave = new AbortController();
  const begun: Promise<void>[] = [];
  const counts = [0, 0, 0];
  const others = counts.map((_, i) => {
    const { promise, resolve } = Promise.withResolvers<void>();
    begun.push(promise);
    return pool.complete(request(`${i}?`, 3000), leave.signal, () => {
      counts[i]!++;
      resolve();
    });
  });
  await Promise.all(begun);
  const before = [...counts];
  let meanwhile: number[] | undefined;
  const { promptTokens } = await pool.complete(request("1 + ".repeat(1000), 1), never, () => {
    meanwhile = counts.map((count, i) => count - before[i]!);
  });
  leave.abort(new Error("left"));
  for (const outcome of await Promise.allSettled(others)) expect(outcome).toMatchObject({ reason: { message: "left" } });
  expect(promptTokens).toBeGreaterThan(2000);
  // A token may be half a character, whose piece comes with the next.
  expect(Math.min(...meanwhile!)).toBeGreaterThan(promptTokens / 128 / 2);
});

test("an abort ends after the current token, whether it reads or writes, and the place is free", async () => {
  for (const prompt of ["1?", "1 + ".repeat(1000)]) {
    const leave = new AbortController();
    const leaving = Promise.allSettled(
      Array.from({ length: PLACES }, () => pool.complete(request(prompt, 1000), leave.signal, () => leave.abort(new Error("left")))),
    );
    if (prompt !== "1?") setImmediate(() => leave.abort(new Error("left")));
    for (const outcome of await leaving) expect(outcome).toMatchObject({ status: "rejected", reason: { message: "left" } });
    expect(pool.running).toBe(0);
    expect(await pool.complete(request("2?", 3), never, () => {})).toMatchObject({ completionTokens: 3, finishReason: "length" });
  }
});

test("a stop text ends the text before it; what is streamed is the same, and never a part of the stop", async () => {
  let whole = "";
  await pool.complete(request("1?", 60), never, ({ text }) => {
    whole += text;
  });
  const stop = whole.slice(25, 33);
  const pieces: string[] = [];
  const { finishReason } = await pool.complete(request("1?", 60, { stop: [stop] }), never, ({ text }) => pieces.push(text));
  expect(finishReason).toBe("stop");
  expect(pieces.join("")).toBe(whole.slice(0, whole.indexOf(stop)));
});

test("a thought that the chat template opens is told apart from the answer and counted", async () => {
  const opening = `{%- for message in messages %}{%- if message.role == "assistant" %}{{- '<|im_start|>assistant\\n<think>\\n' + (message.reasoning_content or '') + '</think>' + message.content + '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}`;
  const thinking = await load("thinking.gguf", opening);
  const pieces: TextPiece[] = [];
  const { completionTokens, promptTokens } = await thinking.complete(request("1?", 30), never, (piece) => pieces.push(piece));
  expect(new Set(pieces.map(({ kind }) => kind))).toEqual(new Set(["reasoning"]));
  expect(completionTokens).toBe(30);
  const plain = await pool.complete(request("1?", 1), never, () => {});
  // The prompt ends with what opens it.
  expect(promptTokens).toBeGreaterThan(plain.promptTokens);
});
