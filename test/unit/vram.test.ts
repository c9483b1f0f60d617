import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { ggufWeights, type ModelShape, shapeOfConfig } from "../../workers/gpu/model-shape-config.ts";
import {
  bothFit,
  type Card,
  CUDA_CONTEXT_BYTES,
  draftVerdict,
  type EngineKind,
  fitOf,
  GIBIBYTE,
  kvBytes,
  kvBytesPerToken,
  type LoadSettings,
  needOf,
  SLEEPING_RESIDUAL_BYTES,
  usableTotalBytes,
} from "../../workers/gpu/vram.ts";

const FIXTURES = path.join(import.meta.dirname, "../fixtures/model-shapes");
const config = (name: string) => shapeOfConfig(JSON.parse(readFileSync(path.join(FIXTURES, `${name}.json`), "utf8")), name);
const shape = (name: string): ModelShape => ({ ...config(name), reference: name, format: "safetensors", source: "a fixture" });
const gguf = (name: string): ModelShape => ({
  ...shape(name),
  ...ggufWeights(config(name), "Q4_K_M"),
  format: "gguf",
  quantisation: "Q4_K_M",
});

const CARD: Card = { kind: "gpu", name: "RTX 5070", totalBytes: 12_227 * 1_048_576, freeBytes: 12_227 * 1_048_576 };
const settings = (engine: EngineKind, changes: Partial<LoadSettings> = {}): LoadSettings => ({
  engine,
  contextTokens: 4096,
  sequences: 8,
  kvCacheBits: 16,
  utilisation: 0.85,
  enforceEager: false,
  besideSleeping: false,
  ...changes,
});

/** Within so many per cent. */
const near = (value: number, expected: number, percent: number) => {
  expect(Math.abs(value / expected - 1), `${value} against ${expected}`).toBeLessThan(percent / 100);
};

describe("the table of what fits in 12 GB, from config files alone", () => {
  it.each([
    ["qwen2-7b", 7.616e9, 14.19],
    ["qwen2-7b-fp8", 7.616e9, 8.11],
    ["qwen2-7b-awq", 7.616e9, 5.19],
    ["llama-3.1-8b", 8.03e9, 14.96],
    ["llama-3.1-8b-fp8", 8.03e9, 8.46],
    ["llama-3.1-8b-awq-int4", 8.03e9, 5.33],
  ])("%s: %d parameters, %d GiB", (name, parameters, weightsGib) => {
    near(shape(name).parameters, parameters, 0.1);
    near(shape(name).weightsBytes, weightsGib * GIBIBYTE, 0.2);
  });

  it.each([
    ["qwen2-7b", "Q4_K_M", 4.68e9],
    ["qwen2-7b", "Q8_0", 8.1e9],
    ["llama-3.1-8b", "Q4_K_M", 4.92e9],
    ["llama-3.1-8b", "Q8_0", 8.54e9],
  ] as const)("%s as %s: %d bytes", (name, quantisation, bytes) => near(ggufWeights(config(name), quantisation).weightsBytes, bytes, 0.3));

  it.each([
    ["qwen2-7b", 57_344, [1.75, 2.1875, 2.625]],
    ["llama-3.1-8b", 131_072, [4, 5, 6]],
  ])("%s: KV cache %d bytes a token, %j GiB for 8, 10, 12 sequences of 4096", (name, perToken, totals) => {
    expect(kvBytesPerToken(shape(name), "vllm", 16)).toBe(perToken);
    expect([8, 10, 12].map((sequences) => kvBytes(shape(name), "vllm", 4096, sequences, 16) / GIBIBYTE)).toEqual(totals);
    expect([8, 10, 12].map((sequences) => kvBytes(shape(name), "vllm", 4096, sequences, 8) / GIBIBYTE)).toEqual(
      totals.map((total) => total / 2),
    );
  });

  it("programs see 11.49 GiB of the card, and 0.85 of that is 9.77 GiB", () => {
    near(usableTotalBytes(CARD), 11.49 * GIBIBYTE, 0.01);
    near(fitOf(shape("qwen2-7b-awq"), settings("vllm"), CARD).haveBytes, 9.77 * GIBIBYTE, 0.1);
  });

  it("activations of both are within the 0.3 to 0.6 GiB that were estimated", () => {
    for (const name of ["qwen2-7b", "llama-3.1-8b"]) {
      const { activationBytes } = needOf(shape(name), settings("vllm"));
      expect(activationBytes).toBeGreaterThan(0.3 * GIBIBYTE);
      expect(activationBytes).toBeLessThan(0.6 * GIBIBYTE);
    }
  });

  it("BF16 fits for neither; an AWQ or Q4_K_M Student fits the whole sweep; an AWQ Talker takes 6 sequences but not 8", () => {
    const fits = (model: ModelShape, engine: EngineKind, sequences: number) => fitOf(model, settings(engine, { sequences }), CARD).fits;
    expect(fits(shape("qwen2-7b"), "vllm", 1)).toBe(false);
    expect(fits(shape("llama-3.1-8b"), "vllm", 1)).toBe(false);
    expect([8, 10, 12].map((sequences) => fits(shape("qwen2-7b-awq"), "vllm", sequences))).toEqual([true, true, true]);
    expect([8, 10, 12].map((sequences) => fits(gguf("qwen2-7b"), "embedded", sequences))).toEqual([true, true, true]);
    expect([6, 8].map((sequences) => fits(shape("llama-3.1-8b-awq-int4"), "vllm", sequences))).toEqual([true, false]);
    expect(fits(gguf("llama-3.1-8b"), "llamacpp", 6)).toBe(true);
  });

  it("both at once do not fit, neither on vLLM nor in Q4_K_M", () => {
    const pair = (engine: EngineKind, models: ModelShape[]) =>
      models.map((model) => ({ shape: model, settings: settings(engine, { sequences: 1 }) }));
    expect(bothFit(pair("vllm", [shape("qwen2-7b-awq"), shape("llama-3.1-8b-awq-int4")]), CARD).fits).toBe(false);
    const full = [gguf("qwen2-7b"), gguf("llama-3.1-8b")].map((model) => ({
      shape: model,
      settings: settings("llamacpp", { sequences: 6 }),
    }));
    expect(bothFit(full, CARD).fits).toBe(false);
    const host: Card = { kind: "host", name: "host memory", totalBytes: 80 * GIBIBYTE, freeBytes: 80 * GIBIBYTE };
    expect(bothFit(pair("vllm", [shape("qwen2-0.5b-tied")]), host).fits).toBe(false);
    expect(bothFit(full, { ...CARD, totalBytes: 24 * GIBIBYTE, freeBytes: 24 * GIBIBYTE }).fits).toBe(true);
  });
});

