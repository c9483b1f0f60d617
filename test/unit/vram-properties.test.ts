import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { ModelShape } from "../../workers/gpu/model-shape-config.ts";
import { type Card, ENGINE_KINDS, fitOf, GIBIBYTE, kvBytes, type LoadSettings, MOST_SEQUENCES, needOf } from "../../workers/gpu/vram.ts";

const shapes: fc.Arbitrary<ModelShape> = fc
  .record({
    layers: fc.integer({ min: 1, max: 120 }),
    sliding: fc.integer({ min: 0, max: 120 }),
    windowTokens: fc.integer({ min: 1, max: 200_000 }),
    attentionHeads: fc.integer({ min: 1, max: 128 }),
    kvHeads: fc.integer({ min: 1, max: 16 }),
    headDim: fc.integer({ min: 1, max: 256 }),
    hiddenSize: fc.integer({ min: 1, max: 16_384 }),
    vocabularySize: fc.integer({ min: 1, max: 300_000 }),
    tiedEmbeddings: fc.boolean(),
    weightsBytes: fc.integer({ min: 1, max: 60e9 }),
    embeddingShare: fc.double({ min: 0, max: 1, noNaN: true }),
    trainedContextTokens: fc.integer({ min: 1, max: 1_048_576 }),
    format: fc.constantFrom("gguf" as const, "safetensors" as const),
    quantisation: fc.constantFrom("BF16", "FP32", "Q4_K_M"),
  })
  .map(({ sliding, windowTokens, embeddingShare, ...each }) => {
    const windowed = Math.min(sliding, each.layers);
    const valuesPerToken = 2 * each.kvHeads * each.headDim;
    return {
      ...each,
      reference: "any",
      architecture: "any",
      source: "any",
      intermediateSize: 4 * each.hiddenSize,
      parameters: each.weightsBytes / 2,
      embeddingBytes: Math.floor(each.weightsBytes * embeddingShare),
      kvGroups: [
        { layers: each.layers - windowed, valuesPerToken, windowTokens: null },
        { layers: windowed, valuesPerToken, windowTokens },
      ],
    };
  });

const settingsOf: fc.Arbitrary<LoadSettings> = fc.record({
  engine: fc.constantFrom(...ENGINE_KINDS),
  contextTokens: fc.integer({ min: 1, max: 262_144 }),
  sequences: fc.integer({ min: 1, max: MOST_SEQUENCES }),
  kvCacheBits: fc.constantFrom(16 as const, 8 as const),
  utilisation: fc.double({ min: 0.1, max: 1, noNaN: true }),
  enforceEager: fc.boolean(),
  gpuLayers: fc.option(fc.integer({ min: 0, max: 130 }), { nil: undefined }),
  draft: fc.option(shapes, { nil: undefined }),
  besideSleeping: fc.boolean(),
});

const cards: fc.Arbitrary<Card> = fc
  .record({
    kind: fc.constantFrom("gpu" as const, "host" as const),
    totalBytes: fc.integer({ min: 1e8, max: 96 * GIBIBYTE }),
    freeShare: fc.double({ min: 0, max: 1, noNaN: true }),
    reservedBytes: fc.option(fc.integer({ min: 0, max: 1e9 }), { nil: undefined }),
    hostFreeBytes: fc.option(fc.integer({ min: 0, max: 128 * GIBIBYTE }), { nil: undefined }),
  })
  .map(({ freeShare, ...card }) => ({ ...card, name: "any", freeBytes: Math.floor(card.totalBytes * freeShare) }));

const runs = { numRuns: 500 };

