import type { ModelShape } from "./model-shape-config.ts";

/**
 * What a model needs of a card, and whether it fits: arithmetic alone. Sizes are bytes. Each constant says where it comes from;
 * the ones called estimates were not measured on the card and err on the careful side.
 */

const KIBIBYTE = 1024;
const MEBIBYTE = 1024 * KIBIBYTE;
export const GIBIBYTE = 1024 * MEBIBYTE;

/** vLLM hands out KV memory in blocks of 16 tokens. */
export const KV_BLOCK_TOKENS = 16;
/** llama.cpp rounds a context up to 256 cells. */
const KV_CELLS_STEP = 256;
/** llama.cpp's 8-bit cache is q8_0: 34 bytes for 32 numbers. vLLM's is fp8: one byte each. */
const Q8_0_BYTES = 34 / 32;
/** Tokens llama.cpp computes at once (its default ubatch, and node-llama-cpp's largest default batch). */
const LLAMACPP_BATCH_TOKENS = 512;
/** Tokens vLLM computes at once: its default max_num_batched_tokens for serving on consumer cards; what its start-up profiles. */
const VLLM_BATCH_TOKENS = 2048;
/** Estimate: PyTorch's allocator holds that much more than the tensors alive at the peak. */
const ALLOCATOR_SLACK = 1.5;
/** Estimate: copies of the logits in 32 bits while vLLM samples. */
const LOGITS_COPIES = 3;
/** Estimate: what vLLM's captured CUDA graphs take for the few batch sizes up to some 20 sequences; none with enforce-eager. */
const CUDA_GRAPHS_BYTES = 256 * MEBIBYTE;
/** Estimate: what libraries take beside PyTorch while vLLM profiles (its log calls it non-torch memory). */
const NON_TORCH_BYTES = 128 * MEBIBYTE;
/** Estimate: CUDA's own memory for one process, taken before any allocation. */
export const CUDA_CONTEXT_BYTES = 400 * MEBIBYTE;
/** Estimate: a model server's own memory when the model is in host memory. */
const HOST_PROCESS_BYTES = 200 * MEBIBYTE;
/** What a vLLM in sleep mode keeps on the GPU: about 1.1 GB was reported, at either level. */
export const SLEEPING_RESIDUAL_BYTES = 1.1e9;
/** vLLM's default share is 0.92; a card that also draws a desktop gets 0.85. */
export const DEFAULT_UTILISATION = 0.85;
/** An RTX 5070 shows 12,227 MiB, of which CUDA programs see 11.49 GiB; larger cards keep less of their share back. */
const DRIVER_RESERVED_BYTES = 12_227 * MEBIBYTE - 11.49 * GIBIBYTE;
const DRIVER_RESERVED_SHARE = DRIVER_RESERVED_BYTES / (12_227 * MEBIBYTE);
export const MOST_SEQUENCES = 256;
/** Below that no worked answer fits; also where the worker's ladder of smaller settings ends. */
export const LEAST_CONTEXT_TOKENS = 512;

export const ENGINE_KINDS = ["vllm", "llamacpp", "embedded"] as const;
export type EngineKind = (typeof ENGINE_KINDS)[number];

/** A card, or the host's memory when there is none. */
export interface Card {
  kind: "gpu" | "host";
  name: string;
  /** As nvidia-smi shows it. */
  totalBytes: number;
  freeBytes: number;
  /** What the driver keeps from programs; undefined: estimated. */
  reservedBytes?: number;
  /** Host memory for what does not go on the GPU; undefined: not limited. */
  hostFreeBytes?: number;
}

export interface LoadSettings {
  engine: EngineKind;
  /** Tokens for each sequence. */
  contextTokens: number;
  sequences: number;
  kvCacheBits: 16 | 8;
  /** vLLM: share of the card it takes in all. */
  utilisation: number;
  enforceEager: boolean;
  /** llama.cpp: layers on the GPU; undefined: all. */
  gpuLayers?: number;
  /** A draft model loaded beside it, with the same context. */
  draft?: ModelShape;
  /** Another vLLM sleeps on the card. */
  besideSleeping: boolean;
}

