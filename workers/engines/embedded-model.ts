import os from "node:os";
import {
  type CustomBatchingPrioritizationStrategy,
  DraftSequenceTokenPredictor,
  getLlama,
  type Llama,
  type LlamaContext,
  type LlamaContextSequence,
  type LlamaModel,
} from "node-llama-cpp";
import { MathllmError } from "../../queues/errors.ts";
import type { EmbeddedProfile } from "./embedded-messages.ts";
import { tellsOfOutOfMemory } from "./out-of-memory.ts";

/** Below this many parameters more than one thread only spins at barriers: a hundred times slower on busy cores. */
const SINGLE_THREAD_PARAMETERS = 10_000_000;
const DRAFT_MAX_TOKENS = 6;
const DRAFT_MIN_CONFIDENCE = 0.5;
/** llama.cpp's own bound on how much larger one of two vocabularies may be. */
const VOCABULARY_SIZE_MARGIN = 128;

/** A model in memory with its sequences, each with a predictor where a draft speculates for it. */
export interface LoadedModel {
  model: LlamaModel;
  sequences: LlamaContextSequence[];
  /** Tokens that a sequence holds, prompt and answer. */
  contextTokens: number;
  /** Tokens that one decode takes. */
  batchTokens: number;
  /** Decodes of the model (not of its draft) so far. */
  decodes(): number;
}

/** Loads model, draft and contexts. Throws `model-invalid` or `out-of-memory` with the reason. */
export async function loadModel(profile: EmbeddedProfile): Promise<LoadedModel> {
  const llama = await getLlama({ build: "never", logLevel: "error" as never, ...(profile.ngl === 0 ? { gpu: false as const } : {}) });
  if (profile.ramCapBytes !== undefined) await llama.setRamCap(profile.ramCapBytes);
  if (profile.vramCapBytes !== undefined) await llama.setVramCap(profile.vramCapBytes);
  const model = await load(llama, profile.modelPath, profile);
  const contextTokens = Math.min(profile.maxModelLen, model.trainContextSize);
  let decodes = 0;
  const context = await createContext(model, contextTokens, profile, () => decodes++);
  const draftContext = profile.draftPath === undefined ? undefined : await draftFor(model, profile.draftPath, contextTokens, profile);
  const sequences = Array.from({ length: profile.maxNumSeqs }, () => {
    const tokenPredictor =
      draftContext &&
      new DraftSequenceTokenPredictor(draftContext.getSequence(), { maxTokens: DRAFT_MAX_TOKENS, minConfidence: DRAFT_MIN_CONFIDENCE });
    return context.getSequence({ tokenPredictor });
  });
  return { model, sequences, contextTokens, batchTokens: context.batchSize, decodes: () => decodes };
}

function load(llama: Llama, modelPath: string, { ngl }: EmbeddedProfile): Promise<LlamaModel> {
  return llama.loadModel({ modelPath, gpuLayers: ngl }).catch((error: Error) => {
    throw loadError(error, `The model at ${modelPath} can't be loaded: ${error.message}`);
  });
}

function threadsFor(model: LlamaModel, threads: number | undefined): number {
  if (threads !== undefined) return threads;
  return model.fileInsights.totalParameters < SINGLE_THREAD_PARAMETERS ? 1 : Math.max(os.availableParallelism() - 1, 1);
}

/** llama.cpp says only "failed" where an allocation failed; with a model that could be loaded nothing else makes a context fail. */
function loadError(error: Error, detail: string): MathllmError {
  const outOfMemory = tellsOfOutOfMemory(`${error.constructor.name}: ${error.message}`) || error.message === "Failed to create context";
  return new MathllmError(outOfMemory ? "out-of-memory" : "model-invalid", detail);
}

/** `onDecode` is called before each decode. */
function createContext(model: LlamaModel, contextSize: number, profile: EmbeddedProfile, onDecode: () => void): Promise<LlamaContext> {
  // Wherever the backend has it: on a CPU, too, it was faster than none, on the shipped Student as on 76 million parameters.
  const flashAttention = "auto" as const;
  // A quantised value cache exists only with flash attention.
  const kvCache =
    profile.kvCacheBits === 8
      ? { experimentalKvCacheKeyType: "Q8_0" as const, experimentalKvCacheValueType: "Q8_0" as const, flashAttention: true }
      : { flashAttention };
  const itemPrioritizationStrategy: CustomBatchingPrioritizationStrategy = ({ items, size }) => {
    onDecode();
    let left = size;
    return items.map((item) => {
      const processAmount = Math.min(item.tokens.length, left);
      left -= processAmount;
      return { item, processAmount };
    });
  };
  return model
    .createContext({
      sequences: profile.maxNumSeqs,
      contextSize,
      ...kvCache,
      threads: threadsFor(model, profile.threads),
      batching: { itemPrioritizationStrategy },
    })
    .catch((error: Error) => {
      throw loadError(
        error,
        `No context of ${profile.maxNumSeqs} sequences of ${contextSize} tokens for ${profile.modelPath}: ${error.message}. Lower MAX_NUM_SEQS or MAX_MODEL_LEN.`,
      );
    });
}

/** The draft's context, if it can draft for the model at all: the same tokens under the same numbers. */
async function draftFor(model: LlamaModel, draftPath: string, contextTokens: number, profile: EmbeddedProfile): Promise<LlamaContext> {
  const draft = await load(model.llama, draftPath, profile);
  const own = model.fileInfo.metadata.tokenizer?.ggml.tokens ?? [];
  const drafts = draft.fileInfo.metadata.tokenizer?.ggml.tokens ?? [];
  const shared = Math.min(own.length, drafts.length);
  const differs = Array.from({ length: shared }, (_, i) => i).find((i) => own[i] !== drafts[i]);
  if (Math.abs(own.length - drafts.length) > VOCABULARY_SIZE_MARGIN || differs !== undefined) {
    throw new MathllmError(
      "model-invalid",
      `The draft at ${draftPath} has another vocabulary (${drafts.length} tokens against ${own.length}${differs === undefined ? "" : `, token ${differs} differs`}), so it can't draft for ${profile.modelPath}. Set DRAFT_MODEL to a smaller model of the same family, or SPECULATIVE_ENABLED=0.`,
    );
  }
  return createContext(draft, Math.min(contextTokens, draft.trainContextSize), profile, () => {});
}
