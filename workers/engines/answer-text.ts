import { withoutMarks } from "./token-text.ts";

/** What decides where an answer's text ends and which part of it is a thought. Texts are in the form that `TokenText` gives. */
export interface TextRules {
  /** The answer ends before the first of these. */
  stops: string[];
  /** Dropped where the answer begins, the longest of them that matches. */
  ignoredStarts: string[];
  /** What opens a thought (none: it can't be opened) and what closes it. */
  thoughtOpeners: string[];
  thoughtClosers: string[];
  /** The prompt has opened a thought. */
  beginsInThought: boolean;
}

export interface TextPiece {
  kind: "content" | "reasoning";
  text: string;
}

/**
 * One answer's text, cut where its rules say. What may yet become a stop or a thought's border is held back until it is known.
 *
 *   content ◄──closer / opener──► reasoning          either ──a stop──► ended
 */
export class AnswerText {
  readonly #rules: TextRules;
  readonly #onPiece: (piece: TextPiece) => void;
  #thinking: boolean;
  #started = false;
  #pending = "";
  /** How much came before `#pending`. */
  #offset = 0;
  #stoppedAt: number | undefined;
  /** Where each token's text begins. */
  readonly #tokenStarts: number[] = [];

  constructor(rules: TextRules, onPiece: (piece: TextPiece) => void) {
    this.#rules = rules;
    this.#onPiece = onPiece;
    this.#thinking = rules.beginsInThought;
  }

  get stopped(): boolean {
    return this.#stoppedAt !== undefined;
  }

  /** Tokens of the text: not those of the stop. */
  get tokens(): number {
    const end = this.#stoppedAt ?? Number.POSITIVE_INFINITY;
    return this.#tokenStarts.filter((start) => start < end).length;
  }

  /** Takes what a token wrote. */
  push(text: string): void {
    this.#tokenStarts.push(this.#offset + this.#pending.length);
    this.#take(text);
  }

  /** Takes the token that ends the answer, which is none of its tokens. */
  pushEnd(text: string): void {
    this.#take(text);
  }

  /** Gives what was held back: nothing follows that could make it a stop. */
  finish(): void {
    if (this.stopped) return;
    if (!this.#started) this.#dropIgnoredStart();
    this.#give(this.#pending.length);
  }

  #take(text: string): void {
    this.#pending += text;
    if (!this.#started) {
      // It is open yet what the answer begins with.
      if (this.#rules.ignoredStarts.some((start) => start.length > this.#pending.length && start.startsWith(this.#pending))) return;
      this.#dropIgnoredStart();
    }
    while (!this.stopped) {
      const borders = this.#thinking ? this.#rules.thoughtClosers : this.#rules.thoughtOpeners;
      const found = firstOf(this.#pending, [...this.#rules.stops, ...borders]);
      if (found === undefined) {
        this.#give(this.#pending.length - openEnd(this.#pending, [...this.#rules.stops, ...borders]));
        return;
      }
      this.#give(found.at);
      if (this.#rules.stops.includes(found.text)) this.#stoppedAt = this.#offset;
      else {
        this.#skip(found.text.length);
        this.#thinking = !this.#thinking;
      }
    }
  }

  #dropIgnoredStart(): void {
    const matching = this.#rules.ignoredStarts.filter((start) => this.#pending.startsWith(start));
    this.#skip(Math.max(0, ...matching.map((start) => start.length)));
    this.#started = true;
  }

  #give(length: number): void {
    const text = withoutMarks(this.#pending.slice(0, length));
    this.#skip(length);
    if (text !== "") this.#onPiece({ kind: this.#thinking ? "reasoning" : "content", text });
  }

  #skip(length: number): void {
    this.#pending = this.#pending.slice(length);
    this.#offset += length;
  }
}

/** The first of the texts that is complete in `text`, by where it begins. */
function firstOf(text: string, searched: string[]): { at: number; text: string } | undefined {
  let first: { at: number; text: string } | undefined;
  for (const each of searched) {
    const at = text.indexOf(each);
    if (at !== -1 && (first === undefined || at < first.at)) first = { at, text: each };
  }
  return first;
}

/** The length of the longest end of `text` that one of the texts begins with. */
function openEnd(text: string, searched: string[]): number {
  let longest = 0;
  for (const each of searched) {
    for (let length = Math.min(each.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(each.slice(0, length))) longest = length;
    }
  }
  return longest;
}
