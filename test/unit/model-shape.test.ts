import { readFileSync } from "node:fs";
import { cp, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { MathllmError } from "../../queues/errors.ts";
import { KNOWN_MODELS, knownModel, knownShape, parseHubName } from "../../workers/gpu/known-models.ts";
import { readModelShape, readTokens, sameTokenizerFamily } from "../../workers/gpu/model-shape.ts";
import { ggufWeights, shapeOfConfig, VARIANTS, variantOf } from "../../workers/gpu/model-shape-config.ts";

const FIXTURES = path.join(import.meta.dirname, "../fixtures/model-shapes");
const MODELS = path.join(import.meta.dirname, "../../models");
const fixture = (name: string): Record<string, unknown> => JSON.parse(readFileSync(path.join(FIXTURES, `${name}.json`), "utf8"));
const sizeOf = (name: string) => shapeOfConfig(fixture(name), name);

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-shapes-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

let folders = 0;
/** A model's folder with these files. */
async function modelFolder(files: Record<string, unknown>): Promise<string> {
  const place = path.join(folder, String(folders++));
  await mkdir(place);
  for (const [name, content] of Object.entries(files)) {
    await writeFile(path.join(place, name), Buffer.isBuffer(content) || typeof content === "string" ? content : JSON.stringify(content));
  }
  return place;
}

async function failure(promise: Promise<unknown>): Promise<MathllmError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(MathllmError);
  return error as MathllmError;
}