export interface Need {
  weightsBytes: number;
  draftBytes: number;
  kvBytes: number;
  /** vLLM: the peak of its activations. llama.cpp: its compute buffer. */
  activationBytes: number;
  graphsBytes: number;
  nonTorchBytes: number;
  /** The process's own: CUDA context, or the server's memory on a host. */
  processBytes: number;
  /** All of it. */
  totalBytes: number;
  /** What the vLLM rule compares with its share: all but the CUDA context, which is there before vLLM measures. */
  budgetedBytes: number;
  /** What stays in host memory beside a GPU. */
  hostBytes: number;
}

export interface Fit {
  fits: boolean;
  need: Need;
  /** What has to be there: need's total, or for vLLM its budgeted part. */
  needBytes: number;
  haveBytes: number;
  /** vLLM: the largest share that starts now, and whether the model fits within it; null for the others, or when nothing is free. */
  utilisationNow: number | null;
  fitsUtilisationNow: boolean;
  /** At this context; 0: not even one. */
  largestSequences: number;
  /** With these sequences; 0: none. */
  largestContextTokens: number;
  /** llama.cpp: the most layers (output layer included) that fit with these sequences and this context. */
  largestGpuLayers: number;
  /** The sum in words. */
  arithmetic: string;
}

const roundUp = (value: number, step: number) => Math.ceil(value / step) * step;

/** A context is never longer than the model was trained for. */
export function effectiveContext(shape: ModelShape, contextTokens: number): number {
  return Math.min(contextTokens, shape.trainedContextTokens);
}

const kvNumberBytes = (engine: EngineKind, bits: 16 | 8) => (bits === 16 ? 2 : engine === "vllm" ? 1 : Q8_0_BYTES);

/** `2 · layers · KV heads · head size · bytes`, summed over layers that may differ: keys and values of one token in every layer. */
export function kvBytesPerToken(shape: ModelShape, engine: EngineKind, bits: 16 | 8): number {
  return shape.kvGroups.reduce((sum, group) => sum + group.layers * group.valuesPerToken, 0) * kvNumberBytes(engine, bits);
}

/**
 * The KV cache of so many full sequences, in blocks of 16 tokens. Layers with a sliding window keep the window and what is computed
 * at once (vLLM's own bound for such layers; llama.cpp sizes them likewise).
 */
export function kvBytes(shape: ModelShape, engine: EngineKind, contextTokens: number, sequences: number, bits: 16 | 8): number {
  const context = roundUp(contextTokens, KV_BLOCK_TOKENS);
  const numberBytes = kvNumberBytes(engine, bits);
  let total = 0;
  for (const { layers, valuesPerToken, windowTokens } of shape.kvGroups) {
    let tokens = context * sequences;
    if (engine === "vllm") {
      if (windowTokens !== null) tokens = Math.min(context, roundUp(windowTokens + VLLM_BATCH_TOKENS, KV_BLOCK_TOKENS)) * sequences;
    } else {
      tokens = roundUp(tokens, KV_CELLS_STEP);
      if (windowTokens !== null) tokens = Math.min(tokens, roundUp(windowTokens * sequences + LLAMACPP_BATCH_TOKENS, KV_CELLS_STEP));
    }
    total += layers * valuesPerToken * numberBytes * tokens;
  }
  return total;
}

/** Estimate of vLLM's peak while it profiles: some hidden vectors, a feed-forward layer's three, and the logits to sample from. */
function vllmActivationBytes(shape: ModelShape, sequences: number): number {
  const layerBytes = VLLM_BATCH_TOKENS * (4 * shape.hiddenSize + 3 * shape.intermediateSize) * 2;
  return (layerBytes + sequences * shape.vocabularySize * 4 * LOGITS_COPIES) * ALLOCATOR_SLACK;
}

/** llama.cpp's compute buffer with flash attention: 32-bit logits and a hidden vector for every token of a batch. */
function computeBufferBytes(shape: ModelShape, contextTokens: number, sequences: number): number {
  return Math.min(LLAMACPP_BATCH_TOKENS, contextTokens * sequences) * (shape.vocabularySize + shape.hiddenSize) * 4;
}

/** 32-bit checkpoints are halved by vLLM on load (its dtype `auto`). */
const vllmWeightsBytes = (shape: ModelShape) =>
  shape.quantisation === "FP32" && shape.format === "safetensors" ? shape.weightsBytes / 2 : shape.weightsBytes;

