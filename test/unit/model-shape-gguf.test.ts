import { readFileSync } from "node:fs";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import fc from "fast-check";
import { GgufInsights, readGgufFileInfo } from "node-llama-cpp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MathllmError } from "../../queues/errors.ts";
import { readModelShape, readTokens } from "../../workers/gpu/model-shape.ts";
import { GGUF_QUANTISATIONS, ggufWeights, shapeOfConfig } from "../../workers/gpu/model-shape-config.ts";
import { kvBytes } from "../../workers/gpu/vram.ts";

const MODELS = path.join(import.meta.dirname, "../../models");
const FIXTURES = path.join(import.meta.dirname, "../fixtures/model-shapes");

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-gguf-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

type Value = number | string | boolean | string[] | number[] | boolean[];

const u32 = (value: number) => Buffer.from(new Uint32Array([value]).buffer);
const u64 = (value: number | bigint) => Buffer.from(new BigUint64Array([BigInt(value)]).buffer);
const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);

function encoded(value: Value): Buffer {
  if (typeof value === "number") return Buffer.concat([u32(4), u32(value)]);
  if (typeof value === "boolean") return Buffer.concat([u32(7), Buffer.from([value ? 1 : 0])]);
  if (typeof value === "string") return Buffer.concat([u32(8), text(value)]);
  const entries = value.map((each) => encoded(each));
  const type = entries[0]?.subarray(0, 4) ?? u32(4);
  return Buffer.concat([u32(9), type, u64(entries.length), ...entries.map((each) => each.subarray(4))]);
}

interface GgufFile {
  values: Record<string, Value>;
  tensors: [name: string, dimensions: number[], type: number][];
}

/** A GGUF file that ends where its weights would begin. */
function ggufHeader({ values, tensors }: GgufFile): Buffer {
  return Buffer.concat([
    Buffer.from("GGUF"),
    u32(3),
    u64(tensors.length),
    u64(Object.keys(values).length),
    ...Object.entries(values).flatMap(([key, value]) => [text(key), encoded(value)]),
    ...tensors.flatMap(([name, dimensions, type]) => [
      text(name),
      u32(dimensions.length),
      ...dimensions.map((size) => u64(size)),
      u32(type),
      u64(0),
    ]),
  ]);
}

const [F32, Q8_0, Q4_K, Q6_K] = [0, 8, 12, 14] as const;

function llama(changes: Record<string, Value | undefined> = {}, architecture = "llama"): GgufFile {
  const values: Record<string, Value | undefined> = {
    "general.architecture": architecture,
    "general.file_type": 15,
    [`${architecture}.block_count`]: 4,
    [`${architecture}.embedding_length`]: 256,
    [`${architecture}.feed_forward_length`]: 512,
    [`${architecture}.attention.head_count`]: 8,
    [`${architecture}.attention.head_count_kv`]: 2,
    [`${architecture}.context_length`]: 8192,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    ...changes,
  };
  return {
    values: Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Record<string, Value>,
    tensors: [
      ["token_embd.weight", [256, 3], Q4_K],
      ["output.weight", [256, 3], Q6_K],
      ["blk.0.attn_norm.weight", [256], F32],
    ],
  };
}

let files = 0;
async function written(content: Buffer): Promise<string> {
  const file = path.join(folder, `${files++}.gguf`);
  await writeFile(file, content);
  return file;
}
const shapeOf = async (file: GgufFile) => readModelShape(await written(ggufHeader(file)));

async function failure(file: string): Promise<MathllmError> {
  const error = await readModelShape(file).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(MathllmError);
  return error as MathllmError;
}

