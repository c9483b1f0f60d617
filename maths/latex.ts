import { CLOSING, DECORATIONS, ESCAPED_MARKS, IGNORED, MARKS, NAMES, OPENING, PLAIN_NAMES, SAME, SPACES, TEXTS } from "./latex-names.ts";
import { asciiOf, withoutDelimiters } from "./plain-text.ts";
import { NotJudged } from "./work-budget.ts";

/** Answers as tokens: LaTeX, plain text, Unicode, and mixtures of them. */

export interface Token {
  kind: "number" | "letter" | "word" | "command" | "mark";
  /** Without the backslash; the same for different ways to write the same. */
  text: string;
  /** White space before it. */
  spaced: boolean;
  /** From `\text{…}` and the like: more likely a unit or a word than a variable. */
  upright: boolean;
  number?: NumberText;
}

export interface NumberText {
  whole: string;
  decimals: string;
  /** Digits that go on for ever, behind `decimals`. */
  repeating: string;
  exponent: number;
  /** By commas, which may have been meant to separate. */
  grouped: boolean;
}

const MAX_ANSWER_CHARS = 20_000;
const MAX_TOKENS = 6000;
const MAX_NESTED_TEXTS = 20;
const MAX_DECIMAL_EXPONENT = 2000;

/** @throws NotJudged for what is too long or no text of this kind. */
export function tokenise(text: string): Token[] {
  if (text.length > MAX_ANSWER_CHARS) throw new NotJudged("The answer is too long.");
  const lexer = new Lexer(withoutDelimiters(asciiOf(text)), false, 0);
  return lexer.tokens();
}

/** The same for answers that differ in spacing and spelling only. */
export function canonicalText(tokens: readonly Token[]): string {
  return tokens.map(({ text }) => text).join(" ");
}

class Lexer {
  readonly #source: string;
  readonly #upright: boolean;
  readonly #depth: number;
  readonly #tokens: Token[] = [];
  readonly #brackets: string[] = [];
  #at = 0;
  #spaced = false;

  constructor(source: string, upright: boolean, depth: number) {
    if (depth > MAX_NESTED_TEXTS) throw new NotJudged("It is nested too deeply.");
    this.#source = source;
    this.#upright = upright;
    this.#depth = depth;
  }

  tokens(): Token[] {
    while (this.#at < this.#source.length) {
      this.#next();
      if (this.#tokens.length > MAX_TOKENS) throw new NotJudged("The answer is too long.");
    }
    return this.#tokens;
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#source)?.[0];
    if (found !== undefined) this.#at += found.length;
    return found;
  }

  #push(kind: Token["kind"], text: string, more: Partial<Token> = {}): void {
    this.#tokens.push({ kind, text, spaced: this.#spaced, upright: this.#upright, ...more });
    this.#spaced = false;
    if (kind !== "mark") return;
    if (OPENING.has(text) || text === "{") this.#brackets.push(text);
    else if (CLOSING.has(text) || text === "}") this.#brackets.pop();
  }