/** llama.cpp leaves the token embedding in host memory; where it is the output layer too, a copy goes on the GPU. */
const ggufGpuWeightsBytes = (shape: ModelShape) => shape.weightsBytes - (shape.tiedEmbeddings ? 0 : shape.embeddingBytes);

/** The GPU's share of a model's layers; the output layer counts as one. */
const gpuShare = (shape: ModelShape, gpuLayers: number | undefined) =>
  Math.min(1, (gpuLayers ?? Number.POSITIVE_INFINITY) / (shape.layers + 1));

export function needOf(shape: ModelShape, settings: LoadSettings, where: Card["kind"] = "gpu"): Need {
  const { engine, sequences, kvCacheBits, draft } = settings;
  const context = effectiveContext(shape, settings.contextTokens);
  const kv = kvBytes(shape, engine, context, sequences, kvCacheBits);
  const draftKv = draft === undefined ? 0 : kvBytes(draft, engine, effectiveContext(draft, context), sequences, kvCacheBits);
  if (engine === "vllm") {
    const need = {
      weightsBytes: vllmWeightsBytes(shape),
      draftBytes: draft === undefined ? 0 : vllmWeightsBytes(draft) + draftKv,
      kvBytes: kv,
      activationBytes: vllmActivationBytes(shape, sequences),
      graphsBytes: settings.enforceEager ? 0 : CUDA_GRAPHS_BYTES,
      nonTorchBytes: NON_TORCH_BYTES,
      processBytes: CUDA_CONTEXT_BYTES,
      hostBytes: 0,
    };
    const budgetedBytes = need.weightsBytes + need.draftBytes + need.kvBytes + need.activationBytes + need.graphsBytes + need.nonTorchBytes;
    return { ...need, budgetedBytes, totalBytes: budgetedBytes + need.processBytes };
  }
  const onHost = where === "host";
  const share = onHost ? 1 : gpuShare(shape, settings.gpuLayers);
  const weightsBytes = onHost ? shape.weightsBytes : ggufGpuWeightsBytes(shape) * share;
  const draftWeights = draft === undefined ? 0 : onHost ? draft.weightsBytes : ggufGpuWeightsBytes(draft);
  const draftCompute = draft === undefined ? 0 : computeBufferBytes(draft, effectiveContext(draft, context), sequences);
  const usesGpu = !onHost && share > 0;
  const need = {
    weightsBytes,
    draftBytes: draftWeights + draftKv + draftCompute,
    kvBytes: kv * share,
    activationBytes: onHost || usesGpu ? computeBufferBytes(shape, context, sequences) : 0,
    graphsBytes: 0,
    nonTorchBytes: 0,
    processBytes: onHost ? HOST_PROCESS_BYTES : usesGpu ? CUDA_CONTEXT_BYTES : 0,
    hostBytes: onHost
      ? 0
      : shape.weightsBytes - ggufGpuWeightsBytes(shape) + (ggufGpuWeightsBytes(shape) + kv) * (1 - share) + HOST_PROCESS_BYTES,
  };
  const totalBytes = need.weightsBytes + need.draftBytes + need.kvBytes + need.activationBytes + need.processBytes;
  return { ...need, budgetedBytes: totalBytes, totalBytes };
}

/** What CUDA programs see of the card. */
export function usableTotalBytes({ kind, totalBytes, reservedBytes }: Card): number {
  if (kind === "host") return totalBytes;
  return Math.max(0, totalBytes - (reservedBytes ?? Math.min(DRIVER_RESERVED_BYTES, totalBytes * DRIVER_RESERVED_SHARE)));
}

/** What a new process can get at most now: nothing that others hold, nothing that the driver keeps. */
export function freeNowBytes(card: Card, besideSleeping: boolean): number {
  const free = Math.min(card.freeBytes, usableTotalBytes(card));
  return Math.max(0, free - (besideSleeping && card.kind === "gpu" ? SLEEPING_RESIDUAL_BYTES : 0));
}

/** The largest share that vLLM starts with now, in hundredths: it refuses when `free < share · total`. */
function largestUtilisation(card: Card, besideSleeping: boolean): number | null {
  const free = freeNowBytes(card, besideSleeping) - CUDA_CONTEXT_BYTES;
  const share = Math.floor((100 * free) / usableTotalBytes(card)) / 100;
  return share > 0 ? Math.min(1, share) : null;
}