describe("the shipped models", () => {
  it.each(["student", "talker", "draft"])("%s: the tensors fill the file, and the shape is that of its folder", async (name) => {
    const file = path.join(MODELS, `${name}.gguf`);
    const shape = await readModelShape(file);
    const info = await readGgufFileInfo(file, { logWarnings: false });
    // Only the padding between tensors is left.
    const dataBytes = (await stat(file)).size - info.infoEndOffset!;
    expect(dataBytes - shape.weightsBytes).toBeGreaterThanOrEqual(0);
    expect(dataBytes - shape.weightsBytes).toBeLessThan(32 * info.tensorInfo!.length);
    const { parameters, layers, hiddenSize, kvHeads, headDim, kvGroups, vocabularySize, tiedEmbeddings, trainedContextTokens } =
      await readModelShape(path.join(MODELS, "hf", name));
    expect(shape).toMatchObject({
      parameters,
      layers,
      hiddenSize,
      kvHeads,
      headDim,
      kvGroups,
      vocabularySize,
      tiedEmbeddings,
      trainedContextTokens,
    });
    expect(shape).toMatchObject({ architecture: "qwen2", format: "gguf", quantisation: "F16" });
  });

  it("the library estimates the same KV cache, beside what it adds for buffers", async () => {
    const file = path.join(MODELS, "student.gguf");
    const insights = await GgufInsights.from(await readGgufFileInfo(file, { logWarnings: false }));
    const estimated = async (sequences: number) => {
      const options = { contextSize: 512, sequences, modelGpuLayers: 0, includeGraphOverhead: false };
      const { cpuRam, gpuVram } = await insights.estimateContextResourceRequirementsV2(options);
      return cpuRam + gpuVram;
    };
    const shape = await readModelShape(file);
    const ours = (sequences: number) => kvBytes(shape, "embedded", 512, sequences, 16);
    expect((await estimated(16)) - (await estimated(8))).toBe(ours(16) - ours(8));
  });
});

describe("a header", () => {
  it("tells the shape, with the weights counted by tensor type", async () => {
    expect(await shapeOf(llama())).toMatchObject({
      format: "gguf",
      architecture: "llama",
      layers: 4,
      hiddenSize: 256,
      intermediateSize: 512,
      attentionHeads: 8,
      kvHeads: 2,
      headDim: 32,
      kvGroups: [{ layers: 4, valuesPerToken: 2 * 2 * 32, windowTokens: null }],
      vocabularySize: 3,
      tiedEmbeddings: false,
      parameters: 256 * 7,
      weightsBytes: 3 * 144 + 3 * 210 + 256 * 4,
      embeddingBytes: 3 * 144,
      quantisation: "Q4_K_M",
      trainedContextTokens: 8192,
    });
  });

  it("takes llama.cpp's defaults: KV heads as heads, head size from the width, a tied embedding without output.weight", async () => {
    const file = llama({ "llama.attention.head_count_kv": undefined, "llama.feed_forward_length": undefined });
    file.tensors = file.tensors.filter(([name]) => name !== "output.weight");
    expect(await shapeOf(file)).toMatchObject({ kvHeads: 8, headDim: 32, intermediateSize: 1024, tiedEmbeddings: true });
    expect(await shapeOf(llama({ "llama.attention.key_length": 64, "llama.attention.value_length": 16 }))).toMatchObject({
      headDim: 64,
      kvGroups: [{ layers: 4, valuesPerToken: 2 * (64 + 16), windowTokens: null }],
    });
  });

  it("may count heads for each layer; layers without any keep nothing", async () => {
    const shape = await shapeOf(llama({ "llama.attention.head_count_kv": [2, 0, 4, 0], "llama.attention.head_count": [8, 8, 8, 8] }));
    expect(shape).toMatchObject({
      kvHeads: 4,
      kvGroups: [
        { layers: 1, valuesPerToken: 128, windowTokens: null },
        { layers: 1, valuesPerToken: 256, windowTokens: null },
      ],
    });
  });

  it("may have a window for some layers", async () => {
    const windows = async (file: GgufFile) => (await shapeOf(file)).kvGroups.map(({ layers, windowTokens }) => `${layers}:${windowTokens}`);
    expect(await windows(llama({ "llama.attention.sliding_window": 512 }))).toEqual(["4:null"]);
    const pattern = [true, true, true, false];
    expect(await windows(llama({ "llama.attention.sliding_window": 512, "llama.attention.sliding_window_pattern": pattern }))).toEqual([
      "3:512",
      "1:null",
    ]);
    expect(await windows(llama({ "gemma2.attention.sliding_window": 512 }, "gemma2"))).toEqual(["2:512", "2:null"]);
  });

  it("of a split file counts all parts", async () => {
    const [first, second] = [llama(), llama()];
    second.tensors = [["blk.3.ffn_up.weight", [32, 10], Q8_0]];
    await writeFile(path.join(folder, "split-00001-of-00002.gguf"), ggufHeader(first));
    const place = path.join(folder, "split-00002-of-00002.gguf");
    await writeFile(place, ggufHeader(second));
    const whole = await readModelShape(path.join(folder, "split-00001-of-00002.gguf"));
    expect(whole.weightsBytes).toBe((await shapeOf(llama())).weightsBytes + 10 * 34);
    await rm(place);
    const error = await failure(path.join(folder, "split-00001-of-00002.gguf"));
    expect(error.code).toBe("model-missing");
    expect(error.message).toContain("split-00002-of-00002.gguf");
  });

  it("has its tokens in order, or none", async () => {
    expect(await readTokens(await written(ggufHeader(llama())))).toEqual(["a", "b", "c"]);
    expect(await readTokens(await written(ggufHeader(llama({ "tokenizer.ggml.tokens": undefined }))))).toBeNull();
  });

  it("longer than one read is read on", async () => {
    const tokens = Array.from({ length: 200_000 }, (_, i) => `token ${i}`);
    const file = await written(ggufHeader(llama({ "tokenizer.ggml.tokens": tokens })));
    expect(await readTokens(file)).toEqual(tokens);
    expect((await readModelShape(file)).layers).toBe(4);
  });
});

