import { randomInt } from "node:crypto";
import os from "node:os";
import {
  type ChatHistoryItem,
  DraftSequenceTokenPredictor,
  getLlama,
  JinjaTemplateChatWrapper,
  LlamaChat,
  type LlamaContextSequence,
  type LlamaModel,
  resolveChatWrapper,
} from "node-llama-cpp";
import { MathllmError } from "../../queues/errors.ts";
import { type CompletionRequest, RequestError } from "./completion-request.ts";
import type { EmbeddedProfile } from "./embedded-messages.ts";
import { tellsOfOutOfMemory } from "./out-of-memory.ts";

/** Below this many parameters more than one thread only spins at barriers: a hundred times slower on busy cores. */
const SINGLE_THREAD_PARAMETERS = 10_000_000;
const DRAFT_MAX_TOKENS = 6;
const DRAFT_MIN_CONFIDENCE = 0.5;
/** llama.cpp's own bound on how much larger one of two vocabularies may be. */
const VOCABULARY_SIZE_MARGIN = 128;

export interface Completion {
  finishReason: "stop" | "length";
  promptTokens: number;
  completionTokens: number;
  draftTokens: number;
  draftAcceptedTokens: number;
}

interface Slot {
  sequence: LlamaContextSequence;
  chat: LlamaChat;
}

/**
 * A loaded model with `maxNumSeqs` sequences. Each serves one request at a time; their tokens are batched by the library.
 */
export class SequencePool {
  readonly contextTokens: number;
  readonly #model: LlamaModel;
  readonly #free: Slot[];
  readonly #queue: ((slot: Slot) => void)[] = [];
  #running = 0;

  private constructor(model: LlamaModel, contextTokens: number, slots: Slot[]) {
    this.#model = model;
    this.contextTokens = contextTokens;
    this.#free = slots;
  }

  get running(): number {
    return this.#running;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  /** Loads model, draft and contexts. Throws `model-invalid` with the reason. */
  static async load(profile: EmbeddedProfile): Promise<SequencePool> {
    const llama = await getLlama({ build: "never", logLevel: "error" as never, ...(profile.ngl === 0 ? { gpu: false as const } : {}) });
    if (profile.ramCapBytes !== undefined) await llama.setRamCap(profile.ramCapBytes);
    if (profile.vramCapBytes !== undefined) await llama.setVramCap(profile.vramCapBytes);
    const load = (modelPath: string) =>
      llama.loadModel({ modelPath, gpuLayers: profile.ngl }).catch((error: Error) => {
        throw loadError(error, `The model at ${modelPath} can't be loaded: ${error.message}`);
      });
    const model = await load(profile.modelPath);
    const contextTokens = Math.min(profile.maxModelLen, model.trainContextSize);
    const context = await createContext(model, contextTokens, profile);
    const draftContext =
      profile.draftPath === undefined ? undefined : await draftFor(model, await load(profile.draftPath), contextTokens, profile);
    const template = model.fileInfo.metadata.tokenizer?.chat_template;
    const chatWrapper = template === undefined ? resolveChatWrapper(model) : new JinjaTemplateChatWrapper({ template });
    const slots = Array.from({ length: profile.maxNumSeqs }, () => {
      const tokenPredictor =
        draftContext &&
        new DraftSequenceTokenPredictor(draftContext.getSequence(), { maxTokens: DRAFT_MAX_TOKENS, minConfidence: DRAFT_MIN_CONFIDENCE });
      const sequence = context.getSequence({ tokenPredictor });
      return { sequence, chat: new LlamaChat({ contextSequence: sequence, chatWrapper }) };
    });
    return new SequencePool(model, contextTokens, slots);
  }

  /**
   * Answers a request on a free sequence, in arrival order. `onText` gets each piece. Throws a `RequestError` when the prompt does
   * not fit, and the signal's reason once aborted (after the current token).
   */
  async complete(request: CompletionRequest, signal: AbortSignal, onText: (text: string) => void): Promise<Completion> {
    const slot = await this.#take(signal);
    this.#running++;
    try {
      return await this.#run(slot, request, signal, onText);
    } finally {
      this.#running--;
      const next = this.#queue.shift();
      if (next === undefined) this.#free.push(slot);
      else next(slot);
    }
  }

  async #take(signal: AbortSignal): Promise<Slot> {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#queue.splice(this.#queue.indexOf(taken), 1);
        reject(signal.reason);
      };
      const taken = (slot: Slot) => {
        signal.removeEventListener("abort", onAbort);
        resolve(slot);
      };
      this.#queue.push(taken);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  async #run(
    { sequence, chat }: Slot,
    request: CompletionRequest,
    signal: AbortSignal,
    onText: (text: string) => void,
  ): Promise<Completion> {
    // From an empty sequence: what it served before must not change an answer.
    await sequence.clearHistory();
    const history = historyOf(request);
    const { contextText } = chat.chatWrapper.generateContextState({ chatHistory: history });
    const promptTokens = contextText.tokenize(this.#model.tokenizer).length;
    // One token is left free: the library shifts a context that is full to the brim.
    const room = this.contextTokens - promptTokens - 1;
    if (room < 1) {
      throw new RequestError(
        400,
        "context_length_exceeded",
        `The prompt has ${promptTokens} tokens and the model's context holds ${this.contextTokens}, answer included. Shorten the problem.`,
      );
    }
    const before = { ...sequence.tokenPredictions };
    let completionTokens = 0;
    const temperature = request.temperature ?? 1;
    const { metadata } = await chat.generateResponse(history, {
      signal,
      onTextChunk: onText,
      onToken: (tokens) => {
        completionTokens += tokens.length;
      },
      maxTokens: Math.min(request.max_completion_tokens ?? request.max_tokens ?? room, room),
      temperature,
      // Off unless asked for, as in the OpenAI API; the library would take 0.95 and 40.
      topP: request.top_p ?? 1,
      topK: request.top_k ?? 0,
      minP: request.min_p ?? undefined,
      // The library would take the second of the clock: requests of one second would all get one answer.
      seed: request.seed ?? randomInt(2 ** 32),
      customStopTriggers: request.stop ?? undefined,
      repeatPenalty: false,
    });
    const after = sequence.tokenPredictions;
    return {
      finishReason: metadata.stopReason === "maxTokens" ? "length" : "stop",
      promptTokens,
      completionTokens,
      draftTokens: after.validated + after.refuted - before.validated - before.refuted,
      draftAcceptedTokens: after.validated - before.validated,
    };
  }
}