interface Room {
  /** What may be used in all; -1 where the engine would not start at all. */
  haveBytes: number;
  /** What has to be at most that. */
  needBytes(need: Need): number;
}

function roomFor(card: Card, settings: LoadSettings, utilisation = settings.utilisation): Room {
  if (settings.engine !== "vllm") {
    return { haveBytes: freeNowBytes(card, settings.besideSleeping), needBytes: ({ totalBytes }) => totalBytes };
  }
  const share = utilisation * usableTotalBytes(card);
  // vLLM sees what is free after CUDA's context is there.
  const free = freeNowBytes(card, settings.besideSleeping) - CUDA_CONTEXT_BYTES;
  return { haveBytes: card.kind === "host" || free < share ? -1 : share, needBytes: ({ budgetedBytes }) => budgetedBytes };
}

/** The largest whole number up to `most` that `fits`, which must not fit again once it did not; 0 when not even 1. */
function largest(most: number, fits: (value: number) => boolean): number {
  let low = 0;
  let high = most;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}

/**
 * Whether the model fits. vLLM's own rules: `need ≤ utilisation · total`, and `free ≥ utilisation · total` at start. For llama.cpp and
 * the embedded engine: the layers' share of the weights + KV + compute buffer ≤ free.
 */
export function fitOf(shape: ModelShape, settings: LoadSettings, card: Card): Fit {
  const room = roomFor(card, settings);
  const fitsWith = (changes: Partial<LoadSettings>, inRoom = room) => {
    const need = needOf(shape, { ...settings, ...changes }, card.kind);
    const hostFits = card.kind === "host" || need.hostBytes <= (card.hostFreeBytes ?? Number.POSITIVE_INFINITY);
    return inRoom.needBytes(need) <= inRoom.haveBytes && hostFits;
  };
  const need = needOf(shape, settings, card.kind);
  const isVllm = settings.engine === "vllm";
  const utilisationNow = isVllm && card.kind === "gpu" ? largestUtilisation(card, settings.besideSleeping) : null;
  const blocks = Math.ceil(shape.trainedContextTokens / KV_BLOCK_TOKENS);
  const fits = fitsWith({});
  return {
    fits,
    need,
    needBytes: room.needBytes(need),
    haveBytes: Math.max(0, room.haveBytes),
    utilisationNow,
    fitsUtilisationNow: utilisationNow !== null && fitsWith({}, roomFor(card, settings, utilisationNow)),
    largestSequences: largest(MOST_SEQUENCES, (sequences) => fitsWith({ sequences })),
    largestContextTokens: Math.min(
      shape.trainedContextTokens,
      KV_BLOCK_TOKENS * largest(blocks, (count) => fitsWith({ contextTokens: count * KV_BLOCK_TOKENS })),
    ),
    largestGpuLayers: isVllm || card.kind === "host" ? 0 : largestGpuLayers(shape, (gpuLayers) => fitsWith({ gpuLayers })),
    arithmetic: arithmeticOf(need, settings, card, room, fits),
  };
}

/** More layers on the GPU need less host memory, so only the GPU's side rises; the host's side is checked at the end. */
function largestGpuLayers(shape: ModelShape, fits: (gpuLayers: number) => boolean): number {
  for (let layers = shape.layers + 1; layers > 0; layers--) if (fits(layers)) return layers;
  return 0;
}

/** Whether both could be on the card at once, each in a process of its own. */
export function bothFit(
  models: { shape: ModelShape; settings: LoadSettings }[],
  card: Card,
): { fits: boolean; needBytes: number; haveBytes: number } {
  const needBytes = models.reduce((sum, { shape, settings }) => sum + needOf(shape, settings, card.kind).totalBytes, 0);
  const haveBytes = freeNowBytes(card, false);
  const allStart = models.every(({ settings }) => settings.engine !== "vllm" || card.kind === "gpu");
  return { fits: allStart && needBytes <= haveBytes, needBytes, haveBytes };
}

/** In GiB, and small amounts in MiB, as cards show it. */
export const memoryText = (bytes: number) =>
  bytes < 0.1 * GIBIBYTE ? `${(bytes / MEBIBYTE).toFixed(1)} MiB` : `${(bytes / GIBIBYTE).toFixed(2)} GiB`;