describe("the KV cache", () => {
  it("is counted in blocks of 16 tokens", () => {
    const model = shape("qwen2-7b");
    expect(kvBytes(model, "vllm", 1, 1, 16)).toBe(16 * 57_344);
    expect(kvBytes(model, "vllm", 17, 3, 16)).toBe(3 * 32 * 57_344);
    // llama.cpp rounds the whole cache up to 256 cells.
    expect(kvBytes(model, "llamacpp", 17, 3, 16)).toBe(256 * 57_344);
  });

  it("takes 34 bytes for 32 numbers in llama.cpp's 8 bits, one byte each in vLLM's", () => {
    expect(kvBytesPerToken(shape("qwen2-7b"), "embedded", 8)).toBe((57_344 / 2) * (34 / 32));
    expect(kvBytesPerToken(shape("qwen2-7b"), "vllm", 8)).toBe(57_344 / 2);
  });

  it("of layers with a sliding window stops growing beyond it", () => {
    const mistral = shape("mistral-7b-v0.1");
    expect(mistral.kvGroups).toEqual([{ layers: 32, valuesPerToken: 2048, windowTokens: 4096 }]);
    expect(kvBytes(mistral, "vllm", 32_768, 1, 16)).toBe((4096 + 2048) * 131_072);
    const gemma = shape("gemma-2-2b");
    expect(gemma.kvGroups.map(({ layers, windowTokens }) => [layers, windowTokens])).toEqual([
      [13, null],
      [13, 4096],
    ]);
    expect(kvBytes(gemma, "vllm", 8192, 1, 16)).toBe(13 * 2048 * 2 * (8192 + 6144));
  });

  it("is no longer than the model's own context", () => {
    const tiny = shape("tinyllama-1.1b");
    expect(needOf(tiny, settings("vllm", { contextTokens: 1_000_000 })).kvBytes).toBe(kvBytes(tiny, "vllm", 2048, 8, 16));
  });
});