  #next(): void {
    const c = this.#source[this.#at]!;
    if (this.#match(/[\s~]+/y) !== undefined) this.#spaced = true;
    else if (/[0-9]/.test(c) || (c === "." && /[0-9]/.test(this.#source[this.#at + 1] ?? ""))) this.#number();
    else if (c === "\\") this.#command();
    else {
      const letters = this.#match(/[a-zA-Z]+/y) ?? this.#match(/[^\p{ASCII}]+/uy);
      if (letters !== undefined) this.#letters(letters);
      else this.#mark();
    }
  }

  #letters(letters: string): void {
    const plain = PLAIN_NAMES.get(letters);
    if (plain === "cup") this.#push("mark", "∪");
    else if (letters === "U" && this.#isBetweenSets()) this.#push("mark", "∪");
    else if (plain !== undefined || NAMES.has(letters)) this.#push("command", SAME.get(letters) ?? plain ?? letters);
    else this.#push(letters.length === 1 ? "letter" : "word", letters);
  }

  #isBetweenSets(): boolean {
    return CLOSING.has(this.#tokens.at(-1)?.text ?? "") && /^\s*(?:[([]|\\left|\\\{)/.test(this.#source.slice(this.#at, this.#at + 20));
  }

  #mark(): void {
    const operator = this.#match(/<=|>=|!=|==|\*\*|\+\/-|\.\.\.|\^\{?\\circ(?![a-zA-Z])\}?|\{,\}/y);
    const last = this.#tokens.at(-1);
    if (operator === undefined) this.#push("mark", this.#source[this.#at++]!);
    else if (operator.startsWith("^")) this.#push("mark", "°");
    else if (operator === "{,}") this.#push("mark", ",");
    else if (operator === "!=" && !this.#spaced && (last?.kind === "number" || last?.text === ")")) {
      this.#push("mark", "!");
      this.#push("mark", "=");
    } else {
      const meanings: Record<string, string> = { "<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "**": "^", "+/-": "±", "...": "…" };
      this.#push("mark", meanings[operator]!);
    }
  }

  #command(): void {
    const written = this.#match(/\\(?:[a-zA-Z]+\*?|[\s\S])/y);
    if (written === undefined) {
      this.#at++;
      throw new NotJudged("It ends in a backslash.");
    }
    const raw = written.slice(1).replace("*", "");
    const name = SAME.get(raw) ?? raw;
    if (raw === "!") return;
    if (/^[,;:\s>]$/.test(raw) || SPACES.has(name)) this.#spaced = true;
    else if (ESCAPED_MARKS.has(raw)) this.#push("mark", ESCAPED_MARKS.get(raw)!);
    else if (IGNORED.has(name)) this.#match(/\s*\.(?![0-9])/y);
    else if (name === "hspace" || name === "phantom" || name === "label" || name === "tag") this.#group();
    else if (TEXTS.has(name)) this.#text(this.#group());
    else if (name === "mathbb" || name === "mathcal") this.#push("command", `${name}{${this.#group().trim()}}`);
    else if (DECORATIONS.has(name)) this.#decoration(name);
    else if (name === "begin" || name === "end") this.#environment(name);
    else if (name === "ldots") this.#push("mark", "…");
    else if (name === "land" || name === "lor") this.#push("word", name === "land" ? "and" : "or");
    else if (MARKS.has(name)) this.#push("mark", MARKS.get(name)!);
    else if (name === "not" && this.#match(/\s*=/y) !== undefined) this.#push("mark", "≠");
    else this.#push("command", name);
  }

  #text(content: string): void {
    for (const token of new Lexer(content, true, this.#depth + 1).tokens()) {
      this.#tokens.push({ ...token, spaced: token.spaced || this.#spaced });
      this.#spaced = false;
    }
    if (/\s$/.test(content)) this.#spaced = true;
  }

  #decoration(name: string): void {
    const content = this.#group().trim();
    if (!/^(?:\\?[a-zA-Z]+|[0-9]+)$/.test(content)) throw new NotJudged("It has a decoration that is not understood.");
    this.#push("letter", `\\${name}{${content}}`);
  }

  #environment(name: "begin" | "end"): void {
    const environment = this.#group().replace("*", "").trim();
    if (name === "begin" && environment === "array") this.#group();
    this.#push("command", `${name}{${environment}}`);
  }

  /** The content of the braces that follow, or the one character. */
  #group(): string {
    this.#match(/\s+/y);
    if (this.#source[this.#at] !== "{") return this.#match(/\\[a-zA-Z]+|[\s\S]/y) ?? "";
    const from = this.#at + 1;
    let depth = 0;
    for (; this.#at < this.#source.length; this.#at++) {
      const c = this.#source[this.#at];
      if (c === "\\") this.#at++;
      else if (c === "{") depth++;
      else if (c === "}" && --depth === 0) return this.#source.slice(from, this.#at++);
    }
    throw new NotJudged("A brace is not closed.");
  }

  #number(): void {
    const digits = this.#grouped() ?? this.#match(/[0-9]*/y) ?? "";
    const grouped = digits.includes(",");
    const whole = digits.replace(/[^0-9]/g, "");
    const point = this.#match(/\.(?!\.)|\{,\}(?=[0-9])/y);
    const decimals = point === undefined ? "" : (this.#match(/[0-9]*/y) ?? "");
    const repeating = point === undefined ? "" : this.#repeating(decimals);
    const exponent = repeating === "" ? Number((this.#match(/[eE][+-]?[0-9]{1,9}(?![0-9a-zA-Z^])/y) ?? "e0").slice(1)) : 0;
    if (Math.abs(exponent) > MAX_DECIMAL_EXPONENT) throw new NotJudged("A number is too long.");
    const shortened = decimals === "" && repeating === "" ? "" : `.${decimals}${repeating === "" ? "" : `(${repeating})`}`;
    const text = `${whole === "" ? "0" : whole}${shortened}${exponent === 0 ? "" : `e${exponent}`}`;
    this.#push("number", text, { number: { whole, decimals, repeating, exponent, grouped } });
  }

  /** A whole number with separators between its thousands, if what follows is one. */
  #grouped(): string | undefined {
    const spaced = this.#match(/[0-9]{1,3}(?:(?: |~|\\[,; !]|\{[, ]\}|\\,)[0-9]{3}){1,20}(?![0-9]|\s*\/|\s[0-9])/y);
    if (spaced !== undefined) {
      if (!/^0/.test(spaced)) return spaced.replaceAll("{,}", "");
      this.#at -= spaced.length;
    }
    const run = /[0-9]+(?:,[0-9]+){1,20}(?!,[0-9])/y;
    run.lastIndex = this.#at;
    const found = run.exec(this.#source)?.[0];
    if (found === undefined || !/^[1-9][0-9]{0,2}(?:,[0-9]{3})+$/.test(found)) return undefined;
    const bracket = this.#brackets.at(-1);
    if (bracket !== undefined && OPENING.has(bracket) && !found.includes(",000") && !this.#isAmongSpacedCommas(found.length))
      return undefined;
    this.#at += found.length;
    return found;
  }

  /** In brackets commas separate, unless those that do are followed by a space, like in (1,250, 3). */
  #isAmongSpacedCommas(length: number): boolean {
    return /^,\s/.test(this.#source.slice(this.#at + length, this.#at + length + 2)) || (this.#spaced && this.#tokens.at(-1)?.text === ",");
  }

  #repeating(decimals: string): string {
    const written = this.#match(/\\(?:overline|bar|dot)\s*\{\s*[0-9]+\s*\}|\([0-9]+\)/y) ?? "";
    // 0.5(3) may be a product as well.
    if (written.startsWith("(") && decimals !== "") throw new NotJudged("It can be read in more than one way.");
    return written.replace(/[^0-9]/g, "");
  }
}