/** All tensors that llama-quantize makes of a config, written as a header: an independent count of what is computed. */
describe("computed sizes", () => {
  it.each(["qwen2-7b", "llama-3.1-8b", "qwen2-0.5b-tied", "llama-3.2-1b-tied"])(
    "of %s are those of a file with these tensors",
    async (name) => {
      const config = shapeOfConfig(JSON.parse(readFileSync(path.join(FIXTURES, `${name}.json`), "utf8")), name);
      const file = llama({ "llama.block_count": config.layers, "general.file_type": 7 });
      const narrow = config.hiddenSize % 256 !== 0;
      file.tensors = config.matrices.map(({ rowLength, rows, count }, i) => [
        i === 0 ? "token_embd.weight" : `t${i}`,
        [rowLength, rows, count],
        Q8_0,
      ]);
      file.tensors.push(["norms", [config.smallParameters], F32]);
      const shape = await shapeOf(file);
      expect(shape.parameters).toBe(config.parameters);
      expect(shape.weightsBytes).toBe(ggufWeights(config, "Q8_0").weightsBytes);
      const sizes = GGUF_QUANTISATIONS.map((quantisation) => ggufWeights(config, quantisation).weightsBytes);
      const [q4m, q4s, q5m, q6, q8, f16, bf16] = sizes as [number, number, number, number, number, number, number];
      expect([...new Set([q4s, q4m, q5m, q6])].every((bytes) => bytes <= q8)).toBe(true);
      if (!narrow) expect([q4s, q4m, q5m, q6, q8, f16]).toEqual([q4s, q4m, q5m, q6, q8, f16].toSorted((a, b) => a - b));
      expect(bf16).toBe(f16);
    },
  );
});