describe("vLLM's rules", () => {
  const model = shape("qwen2-7b-awq");

  it("need ≤ utilisation · total, to the byte", () => {
    const { needBytes } = fitOf(model, settings("vllm"), CARD);
    const share = needBytes / usableTotalBytes(CARD);
    expect(fitOf(model, settings("vllm", { utilisation: share * 1.000001 }), CARD).fits).toBe(true);
    expect(fitOf(model, settings("vllm", { utilisation: share * 0.999999 }), CARD).fits).toBe(false);
  });

  it("free ≥ utilisation · total at start: what a game holds is taken off the share, not off the total", () => {
    const gaming = { ...CARD, freeBytes: 9 * GIBIBYTE };
    const fit = fitOf(model, settings("vllm"), gaming);
    expect(fit).toMatchObject({ fits: false, largestSequences: 0, utilisationNow: 0.74, fitsUtilisationNow: true });
    expect(fit.arithmetic).toContain("vLLM would not start");
    expect(fitOf(model, settings("vllm", { utilisation: 0.74 }), gaming).fits).toBe(true);
    expect(fitOf(model, settings("vllm", { utilisation: 0.75 }), gaming).fits).toBe(false);
  });

  it("a sleeping neighbour's residual counts when asked for", () => {
    const utilisation = 0.9;
    const free = utilisation * usableTotalBytes(CARD) + CUDA_CONTEXT_BYTES;
    expect(fitOf(model, settings("vllm", { utilisation }), { ...CARD, freeBytes: free }).fits).toBe(true);
    expect(fitOf(model, settings("vllm", { utilisation, besideSleeping: true }), { ...CARD, freeBytes: free }).fits).toBe(false);
    expect(
      fitOf(model, settings("vllm", { utilisation, besideSleeping: true }), { ...CARD, freeBytes: free + SLEEPING_RESIDUAL_BYTES - 1 })
        .fits,
    ).toBe(false);
  });

  it("saves the CUDA graphs with enforce-eager, halves a 32-bit checkpoint, and needs a GPU", () => {
    expect(needOf(model, settings("vllm", { enforceEager: true })).graphsBytes).toBe(0);
    expect(needOf(model, settings("vllm")).graphsBytes).toBeGreaterThan(0);
    const gemma = shape("gemma-2-2b");
    expect(gemma.quantisation).toBe("FP32");
    expect(needOf(gemma, settings("vllm")).weightsBytes).toBe(gemma.weightsBytes / 2);
    expect(fitOf(model, settings("vllm"), { ...CARD, kind: "host" })).toMatchObject({ fits: false, utilisationNow: null });
  });

  it("shows the sum", () => {
    expect(fitOf(model, settings("vllm"), CARD).arithmetic).toMatch(
      /^weights 5\.19 GiB \+ KV cache 1\.75 GiB \+ activations 0\.\d\d GiB \+ CUDA graphs 0\.25 GiB \+ non-torch 0\.13 GiB = 7\.\d\d GiB ≤ 0\.85 · 11\.49 GiB = 9\.77 GiB$/,
    );
  });
});

