import type { Token } from "./latex.ts";
import { NAMES } from "./latex-names.ts";
import { NotJudged } from "./work-budget.ts";

const MAX_DEPTH = 60;

/** Where a parser is in its tokens, and how deep. */
export class TokenCursor {
  protected at = 0;
  readonly #tokens: Token[];
  #depth = 0;

  constructor(tokens: Token[]) {
    this.#tokens = tokens;
  }

  protected peek(ahead = 0): Token | undefined {
    return this.#tokens[this.at + ahead];
  }

  protected isMark(text: string, ahead = 0): boolean {
    const token = this.peek(ahead);
    return token?.kind === "mark" && token.text === text;
  }

  protected take(text: string): boolean {
    if (!this.isMark(text)) return false;
    this.at++;
    return true;
  }

  protected expect(text: string): void {
    if (!this.take(text)) throw new NotJudged("It is not one formula.");
  }

  /** Puts another token in the place of the next one. */
  protected replace(token: Token): void {
    this.#tokens[this.at] = token;
  }

  protected nested<T>(parse: () => T): T {
    if (++this.#depth > MAX_DEPTH) throw new NotJudged("It is nested too deeply.");
    const value = parse();
    this.#depth--;
    return value;
  }
}

/** A word that is no word: `xy` is x·y, `sinx` is sin x. */
export function lettersOf(token: Token): Token[] {
  if (token.kind !== "word") return [token];
  const tokens: Token[] = [];
  let letters = 0;
  for (let at = 0; at < token.text.length; ) {
    const name = longestName(token.text, at);
    if (name === undefined && ++letters > 3) throw new NotJudged("It has words that are not understood.");
    const text = name ?? token.text[at]!;
    tokens.push({ ...token, kind: name === undefined ? "letter" : "command", text, spaced: at === 0 && token.spaced });
    at += text.length;
  }
  if (token.upright && letters > 1) throw new NotJudged("It has words that are not understood.");
  return tokens;
}

const LONGEST_NAME = 6;

function longestName(text: string, at: number): string | undefined {
  for (let length = LONGEST_NAME; length > 1; length--) {
    const name = text.slice(at, at + length);
    if (name.length === length && NAMES.has(name)) return name;
  }
  return undefined;
}