describe("hostile files", () => {
  const valid = ggufHeader(llama());

  it("cut anywhere, the header is refused, never taken for zeros", async () => {
    for (let length = 0; length < valid.length; length += 7) {
      expect((await failure(await written(valid.subarray(0, length)))).code).toBe("model-invalid");
    }
  });

  const at = (offset: number, bytes: Buffer) => Buffer.concat([valid.subarray(0, offset), bytes, valid.subarray(offset + bytes.length)]);
  it.each([
    ["no GGUF", at(0, Buffer.from("GGML")), /begins with GGUF, found GGML/],
    ["version 1", at(4, u32(1)), /version 2 or 3/],
    ["another byte order", at(4, Buffer.from([0, 0, 0, 3])), /little-endian/],
    ["2^60 tensors", at(8, u64(2n ** 60n)), /the number of tensors, found 1152921504606846976/],
    ["2^60 keys", at(16, u64(2n ** 60n)), /the number of keys/],
    ["more keys than there are", at(16, u64(99_999)), /model-invalid|expected/],
    ["a key of 2^60 bytes", at(24, u64(2n ** 60n)), /the length of a key/],
    ["a value of no type", at(24 + 8 + "general.architecture".length, u32(77)), /a known type for general\.architecture/],
  ])("%s", async (_, content, message) => {
    const error = await failure(await written(content));
    expect(error.code).toBe("model-invalid");
    expect(error.message).toMatch(message);
  });

  it.each<[string, Record<string, Value | undefined>, RegExp]>([
    ["no architecture", { "general.architecture": undefined }, /general\.architecture/],
    ["an architecture that is a number", { "general.architecture": 7 }, /general\.architecture, found 7/],
    ["no layers", { "llama.block_count": undefined }, /llama\.block_count/],
    ["0 layers", { "llama.block_count": 0 }, /llama\.block_count/],
    ["4 billion layers", { "llama.block_count": 4_000_000_000 }, /llama\.block_count/],
    ["a text for the width", { "llama.embedding_length": "256" }, /llama\.embedding_length/],
    ["no heads", { "llama.attention.head_count": 0 }, /head_count/],
    ["KV heads for too few layers", { "llama.attention.head_count_kv": [1, 2] }, /head_count_kv with 4 entries/],
    ["KV heads that are texts", { "llama.attention.head_count_kv": ["1", "2", "3", "4"] }, /head_count_kv/],
  ])("%s", async (_, changes, message) => {
    const error = await failure(await written(ggufHeader(llama(changes))));
    expect(error.code).toBe("model-invalid");
    expect(error.message).toMatch(message);
  });

  it("arrays within arrays within arrays end", async () => {
    const nested = Buffer.concat(Array.from({ length: 40 }, () => Buffer.concat([u32(9), u64(1)])));
    const content = Buffer.concat([Buffer.from("GGUF"), u32(3), u64(0), u64(1), text("a"), u32(9), nested, u32(4), u64(0)]);
    expect((await failure(await written(content))).message).toMatch(/arrays in one another/);
  });

  it("an unknown tensor type, or a tensor of nine dimensions", async () => {
    const odd = llama();
    odd.tensors.push(["x", [1], 250]);
    expect((await failure(await written(ggufHeader(odd)))).message).toMatch(/a known tensor type for x, found 250/);
    const deep = llama();
    deep.tensors.push(["x", [1, 1, 1, 1, 1, 1, 1, 1, 1], F32]);
    expect((await failure(await written(ggufHeader(deep)))).message).toMatch(/at most 8 dimensions/);
  });

  it("with any bytes changed, it is a shape or a MathllmError", async () => {
    const file = path.join(folder, "any.gguf");
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(fc.nat(valid.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 }), async (changes) => {
        const content = Buffer.from(valid);
        for (const [offset, byte] of changes) content[offset] = byte;
        await writeFile(file, content);
        try {
          const shape = await readModelShape(file);
          expect(shape.weightsBytes).toBeGreaterThanOrEqual(0);
          expect(shape.layers).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(MathllmError);
        }
      }),
      { numRuns: 300 },
    );
  });
});