describe("llama.cpp's rule", () => {
  const model = gguf("qwen2-7b");

  it("has the compute buffers that llama.cpp reports for these models: 304.0 and 258.5 MiB", () => {
    expect(needOf(model, settings("llamacpp")).activationBytes / 1_048_576).toBeCloseTo(304, 1);
    expect(needOf(gguf("llama-3.1-8b"), settings("llamacpp")).activationBytes / 1_048_576).toBeCloseTo(258.5, 1);
  });

  it("need ≤ free, to the byte", () => {
    const free = Math.ceil(needOf(model, settings("embedded")).totalBytes);
    const exactly = { ...model, weightsBytes: model.weightsBytes + free - needOf(model, settings("embedded")).totalBytes };
    expect(fitOf(exactly, settings("embedded"), { ...CARD, freeBytes: free }).fits).toBe(true);
    expect(fitOf(exactly, settings("embedded"), { ...CARD, freeBytes: free - 1 }).fits).toBe(false);
  });

  it("leaves an embedding in host memory, unless it is the output layer too", () => {
    const need = needOf(model, settings("embedded"));
    expect(need.weightsBytes).toBe(model.weightsBytes - model.embeddingBytes);
    expect(need.hostBytes).toBeGreaterThan(model.embeddingBytes);
    const tied = gguf("llama-3.2-1b-tied");
    expect(needOf(tied, settings("embedded")).weightsBytes).toBe(tied.weightsBytes);
  });

  it("takes the layers' share", () => {
    const all = needOf(model, settings("llamacpp"));
    const some = needOf(model, settings("llamacpp", { gpuLayers: 14 }));
    near(some.weightsBytes, (all.weightsBytes * 14) / 29, 0.001);
    near(some.kvBytes, (all.kvBytes * 14) / 29, 0.001);
    expect(needOf(model, settings("llamacpp", { gpuLayers: 0 }))).toMatchObject({ totalBytes: 0, activationBytes: 0 });
    expect(needOf(model, settings("llamacpp", { gpuLayers: 1000 }))).toEqual(all);
  });

  it("finds the most layers that fit, and that fewer leave more in host memory", () => {
    const small = { ...CARD, totalBytes: 6 * GIBIBYTE, freeBytes: 5 * GIBIBYTE };
    const { fits, largestGpuLayers } = fitOf(model, settings("embedded"), small);
    expect(fits).toBe(false);
    expect(fitOf(model, settings("embedded", { gpuLayers: largestGpuLayers }), small).fits).toBe(true);
    expect(fitOf(model, settings("embedded", { gpuLayers: largestGpuLayers + 1 }), small).fits).toBe(false);
    const poor = fitOf(model, settings("embedded", { gpuLayers: largestGpuLayers }), { ...small, hostFreeBytes: 1e6 });
    expect(poor.fits).toBe(false);
    expect(poor.arithmetic).toContain("host memory");
  });

  it("counts a draft with its own cache", () => {
    const draft = gguf("qwen2-0.5b-tied");
    const alone = needOf(model, settings("embedded", { sequences: 1 }));
    const drafted = needOf(model, settings("embedded", { sequences: 1, draft }));
    expect(drafted.totalBytes - alone.totalBytes).toBeGreaterThan(draft.weightsBytes + kvBytes(draft, "embedded", 4096, 1, 16));
  });

  it("plans for host memory with the whole model in it", () => {
    const host: Card = { kind: "host", name: "host memory", totalBytes: 8 * GIBIBYTE, freeBytes: 7.5 * GIBIBYTE };
    const fit = fitOf(model, settings("embedded"), host);
    expect(fit.need.weightsBytes).toBe(model.weightsBytes);
    expect(fit.fits).toBe(true);
    expect(fit.arithmetic).not.toContain("CUDA");
  });
});

describe("draft verdicts", () => {
  const of = (size: number, tokens: string[] | null = null) => ({ size, tokens });
  const STUDENT = of(152_064);

  it("TinyLlama is no draft for the Student anywhere", () => {
    for (const engine of ["vllm", "llamacpp", "embedded"] as const) {
      expect(draftVerdict(STUDENT, of(32_000), engine)).toMatchObject({ valid: false, basis: "sizes" });
    }
  });

  it("llama.cpp takes sizes up to 128 apart, vLLM only equal ones", () => {
    expect(draftVerdict(STUDENT, of(151_936), "llamacpp").valid).toBe(true);
    expect(draftVerdict(STUDENT, of(151_935), "llamacpp").valid).toBe(false);
    expect(draftVerdict(STUDENT, of(151_936), "vllm")).toMatchObject({ valid: false, basis: "sizes" });
    expect(draftVerdict(STUDENT, of(152_064), "vllm").valid).toBe(true);
    expect(draftVerdict(of(128_256), of(128_256), "vllm", true)).toMatchObject({ valid: true, basis: "family" });
  });

  it("looks at the tokens where it has them", () => {
    expect(draftVerdict(of(3, ["a", "b", "c"]), of(2, ["a", "b"]), "embedded")).toMatchObject({ valid: true, basis: "tokens" });
    const differing = draftVerdict(of(3, ["a", "b", "c"]), of(3, ["a", "x", "c"]), "embedded");
    expect(differing).toMatchObject({ valid: false, basis: "tokens" });
    expect(differing.reason).toContain('token 1 is "x" against "b"');
  });

  it("says when only the sizes are known, and that another family does not do", () => {
    expect(draftVerdict(of(32_000), of(32_000), "embedded")).toMatchObject({ valid: true, basis: "sizes" });
    expect(draftVerdict(of(32_000), of(32_000), "embedded", false)).toMatchObject({ valid: false, basis: "family" });
  });
});