describe("config.json", () => {
  it.each([
    ["qwen2-7b", "BF16", 28, 4, 128, false, 131_072],
    ["qwen2-7b-awq", "AWQ 4-bit", 28, 4, 128, false, 131_072],
    ["qwen2-7b-fp8", "FP8", 28, 4, 128, false, 131_072],
    ["qwen2-7b-gptq", "GPTQ 4-bit", 28, 4, 128, false, 131_072],
    ["qwen2-0.5b-tied", "BF16", 24, 2, 64, true, 32_768],
    ["llama-3.1-8b", "BF16", 32, 8, 128, false, 131_072],
    ["llama-3.1-8b-awq-int4", "AWQ 4-bit", 32, 8, 128, false, 131_072],
    ["llama-3.1-8b-fp8", "FP8", 32, 8, 128, false, 131_072],
    ["llama-3.1-8b-bnb-4bit", "bitsandbytes 4-bit", 32, 8, 128, false, 131_072],
    ["llama-3.2-1b-tied", "BF16", 16, 8, 64, true, 131_072],
    ["tinyllama-1.1b", "BF16", 22, 4, 64, false, 2048],
    ["mistral-7b-v0.1", "BF16", 32, 8, 128, false, 32_768],
    ["gemma-2-2b", "FP32", 26, 4, 256, true, 8192],
    ["gpt2", "BF16", 12, 12, 64, true, 1024],
  ])("%s: %s, %d layers, %d KV heads of %d", (name, quantisation, layers, kvHeads, headDim, tiedEmbeddings, trainedContextTokens) => {
    expect(sizeOf(name)).toMatchObject({ quantisation, layers, kvHeads, headDim, tiedEmbeddings, trainedContextTokens });
  });

  it.each([
    ["mistral-7b-v0.1", 7.242e9],
    ["mixtral-8x7b", 46.703e9],
    ["gemma-2-2b", 2.614e9],
    ["tinyllama-1.1b", 1.1e9],
    ["llama-3.2-1b-tied", 1.236e9],
    ["qwen2-0.5b-tied", 0.494e9],
    ["gpt2", 0.124e9],
  ])("%s has the published %d parameters", (name, parameters) => {
    expect(Math.abs(sizeOf(name).parameters / parameters - 1)).toBeLessThan(0.01);
  });

  it("counts every parameter, biases and norms too", () => {
    expect(sizeOf("qwen2-7b").parameters).toBe(7_615_616_512);
    expect(sizeOf("llama-3.1-8b").parameters).toBe(8_030_261_248);
  });

  it("takes transformers' defaults for what is absent", () => {
    const { num_key_value_heads: _, ...config } = fixture("llama-3.1-8b");
    expect(shapeOfConfig(config, "c")).toMatchObject({ kvHeads: 32, headDim: 128 });
    expect(shapeOfConfig({ ...config, head_dim: null }, "c").headDim).toBe(128);
    expect(shapeOfConfig({ ...config, head_dim: 96 }, "c").headDim).toBe(96);
    expect(shapeOfConfig({ ...config, torch_dtype: undefined, dtype: "float16" }, "c").quantisation).toBe("FP16");
  });

  it("tells sliding layers apart by each family's rule", () => {
    const windows = (config: Record<string, unknown>) =>
      shapeOfConfig(config, "c").kvGroups.map(({ layers, windowTokens }) => `${layers}:${windowTokens}`);
    const qwen = fixture("qwen2-7b");
    expect(windows({ ...qwen, sliding_window: 4096 })).toEqual(["28:null"]);
    expect(windows({ ...qwen, sliding_window: 4096, use_sliding_window: true, max_window_layers: 20 })).toEqual(["20:null", "8:4096"]);
    const types = Array.from({ length: 32 }, (_, i) => (i % 4 === 3 ? "full_attention" : "sliding_attention"));
    expect(windows({ ...fixture("llama-3.1-8b"), sliding_window: 512, layer_types: types })).toEqual(["8:null", "24:512"]);
    const linear = types.map((type) => (type === "full_attention" ? type : "linear_attention"));
    expect(windows({ ...fixture("llama-3.1-8b"), layer_types: linear })).toEqual(["8:null"]);
  });

  it("reads the language model of a model that also sees", () => {
    const text = fixture("qwen2-0.5b-tied");
    expect(shapeOfConfig({ architectures: ["Vision"], model_type: "vision", vision_config: {}, text_config: text }, "c")).toMatchObject({
      layers: 24,
      architecture: "Qwen2ForCausalLM",
    });
  });

  it("counts one compressed vector where the attention is latent", () => {
    const config = { ...fixture("llama-3.1-8b"), kv_lora_rank: 512, qk_rope_head_dim: 64 };
    expect(shapeOfConfig(config, "c").kvGroups).toEqual([{ layers: 32, valuesPerToken: 576, windowTokens: null }]);
  });

  it("knows the quantisers", () => {
    const bits = (quantization_config: unknown) => {
      const { weightsBytes, quantisation } = shapeOfConfig({ ...fixture("llama-3.1-8b"), quantization_config }, "c");
      return `${quantisation} ${(weightsBytes / 2 ** 30).toFixed(2)}`;
    };
    expect(bits({ quant_method: "bitsandbytes", load_in_8bit: true })).toBe("bitsandbytes 8-bit 8.46");
    expect(bits({ quant_method: "bitsandbytes", load_in_4bit: true })).toBe("bitsandbytes 4-bit 5.61");
    expect(bits({ quant_method: "gptq", bits: 8, group_size: -1 })).toMatch(/^GPTQ 8-bit 8\.4/);
    expect(bits({ quant_method: "mxfp4" })).toMatch(/^MXFP4 5\.4/);
    expect(bits({ quant_method: "modelopt", quant_algo: "NVFP4" })).toMatch(/^NVFP4 5\./);
    const weights = { num_bits: 4, type: "int", group_size: 128 };
    expect(bits({ quant_method: "compressed-tensors", config_groups: { group_0: { weights } } })).toMatch(/^compressed-tensors 4-bit 5\.3/);
  });

  const wrong: [string, unknown, RegExp][] = [
    ["no object", [1, 2], /expected a JSON object, found \[1,2\]/],
    ["null", null, /expected a JSON object/],
    ["missing layers", { ...fixture("qwen2-7b"), num_hidden_layers: undefined }, /num_hidden_layers/],
    ["a text for a number", { ...fixture("qwen2-7b"), hidden_size: "3584" }, /hidden_size to be a whole number.*found 3584/],
    ["a fraction", { ...fixture("qwen2-7b"), num_attention_heads: 27.5 }, /num_attention_heads/],
    ["zero heads", { ...fixture("qwen2-7b"), num_attention_heads: 0 }, /num_attention_heads/],
    ["a negative number", { ...fixture("qwen2-7b"), vocab_size: -5 }, /vocab_size/],
    ["a huge number", { ...fixture("qwen2-7b"), num_hidden_layers: 1e300 }, /num_hidden_layers to be a whole number from 1 to 10000/],
    ["heads that do not divide", { ...fixture("qwen2-7b"), num_attention_heads: 27 }, /head_dim/],
    ["more KV heads than heads", { ...fixture("qwen2-7b"), num_key_value_heads: 56 }, /at most 28 KV heads/],
    ["an unknown quantiser", { ...fixture("qwen2-7b"), quantization_config: { quant_method: "magic" } }, /quant_method/],
    ["a quantiser that is a list", { ...fixture("qwen2-7b"), quantization_config: [] }, /quantization_config to be an object/],
    ["an unknown dtype", { ...fixture("qwen2-7b"), torch_dtype: "float7" }, /torch_dtype/],
    ["layer types of another count", { ...fixture("qwen2-7b"), layer_types: ["full_attention"] }, /layer_types with 28 entries/],
    ["a flag that is a text", { ...fixture("qwen2-7b"), tie_word_embeddings: "yes" }, /tie_word_embeddings to be true or false/],
  ];
  it.each(wrong)("%s is refused with what was expected and found", (_, config, message) => {
    expect(() => shapeOfConfig(config, "config.json")).toThrow(message);
    expect(() => shapeOfConfig(config, "config.json")).toThrow(MathllmError);
  });

  it("any JSON at all is a shape or a MathllmError", () => {
    const base = fixture("qwen2-7b-awq");
    const names = [
      ...Object.keys(base),
      "head_dim",
      "layer_types",
      "text_config",
      "kv_lora_rank",
      "num_local_experts",
      "sliding_window_pattern",
    ];
    fc.assert(
      fc.property(fc.dictionary(fc.constantFrom(...names), fc.jsonValue(), { maxKeys: 4 }), (changes) => {
        try {
          const { weightsBytes, parameters, kvGroups } = shapeOfConfig({ ...base, ...changes }, "c");
          expect(weightsBytes).toBeGreaterThan(0);
          expect(parameters).toBeGreaterThan(0);
          for (const { layers, valuesPerToken } of kvGroups) expect(layers * valuesPerToken).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(MathllmError);
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe("a folder", () => {
  it("has its weights' size from the index", async () => {
    const place = await modelFolder({
      "config.json": fixture("qwen2-7b"),
      "model.safetensors.index.json": { metadata: { total_size: 15_231_233_024 }, weight_map: {} },
    });
    expect(await readModelShape(place)).toMatchObject({
      weightsBytes: 15_231_233_024,
      source: "total_size in model.safetensors.index.json",
      format: "safetensors",
      reference: place,
    });
    expect((await readModelShape(path.join(place, "config.json"))).weightsBytes).toBe(15_231_233_024);
  });

  it("or from the headers of its safetensors, here the shipped models'", async () => {
    for (const [name, bytes] of [
      ["student", 3_971_200],
      ["talker", 3_255_720],
      ["draft", 395_672],
    ] as const) {
      const shape = await readModelShape(path.join(MODELS, "hf", name));
      expect(shape.source).toContain("model.safetensors");
      expect(shape.quantisation).toBe("FP16");
      // The file is its tensors and a header of a few kilobytes.
      expect(bytes - shape.weightsBytes).toBeGreaterThan(0);
      expect(bytes - shape.weightsBytes).toBeLessThan(0.02 * bytes + 5000);
      expect(shape.weightsBytes).toBe(shape.parameters * 2);
    }
  });

  it("or computed, when there is nothing but the config", async () => {
    const place = await modelFolder({ "config.json": fixture("llama-3.1-8b-awq-int4") });
    const shape = await readModelShape(place);
    expect(shape.weightsBytes / 2 ** 30).toBeCloseTo(5.33, 2);
    expect(shape.source).toContain("computed");
  });

  const header = (json: unknown, length?: bigint) => {
    const text = Buffer.from(typeof json === "string" ? json : JSON.stringify(json));
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(length ?? BigInt(text.length));
    return Buffer.concat([size, text]);
  };
  const config = fixture("qwen2-7b");
  const hostile: [string, Record<string, unknown>, RegExp][] = [
    ["a cut config", { "config.json": '{"hidden_size": 35' }, /expected JSON, found/],
    ["an index without a size", { "config.json": config, "model.safetensors.index.json": { weight_map: {} } }, /total_size/],
    ["an index that is null", { "config.json": config, "model.safetensors.index.json": "null" }, /total_size/],
    ["a negative size", { "config.json": config, "model.safetensors.index.json": { metadata: { total_size: -1 } } }, /total_size/],
    ["a size as text", { "config.json": config, "model.safetensors.index.json": { metadata: { total_size: "1" } } }, /total_size/],
    ["safetensors of 3 bytes", { "config.json": config, "model.safetensors": Buffer.from("abc") }, /8 bytes/],
    ["a header longer than its file", { "config.json": config, "model.safetensors": header({}, 2n ** 60n) }, /a header of at most/],
    ["a header that is no JSON", { "config.json": config, "model.safetensors": header("{{{{") }, /expected JSON/],
    ["a header that is a list", { "config.json": config, "model.safetensors": header([]) }, /a header with tensors/],
    ["a tensor without a place", { "config.json": config, "model.safetensors": header({ w: { dtype: "F16" } }) }, /data_offsets of w/],
    ["a tensor that is null", { "config.json": config, "model.safetensors": header({ w: null }) }, /data_offsets of w/],
    ["falling offsets", { "config.json": config, "model.safetensors": header({ w: { data_offsets: [9, 3] } }) }, /rising/],
  ];
  it.each(hostile)("%s is refused", async (_, files, message) => {
    const error = await failure(readModelShape(await modelFolder(files)));
    expect(error.code).toBe("model-invalid");
    expect(error.message).toMatch(message);
  });

  it("with values nested beyond the stack, or a folder for a file, is refused", async () => {
    const deep = `{"hidden_size":${"[".repeat(200_000)}${"]".repeat(200_000)},"num_hidden_layers":1,"vocab_size":1}`;
    expect((await failure(readModelShape(await modelFolder({ "config.json": deep })))).code).toBe("model-invalid");
    const place = await modelFolder({ "config.json": config });
    await mkdir(path.join(place, "model.safetensors"));
    expect((await failure(readModelShape(place))).code).toBe("model-missing");
  });

  it("without config.json names the GGUF files it has", async () => {
    const error = await failure(readModelShape(await modelFolder({ "a.gguf": "" })));
    expect(error).toMatchObject({ code: "model-missing" });
    expect(error.message).toContain("a.gguf");
  });

  it("that is not there is missing, whatever it is called", async () => {
    for (const reference of ["./nowhere", "/nowhere/at/all", "nowhere/model.gguf", "models with/strange names/x"]) {
      expect((await failure(readModelShape(reference))).code).toBe("model-missing");
    }
  });
});

describe("tokens", () => {
  it("of a folder and of the GGUF file made from it are the same", async () => {
    const [fromFolder, fromGguf, fromDraft] = await Promise.all([
      readTokens(path.join(MODELS, "hf", "student")),
      readTokens(path.join(MODELS, "student.gguf")),
      readTokens(path.join(MODELS, "draft.gguf")),
    ]);
    expect(fromFolder).toHaveLength(1024);
    expect(fromGguf).toEqual(fromFolder);
    expect(fromDraft).toEqual(fromGguf);
  });

  it("are not at hand for models on the hub, or without a tokenizer", async () => {
    expect(await readTokens("Qwen/Qwen2.5-7B-Instruct")).toBeNull();
    expect(await readTokens(await modelFolder({ "config.json": fixture("qwen2-7b") }))).toBeNull();
  });

  it("that are malformed are refused", async () => {
    for (const tokenizer of [{ model: {} }, { model: { vocab: { a: "x" } } }, { model: { vocab: { a: 1e12 } } }, null]) {
      expect((await failure(readTokens(await modelFolder({ "tokenizer.json": JSON.stringify(tokenizer) })))).code).toBe("model-invalid");
    }
  });
});

describe("known models", () => {
  it.each(
    KNOWN_MODELS.flatMap(({ names, config, published }) =>
      Object.entries(published ?? {}).map(([kind, bytes]) => [names[0]!, kind, bytes, config] as const),
    ),
  )("%s in %s has the published %d bytes", (name, kind, bytes, config) => {
    // Published to three digits, and with the tokens in the header.
    expect(Math.abs(ggufWeights(shapeOfConfig(config, name), kind as "Q4_K_M").weightsBytes / bytes - 1)).toBeLessThan(0.02);
  });

  it("are found under every name, also of their GGUF files, without a network", async () => {
    for (const { names, ggufRepository } of KNOWN_MODELS) {
      for (const name of names) {
        expect((await readModelShape(name, { hub: "http://127.0.0.1:1" })).format).toBe("safetensors");
        expect((await readModelShape(`hf:${name.toLowerCase()}`)).format).toBe("safetensors");
      }
      for (const reference of [
        `hf:${ggufRepository}:Q4_K_M`,
        `hf:${ggufRepository}:q8_0`,
        `hf:${ggufRepository}/${names[0]!.split("/")[1]}-Q4_K_M.gguf`,
      ]) {
        expect((await readModelShape(reference)).format).toBe("gguf");
      }
    }
    expect(knownShape("hf:bartowski/nvidia_OpenMath-Nemotron-7B-GGUF")).toMatchObject({ quantisation: "Q4_K_M", format: "gguf" });
  });

  it("have the shapes of their config files", () => {
    for (const [name, file] of [
      ["nvidia/OpenMath-Nemotron-7B", "qwen2-7b"],
      ["meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"],
      ["hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "llama-3.1-8b-awq-int4"],
      ["meta-llama/Llama-3.2-1B", "llama-3.2-1b-tied"],
      ["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"],
      ["Qwen/Qwen2.5-0.5B", "qwen2-0.5b-tied"],
    ] as const) {
      const { matrices: _, smallParameters: __, ...shape } = sizeOf(file);
      expect(knownShape(name)).toMatchObject(shape);
    }
  });

  it("say which tokenizers are of one family", () => {
    expect(sameTokenizerFamily("nvidia/OpenMath-Nemotron-7B", "hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q8_0")).toBe(true);
    expect(sameTokenizerFamily("nvidia/OpenMath-Nemotron-7B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0")).toBe(false);
    expect(sameTokenizerFamily("nvidia/OpenMath-Nemotron-7B", "some/model")).toBeUndefined();
  });

  it("names that are none of a hub's are not taken for one", () => {
    for (const text of ["a", "../b", "a/../b", "a/b/c", "a/b.gguf", "a b/c", "hf:a", "/a/b", "./a"])
      expect(parseHubName(text)).toBeUndefined();
    expect(parseHubName("hf:a/b:Q4_K_M")).toEqual({ repository: "a/b", quantisation: "Q4_K_M" });
    expect(knownModel("some/model")).toBeUndefined();
  });

  it("can be kept in other ways, and a rebuilt shape is the same model", () => {
    const shape = knownShape("hf:bartowski/nvidia_OpenMath-Nemotron-7B-GGUF:Q8_0")!;
    const sizes = VARIANTS.map((variant) => ((variantOf(shape, variant)?.weightsBytes ?? 0) / 2 ** 30).toFixed(2));
    expect(sizes).toEqual(["14.19", "8.11", "5.19", "7.54", "4.36"]);
    expect(variantOf({ ...sizeOf("mixtral-8x7b"), reference: "x", format: "safetensors", source: "" }, "FP8")).toBeUndefined();
  });
});

describe("the hub", () => {
  const servers: http.Server[] = [];
  afterEach(async () => {
    for (const server of servers.splice(0)) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  });

  async function hubWith(
    files: Record<string, unknown>,
    handle?: (request: http.IncomingMessage, response: http.ServerResponse) => boolean,
  ) {
    const requests: { url: string; authorization?: string; range?: string }[] = [];
    const server = http.createServer((request, response) => {
      requests.push({ url: request.url!, authorization: request.headers.authorization, range: request.headers.range });
      if (handle?.(request, response)) return;
      const content = files[request.url!.split("?")[0]!];
      if (content === undefined) return void response.writeHead(404).end("Entry not found");
      const body = Buffer.isBuffer(content) ? content : Buffer.from(typeof content === "string" ? content : JSON.stringify(content));
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
      if (from === undefined) return void response.end(body);
      const part = body.subarray(Number(from), Number(to) + 1);
      response.writeHead(206, { "content-range": `bytes ${from}-${Number(from) + part.length - 1}/${body.length}` }).end(part);
    });
    servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return { hub: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, requests };
  }

  it("is asked for config.json and the index, with the token, and never for weights", async () => {
    const { hub, requests } = await hubWith({
      "/me/model/resolve/main/config.json": fixture("qwen2-7b"),
      "/me/model/resolve/main/model.safetensors.index.json": { metadata: { total_size: 123_456_789 } },
    });
    const shape = await readModelShape("hf:me/model", { hub, hfToken: "secret" });
    expect(shape).toMatchObject({ layers: 28, weightsBytes: 123_456_789, reference: "hf:me/model" });
    expect(requests.map(({ url }) => url)).toEqual([
      "/me/model/resolve/main/config.json",
      "/me/model/resolve/main/model.safetensors.index.json",
    ]);
    expect(requests.every(({ authorization }) => authorization === "Bearer secret")).toBe(true);
  });

  it("is found by HF_ENDPOINT, and tells the size of a single file", async () => {
    const { hub } = await hubWith({
      "/me/model/resolve/main/config.json": fixture("qwen2-0.5b-tied"),
      "/api/models/me/model/tree/main": [
        { path: "model.safetensors", size: 988_097_824 },
        { path: "onnx/model.safetensors", size: 5 },
        { path: "README.md" },
      ],
    });
    const before = process.env.HF_ENDPOINT;
    process.env.HF_ENDPOINT = hub;
    try {
      expect((await readModelShape("me/model")).weightsBytes).toBe(988_097_824);
    } finally {
      if (before === undefined) delete process.env.HF_ENDPOINT;
      else process.env.HF_ENDPOINT = before;
    }
  });

  it("gives a GGUF file's header by ranges", async () => {
    const student = readFileSync(path.join(MODELS, "student.gguf"));
    const { hub, requests } = await hubWith({
      "/api/models/me/tiny-GGUF/tree/main": [
        { path: "tiny-Q8_0.gguf", size: 1 },
        { path: "tiny-F16.gguf", size: student.length },
      ],
      "/me/tiny-GGUF/resolve/main/tiny-F16.gguf": student,
    });
    const { reference: _, source: __, ...local } = await readModelShape(path.join(MODELS, "student.gguf"));
    expect(await readModelShape("hf:me/tiny-GGUF:F16", { hub })).toMatchObject(local);
    expect(await readModelShape("hf:me/tiny-GGUF/tiny-F16.gguf", { hub })).toMatchObject(local);
    const asked = requests.flatMap(({ range }) => (range === undefined ? [] : [range]));
    expect(asked.every((range) => Number(/(\d+)$/.exec(range)![1]) < 1_100_000)).toBe(true);
  });

  it("says which GGUF files there are when the asked one is not", async () => {
    const { hub } = await hubWith({ "/api/models/me/tiny-GGUF/tree/main": [{ path: "tiny-Q8_0.gguf" }] });
    const error = await failure(readModelShape("hf:me/tiny-GGUF:Q4_K_M", { hub }));
    expect(error).toMatchObject({ code: "model-missing" });
    expect(error.message).toContain("tiny-Q8_0.gguf");
  });

  it.each([
    ["nothing there", 404, "model-missing", /not there/],
    ["gated", 401, "model-download-failed", /HF_TOKEN/],
    ["forbidden", 403, "model-download-failed", /HF_TOKEN/],
    ["broken", 500, "model-download-failed", /answered 500/],
  ])("%s: %d is %s", async (_, status, code, message) => {
    const { hub } = await hubWith({}, (_request, response) => {
      response.writeHead(status).end("no");
      return true;
    });
    const error = await failure(readModelShape("me/model", { hub }));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });

  it("that is silent is given up soon, and one that is not there at once", async () => {
    const { hub } = await hubWith({}, () => true);
    const startedAt = Date.now();
    const error = await failure(readModelShape("me/model", { hub, timeoutMs: 200 }));
    expect(error.code).toBe("model-download-failed");
    expect(Date.now() - startedAt).toBeLessThan(5000);
    expect((await failure(readModelShape("me/model", { hub: "http://127.0.0.1:1" }))).message).toContain("no hub");
    expect((await failure(readModelShape("me/model", { hub: "not an address" }))).code).toBe("model-download-failed");
  });

  it("that answers nonsense is a model that is invalid, not a crash", async () => {
    for (const files of [
      { "/me/model/resolve/main/config.json": "<html>" },
      { "/me/model/resolve/main/config.json": "[]" },
      { "/me/model/resolve/main/config.json": fixture("qwen2-7b"), "/me/model/resolve/main/model.safetensors.index.json": "{}" },
      { "/api/models/me/model/tree/main": "{}" },
      { "/api/models/me/model/tree/main": [null] },
    ]) {
      const { hub } = await hubWith(files);
      expect((await failure(readModelShape("me/model", { hub }))).code).toBe("model-invalid");
    }
  });

  it("that ignores ranges is refused before it sends the weights", async () => {
    const { hub } = await hubWith({ "/api/models/me/g/tree/main": [{ path: "g-Q4_K_M.gguf" }] }, (request, response) => {
      if (request.headers.range === undefined) return false;
      response.end("GGUF");
      return true;
    });
    expect((await failure(readModelShape("hf:me/g:Q4_K_M", { hub }))).message).toMatch(/answered 200 where part of a file/);
  });
});

it("an earlier download needs no hub", async () => {
  const dataDir = path.join(folder, "data");
  await mkdir(path.join(dataDir, "models"), { recursive: true });
  const { resolveModelFile } = await import("node-llama-cpp");
  const reference = "hf:me/tiny-GGUF/tiny-F16.gguf";
  // Where the library would put it.
  const wanted = await resolveModelFile(reference, { directory: path.join(dataDir, "models"), download: false, cli: false }).catch(
    (error: Error) => /"?(\/[^"]*\.gguf)"?/.exec(error.message)?.[1],
  );
  await cp(path.join(MODELS, "student.gguf"), wanted ?? path.join(dataDir, "models", "hf_me_tiny-F16.gguf"));
  expect((await readModelShape(reference, { dataDir, hub: "http://127.0.0.1:1" })).layers).toBe(5);
});