function arithmeticOf(need: Need, settings: LoadSettings, card: Card, room: Room, fits: boolean): string {
  const parts = [
    `weights ${memoryText(need.weightsBytes)}`,
    ...(need.draftBytes > 0 ? [`draft ${memoryText(need.draftBytes)}`] : []),
    `KV cache ${memoryText(need.kvBytes)}`,
    `${settings.engine === "vllm" ? "activations" : "compute buffer"} ${memoryText(need.activationBytes)}`,
    ...(need.graphsBytes > 0 ? [`CUDA graphs ${memoryText(need.graphsBytes)}`] : []),
    ...(need.nonTorchBytes > 0 ? [`non-torch ${memoryText(need.nonTorchBytes)}`] : []),
    ...(settings.engine !== "vllm" && need.processBytes > 0
      ? [`${card.kind === "gpu" ? "CUDA context" : "server"} ${memoryText(need.processBytes)}`]
      : []),
  ];
  const sum = `${parts.join(" + ")} = ${memoryText(room.needBytes(need))}`;
  if (settings.engine !== "vllm")
    return `${sum} ${room.needBytes(need) <= room.haveBytes ? "≤" : ">"} ${memoryText(room.haveBytes)} free${fits || room.needBytes(need) > room.haveBytes ? "" : `, but ${memoryText(need.hostBytes)} stay in host memory, which has ${memoryText(card.hostFreeBytes ?? 0)}`}`;
  if (card.kind === "host") return `${sum}; vLLM needs a GPU`;
  const share = settings.utilisation * usableTotalBytes(card);
  const limit = `${settings.utilisation} · ${memoryText(usableTotalBytes(card))} = ${memoryText(share)}`;
  const freeBytes = Math.max(0, freeNowBytes(card, settings.besideSleeping) - CUDA_CONTEXT_BYTES);
  const starts = freeBytes >= share ? "" : `; only ${memoryText(freeBytes)} are free, less than the share, so vLLM would not start`;
  return `${sum} ${room.needBytes(need) <= share ? "≤" : ">"} ${limit}${starts}`;
}

/** llama.cpp's bound on the difference between two vocabularies (SPEC_VOCAB_MAX_SIZE_DIFFERENCE). */
export const VOCABULARY_SIZE_MARGIN = 128;

export interface Vocabulary {
  size: number;
  /** In order of their numbers; null: not at hand. */
  tokens: string[] | null;
}

export interface DraftVerdict {
  valid: boolean;
  /** What it rests on: the tokens themselves, families that are known, or sizes alone (then the engine has the last word). */
  basis: "tokens" | "family" | "sizes";
  reason: string;
}

/**
 * Whether one model can draft for another. llama.cpp and the embedded engine: sizes at most 128 apart and the same tokens under the same
 * numbers. vLLM: the same size, since it compares nothing else.
 */
export function draftVerdict(target: Vocabulary, draft: Vocabulary, engine: EngineKind, sameFamily?: boolean): DraftVerdict {
  const sizes = `${draft.size} tokens against ${target.size}`;
  const difference = Math.abs(target.size - draft.size);
  if (engine === "vllm" && difference > 0)
    return { valid: false, basis: "sizes", reason: `another vocabulary size (${sizes}): vLLM refuses to start` };
  if (difference > VOCABULARY_SIZE_MARGIN) {
    return { valid: false, basis: "sizes", reason: `another vocabulary (${sizes}; at most ${VOCABULARY_SIZE_MARGIN} apart would do)` };
  }
  if (target.tokens !== null && draft.tokens !== null) {
    const shared = Math.min(target.tokens.length, draft.tokens.length);
    for (let i = 0; i < shared; i++) {
      if (target.tokens[i] === draft.tokens[i]) continue;
      const shown = `${JSON.stringify(draft.tokens[i])} against ${JSON.stringify(target.tokens[i])}`;
      return { valid: false, basis: "tokens", reason: `another vocabulary (${sizes}): token ${i} is ${shown}` };
    }
    return { valid: true, basis: "tokens", reason: `the same ${shared} tokens (${sizes})` };
  }
  if (sameFamily === false) return { valid: false, basis: "family", reason: `a tokenizer of another family (${sizes})` };
  if (sameFamily === true) return { valid: true, basis: "family", reason: `the same tokenizer family (${sizes})` };
  return { valid: true, basis: "sizes", reason: `the sizes agree (${sizes}); the tokens are not at hand, the engine checks them on load` };
}
