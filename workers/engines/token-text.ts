import { type LlamaModel, LlamaText, SpecialToken, SpecialTokensText, type Token } from "node-llama-cpp";

/** What a byte sequence that is no character is shown as. */
const REPLACEMENT = "\uFFFD";
/** Tokens before a token that its text may depend on: a vocabulary may drop the space that a text begins with. */
const CONTEXT_TOKENS = 3;
/** A character's bytes come in at most four tokens, and each may begin the next one; beyond these they are no characters. */
const MAX_HELD_TOKENS = 16;
/** One token that has no text, as two characters of the private planes: so one search finds triggers of text, of tokens and of both. */
const MARK = /[\u{F0000}-\u{FFFFD}][\u{100000}-\u{1000FF}]/gu;

/** The private characters that stand for a token without text. */
function markOf(token: Token): string {
  return String.fromCodePoint(0xf0000 + (token >>> 8), 0x100000 + (token & 0xff));
}

/** The text without what stands for tokens. */
export function withoutMarks(text: string): string {
  return text.replace(MARK, "");
}

/** What a chat wrapper waits for, in the form in which `TokenText` gives the tokens; "" when it can't come. */
export function triggerText(trigger: string | LlamaText, model: LlamaModel): string {
  return LlamaText(trigger)
    .values.flatMap((value): (string | Token)[] => {
      if (value instanceof SpecialToken) return value.tokenize(model.tokenizer);
      if (value instanceof SpecialTokensText) return value.tokenizeSpecialTokensOnly(model.tokenizer);
      return [value];
    })
    .map((part) => (typeof part === "string" ? part : model.detokenize([part]) || markOf(part)))
    .join("");
}

/**
 * Turns one sequence's tokens into text, as they come: whole characters only (a character's bytes may be spread over tokens), and a
 * token without text as its mark.
 */
export class TokenText {
  readonly #model: LlamaModel;
  #context: Token[];
  /** Tokens whose text ends within a character, and how much of it was given. */
  #held: Token[] = [];
  #given = 0;

  /** `before` are the tokens that came before, the prompt's. */
  constructor(model: LlamaModel, before: Token[]) {
    this.#model = model;
    this.#context = before.slice(-CONTEXT_TOKENS);
  }

  /** The text that is certain with this token; "" while a character is not complete. */
  push(token: Token): string {
    // A character that a special token follows is never completed.
    if (this.#held.length > 0 && this.#model.isSpecialToken(token)) this.#release();
    this.#held.push(token);
    const text = this.#model.detokenize(this.#held, false, this.#context);
    if (text === "" && this.#held.length === 1) {
      this.#release();
      return markOf(token);
    }
    const open = text.endsWith(REPLACEMENT) && this.#held.length < MAX_HELD_TOKENS;
    const piece = (open ? withoutOpenEnd(text) : text).slice(this.#given);
    if (open) this.#given += piece.length;
    else this.#release();
    return piece;
  }

  #release(): void {
    this.#context = [...this.#context, ...this.#held].slice(-CONTEXT_TOKENS);
    this.#held = [];
    this.#given = 0;
  }
}

function withoutOpenEnd(text: string): string {
  let end = text.length;
  while (end > 0 && text[end - 1] === REPLACEMENT) end--;
  return text.slice(0, end);
}