function historyOf(request: CompletionRequest): ChatHistoryItem[] {
  const history = request.messages.map((message): ChatHistoryItem => {
    if (message.role === "assistant") return { type: "model", response: [message.content] };
    return { type: message.role === "user" ? "user" : "system", text: message.content };
  });
  return [...history, { type: "model", response: [] }];
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

function createContext(model: LlamaModel, contextSize: number, profile: EmbeddedProfile) {
  // On a CPU flash attention costs a third of the speed; on a GPU the library knows best.
  const flashAttention = model.llama.gpu === false ? false : undefined;
  // A quantised value cache exists only with flash attention.
  const kvCache =
    profile.kvCacheBits === 8
      ? { experimentalKvCacheKeyType: "Q8_0" as const, experimentalKvCacheValueType: "Q8_0" as const, flashAttention: true }
      : { flashAttention };
  return model
    .createContext({ sequences: profile.maxNumSeqs, contextSize, ...kvCache, threads: threadsFor(model, profile.threads) })
    .catch((error: Error) => {
      throw loadError(
        error,
        `No context of ${profile.maxNumSeqs} sequences of ${contextSize} tokens for ${profile.modelPath}: ${error.message}. Lower MAX_NUM_SEQS or MAX_MODEL_LEN.`,
      );
    });
}

/** The draft's context, if it can draft for the model at all: the same tokens under the same numbers. */
async function draftFor(model: LlamaModel, draft: LlamaModel, contextTokens: number, profile: EmbeddedProfile) {
  const own = model.fileInfo.metadata.tokenizer?.ggml.tokens ?? [];
  const drafts = draft.fileInfo.metadata.tokenizer?.ggml.tokens ?? [];
  const shared = Math.min(own.length, drafts.length);
  const differs = Array.from({ length: shared }, (_, i) => i).find((i) => own[i] !== drafts[i]);
  if (Math.abs(own.length - drafts.length) > VOCABULARY_SIZE_MARGIN || differs !== undefined) {
    throw new MathllmError(
      "model-invalid",
      `The draft at ${profile.draftPath} has another vocabulary (${drafts.length} tokens against ${own.length}${differs === undefined ? "" : `, token ${differs} differs`}), so it can't draft for ${profile.modelPath}. Set DRAFT_MODEL to a smaller model of the same family, or SPECULATIVE_ENABLED=0.`,
    );
  }
  return createContext(draft, Math.min(contextTokens, draft.trainContextSize), profile);
}