describe("for any model, settings and card", () => {
  it("no amount is negative or not a number, and the total is its parts", () => {
    fc.assert(
      fc.property(shapes, settingsOf, fc.constantFrom("gpu" as const, "host" as const), (shape, settings, where) => {
        const need = needOf(shape, settings, where);
        for (const bytes of Object.values(need)) expect(bytes).toBeGreaterThanOrEqual(0);
        const parts =
          need.weightsBytes +
          need.draftBytes +
          need.kvBytes +
          need.activationBytes +
          need.graphsBytes +
          need.nonTorchBytes +
          need.processBytes;
        expect(need.totalBytes).toBeCloseTo(parts, 0);
        expect(need.budgetedBytes).toBeLessThanOrEqual(need.totalBytes);
      }),
      runs,
    );
  });

  it("more sequences, more tokens or more layers on the GPU never need less; 8 bits never more than 16", () => {
    fc.assert(
      fc.property(
        shapes,
        settingsOf,
        fc.integer({ min: 0, max: 100 }),
        fc.constantFrom("gpu" as const, "host" as const),
        (shape, settings, more, where) => {
          const total = (changes: Partial<LoadSettings>) => needOf(shape, { ...settings, ...changes }, where).totalBytes;
          const now = total({});
          expect(total({ sequences: settings.sequences + more })).toBeGreaterThanOrEqual(now);
          expect(total({ contextTokens: settings.contextTokens + more * 17 })).toBeGreaterThanOrEqual(now);
          expect(total({ gpuLayers: (settings.gpuLayers ?? 0) + more })).toBeGreaterThanOrEqual(
            total({ gpuLayers: settings.gpuLayers ?? 0 }),
          );
          expect(total({ kvCacheBits: 8 })).toBeLessThanOrEqual(total({ kvCacheBits: 16 }));
        },
      ),
      runs,
    );
  });

  it("the KV cache is at least the exact formula for layers without a window, and within a block of it", () => {
    fc.assert(
      fc.property(
        shapes,
        fc.constantFrom(...ENGINE_KINDS),
        fc.integer({ min: 1, max: 100_000 }),
        fc.integer({ min: 1, max: 256 }),
        (shape, engine, context, sequences) => {
          const full = {
            ...shape,
            kvGroups: [{ layers: shape.layers, valuesPerToken: 2 * shape.kvHeads * shape.headDim, windowTokens: null }],
          };
          const tokenBytes = 2 * shape.layers * shape.kvHeads * shape.headDim * 2;
          const bytes = kvBytes(full, engine, context, sequences, 16);
          expect(bytes).toBeGreaterThanOrEqual(tokenBytes * context * sequences);
          expect(bytes).toBeLessThan(tokenBytes * ((context + 16) * sequences + 256));
          expect(kvBytes(shape, engine, context, sequences, 16)).toBeLessThanOrEqual(bytes);
        },
      ),
      runs,
    );
  });

  it("the largest number of sequences fits and one more does not", () => {
    fc.assert(
      fc.property(shapes, settingsOf, cards, (shape, settings, card) => {
        const { largestSequences } = fitOf(shape, settings, card);
        const fits = (sequences: number) => fitOf(shape, { ...settings, sequences }, card).fits;
        if (largestSequences > 0) expect(fits(largestSequences)).toBe(true);
        if (largestSequences < MOST_SEQUENCES) expect(fits(largestSequences + 1)).toBe(false);
      }),
      runs,
    );
  });

  it("the largest context fits and one block more does not; the most layers likewise", () => {
    fc.assert(
      fc.property(shapes, settingsOf, cards, (shape, settings, card) => {
        const { largestContextTokens: most, largestGpuLayers } = fitOf(shape, settings, card);
        const fits = (changes: Partial<LoadSettings>) => fitOf(shape, { ...settings, ...changes }, card).fits;
        expect(most).toBeLessThanOrEqual(shape.trainedContextTokens);
        if (most > 0) expect(fits({ contextTokens: most })).toBe(true);
        if (most < shape.trainedContextTokens) expect(fits({ contextTokens: Math.min(most + 16, shape.trainedContextTokens) })).toBe(false);
        if (settings.engine === "vllm" || card.kind === "host") return;
        if (largestGpuLayers > 0) expect(fits({ gpuLayers: largestGpuLayers })).toBe(true);
        if (largestGpuLayers <= shape.layers) expect(fits({ gpuLayers: largestGpuLayers + 1 })).toBe(false);
      }),
      runs,
    );
  });

  it("more free memory never makes a fit impossible, nor does a larger share as long as it can start", () => {
    fc.assert(
      fc.property(
        shapes,
        settingsOf,
        cards,
        fc.integer({ min: 0, max: 4 * GIBIBYTE }),
        fc.double({ min: 0, max: 0.3, noNaN: true }),
        (shape, settings, card, more, moreShare) => {
          const fit = fitOf(shape, settings, card);
          if (!fit.fits) return;
          expect(fitOf(shape, settings, { ...card, freeBytes: card.freeBytes + more }).fits).toBe(true);
          const utilisation = settings.utilisation + moreShare;
          if (fit.utilisationNow === null || utilisation > fit.utilisationNow) return;
          expect(fitOf(shape, { ...settings, utilisation }, card).fits).toBe(true);
        },
      ),
      runs,
    );
  });

  it("the share that starts now starts, and a hundredth more does not", () => {
    fc.assert(
      fc.property(shapes, settingsOf, cards, (shape, settings, card) => {
        const asked: LoadSettings = { ...settings, engine: "vllm" };
        const { utilisationNow, fitsUtilisationNow } = fitOf(shape, asked, card);
        if (utilisationNow === null) return;
        expect(fitOf(shape, { ...asked, utilisation: utilisationNow }, card).fits).toBe(fitsUtilisationNow);
        if (utilisationNow < 1) expect(fitOf(shape, { ...asked, utilisation: utilisationNow + 0.01 }, card).fits).toBe(false);
      }),
      runs,
    );
  });
});
