import { randomInt } from "node:crypto";
import type { LlamaContextSequence, SequenceEvaluateOptions } from "node-llama-cpp";
import type { TextPiece } from "./answer-text.ts";
import { ChatPrompts } from "./chat-prompt.ts";
import { type CompletionRequest, RequestError } from "./completion-request.ts";
import type { EmbeddedProfile } from "./embedded-messages.ts";
import { type LoadedModel, loadModel } from "./embedded-model.ts";
import { Generation } from "./generation.ts";
import { Stepper } from "./stepper.ts";

/** Tokens of prompts that are read beside what others write, a round. */
const PIECE_TOKENS = 128;

export interface Completion {
  finishReason: "stop" | "length";
  promptTokens: number;
  completionTokens: number;
  draftTokens: number;
  draftAcceptedTokens: number;
}

/**
 * A loaded model with `maxNumSeqs` places, each a sequence that serves one request at a time.
 *
 *   waiting for a place, in arrival order ──► generating (see `Generation`), in step with the others ──► done; the place is the next one's
 *        └──abort──► gone
 */
export class SequencePool {
  readonly #loaded: LoadedModel;
  readonly #prompts: ChatPrompts;
  readonly #stepper: Stepper;
  readonly #sequences: LlamaContextSequence[];
  /** Numbers of sequences. */
  readonly #free: Set<number>;
  readonly #queue: ((place: number) => void)[] = [];
  #running = 0;

  private constructor(loaded: LoadedModel) {
    this.#loaded = loaded;
    this.#prompts = new ChatPrompts(loaded.model);
    this.#stepper = new Stepper({ batchTokens: loaded.batchTokens, pieceTokens: PIECE_TOKENS });
    this.#sequences = loaded.sequences;
    this.#free = new Set(loaded.sequences.keys());
  }

  get contextTokens(): number {
    return this.#loaded.contextTokens;
  }

  get running(): number {
    return this.#running;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  /** Rounds of steps, and the decodes that they took. */
  get rounds(): number {
    return this.#stepper.rounds;
  }

  get decodes(): number {
    return this.#loaded.decodes();
  }

  /** Loads model, draft and contexts. Throws `model-invalid` or `out-of-memory` with the reason. */
  static async load(profile: EmbeddedProfile): Promise<SequencePool> {
    return new SequencePool(await loadModel(profile));
  }

  /**
   * Answers a request on a free sequence, in arrival order. `onPiece` gets each piece of text. Throws a `RequestError` when the prompt
   * does not fit, and the signal's reason once aborted (after the current token).
   */
  async complete(request: CompletionRequest, signal: AbortSignal, onPiece: (piece: TextPiece) => void): Promise<Completion> {
    const place = await this.#take(signal);
    this.#running++;
    try {
      return await this.#run(place, request, signal, onPiece);
    } finally {
      this.#running--;
      const next = this.#queue.shift();
      if (next === undefined) this.#free.add(place);
      else next(place);
    }
  }

  /** The lowest that is free: those that run should follow each other. */
  async #take(signal: AbortSignal): Promise<number> {
    if (this.#free.size > 0) {
      const place = Math.min(...this.#free);
      this.#free.delete(place);
      return place;
    }
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#queue.splice(this.#queue.indexOf(taken), 1);
        reject(signal.reason);
      };
      const taken = (place: number) => {
        signal.removeEventListener("abort", onAbort);
        resolve(place);
      };
      this.#queue.push(taken);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  async #run(place: number, request: CompletionRequest, signal: AbortSignal, onPiece: (piece: TextPiece) => void): Promise<Completion> {
    const sequence = this.#sequences[place]!;
    const prompt = this.#prompts.render(request);
    const promptTokens = prompt.tokens.length;
    // One token is left free: the library shifts a context that is full to the brim.
    const room = this.contextTokens - promptTokens - 1;
    if (room < 1) {
      throw new RequestError(
        400,
        "context_length_exceeded",
        `The prompt has ${promptTokens} tokens and the model's context holds ${this.contextTokens}, answer included. Shorten the problem.`,
      );
    }
    // From an empty sequence: what it served before must not change an answer.
    await sequence.clearHistory();
    const before = { ...sequence.tokenPredictions };
    const maxTokens = Math.min(request.max_completion_tokens ?? request.max_tokens ?? room, room);
    const generation = new Generation(sequence, prompt, { place, maxTokens, sampling: samplingOf(request), signal, onPiece });
    this.#stepper.join(generation);
    const written = await generation.written;
    const after = sequence.tokenPredictions;
    return {
      ...written,
      promptTokens,
      draftTokens: after.validated + after.refuted - before.validated - before.refuted,
      draftAcceptedTokens: after.validated - before.validated,
    };
  }
}

function samplingOf(request: CompletionRequest): SequenceEvaluateOptions {
  return {
    temperature: request.temperature ?? 1,
    // Off unless asked for, as in the OpenAI API; the library would take 0.95 and 40.
    topP: request.top_p ?? 1,
    topK: request.top_k ?? 0,
    minP: request.min_p ?? undefined,
    // The library would take the second of the clock: requests of one second would all get one answer.
    seed: request.seed ?? randomInt(2 ** 32),
  };
}
