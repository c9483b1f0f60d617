import type { LlamaContextSequence, SequenceEvaluateOptions, Token } from "node-llama-cpp";
import { AnswerText, type TextPiece } from "./answer-text.ts";
import type { ChatPrompt } from "./chat-prompt.ts";
import type { Steppable } from "./stepper.ts";
import { TokenText } from "./token-text.ts";

export interface Written {
  finishReason: "stop" | "length";
  /** Tokens of the answer's text, its thoughts included; not those that ended it. */
  completionTokens: number;
}

export interface GenerationOptions {
  /** The number of its sequence. */
  place: number;
  maxTokens: number;
  sampling: SequenceEvaluateOptions;
  signal: AbortSignal;
  onPiece: (piece: TextPiece) => void;
}

/**
 * One request on a sequence of its own, which is empty when it begins.
 *
 *   reading its prompt ──the last piece is read──► writing ──end token, stop, limit──► ended (`written` resolves)
 *        └──────────────── abort, a failed step ──────┴──────────────────────────────► ended (`written` rejects)
 *
 * It moves only in `step`. What is aborted ends after the step that runs, or with the next.
 */
export class Generation implements Steppable {
  readonly written: Promise<Written>;
  readonly #sequence: LlamaContextSequence;
  readonly #options: GenerationOptions;
  readonly #prompt: Token[];
  readonly #tokenText: TokenText;
  readonly #text: AnswerText;
  #readTokens = 0;
  #writtenTokens = 0;
  #tokens: AsyncGenerator<Token, void> | undefined;
  #ended = false;
  readonly #resolve: (written: Written) => void;
  readonly #reject: (error: unknown) => void;

  constructor(sequence: LlamaContextSequence, { tokens, rules }: ChatPrompt, options: GenerationOptions) {
    this.#sequence = sequence;
    this.#options = options;
    this.#prompt = tokens;
    this.#tokenText = new TokenText(sequence.model, tokens);
    this.#text = new AnswerText(rules, options.onPiece);
    const { promise, resolve, reject } = Promise.withResolvers<Written>();
    this.written = promise;
    this.#resolve = resolve;
    this.#reject = reject;
  }

  get place(): number {
    return this.#options.place;
  }

  get ended(): boolean {
    return this.#ended;
  }

  get unreadTokens(): number {
    return this.#prompt.length - this.#readTokens;
  }

  async step(tokens: number): Promise<void> {
    try {
      this.#options.signal.throwIfAborted();
      if (this.unreadTokens > tokens) await this.#read(tokens);
      else await this.#write();
      this.#options.signal.throwIfAborted();
    } catch (error) {
      await this.#end(() => this.#reject(error));
    }
  }

  async #read(tokens: number): Promise<void> {
    const piece = this.#prompt.slice(this.#readTokens, this.#readTokens + tokens);
    await this.#sequence.evaluateWithoutGeneratingNewTokens(piece);
    this.#readTokens += piece.length;
  }

  /** Reads what is left of the prompt and writes a token. */
  async #write(): Promise<void> {
    this.#tokens ??= this.#sequence.evaluate(this.#prompt.slice(this.#readTokens), { ...this.#options.sampling, yieldEogToken: true });
    const { value: token } = await this.#tokens.next();
    this.#readTokens = this.#prompt.length;
    if (token === undefined) throw new Error("Expected the model to write a token; it wrote none.");
    const text = this.#tokenText.push(token);
    if (this.#sequence.model.isEogToken(token)) {
      this.#text.pushEnd(text);
      return this.#finish("stop");
    }
    this.#writtenTokens++;
    this.#text.push(text);
    if (this.#text.stopped) return this.#finish("stop");
    if (this.#writtenTokens >= this.#options.maxTokens) return this.#finish("length");
  }

  async #finish(finishReason: Written["finishReason"]): Promise<void> {
    this.#text.finish();
    await this.#end(() => this.#resolve({ finishReason, completionTokens: this.#text.tokens }));
  }

  async #end(settle: () => void): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await this.#tokens?.return();
    settle();
  }
}
