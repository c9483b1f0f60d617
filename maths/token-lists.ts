import type { Token } from "./latex.ts";
import { NotJudged } from "./work-budget.ts";

/** Cutting an answer's tokens at what separates its parts. */

export const OPENERS = new Set(["(", "[", "{", "\\{", "⟨"]);
const CLOSERS = new Set([")", "]", "}", "\\}", "⟩"]);
const MAX_SIGN_CHOICES = 3;

export interface Part {
  tokens: Token[];
  /** What stands before it. */
  joint: "," | "and" | "or";
}

export interface Split {
  parts: Token[][];
  separators: Token[];
}

/** At depth 0 of all brackets. */
export function splitAt(tokens: readonly Token[], isSeparator: (token: Token) => boolean): Split {
  const split: Split = { parts: [[]], separators: [] };
  let depth = 0;
  for (const token of tokens) {
    if (isOpening(token)) depth++;
    else if (isClosing(token)) depth--;
    if (depth === 0 && isSeparator(token)) {
      split.separators.push(token);
      split.parts.push([]);
    } else split.parts.at(-1)!.push(token);
  }
  return split;
}

const isOpening = ({ kind, text }: Token) => (kind === "mark" && OPENERS.has(text)) || (kind === "command" && text.startsWith("begin{"));
const isClosing = ({ kind, text }: Token) => (kind === "mark" && CLOSERS.has(text)) || (kind === "command" && text.startsWith("end{"));

/** Where the bracket that the first token opens is closed. */
export function closingPlace(tokens: readonly Token[]): number {
  let depth = 0;
  for (const [place, token] of tokens.entries()) {
    if (isOpening(token)) depth++;
    else if (isClosing(token) && --depth === 0) return place;
  }
  return -1;
}

export function splitList(tokens: readonly Token[]): Part[] {
  const isSeparator = ({ kind, text }: Token) =>
    (kind === "mark" && (text === "," || text === ";")) || (kind === "word" && /^(?:and|or)$/i.test(text));
  const { parts, separators } = splitAt(tokens, isSeparator);
  const list: Part[] = [];
  let joint: Part["joint"] = ",";
  for (const [place, part] of parts.entries()) {
    const before = separators[place - 1]?.text.toLowerCase();
    if (before === "and" || before === "or") joint = before;
    // "1, 2, and 3" has nothing between the comma and the word.
    if (part.length > 0) list.push({ tokens: part, joint: list.length === 0 ? "," : joint });
    else if (place === 0 || (before !== undefined && before !== "," && before !== ";" && place === parts.length - 1)) {
      throw new NotJudged("A list has an empty place.");
    }
    if (part.length > 0) joint = ",";
  }
  return list;
}

/** One for each way to read its ±; ∓ is the other sign of the ± beside it. Those inside a set are left to its parts. */
export function signChoices(tokens: Token[]): Token[][] {
  const isOpen = signsOutsideSets(tokens);
  const signs = tokens.filter((_, place) => isOpen[place]);
  const count = signs.filter(({ text }) => text === "±").length;
  const isLinked = count < signs.length;
  if (signs.length === 0) return [tokens];
  if (count > MAX_SIGN_CHOICES) throw new NotJudged("It has too many ±.");
  const choices = isLinked ? [0, 2 ** count - 1] : Array.from({ length: 2 ** count }, (_, choice) => choice);
  return choices.map((choice, way) => {
    let seen = 0;
    return tokens.map((token, place) => {
      if (!isOpen[place]) return token;
      const isMinus = token.text === "±" ? (choice >> seen++) % 2 === 1 : way === 0;
      return { ...token, text: isMinus ? "-" : "+" };
    });
  });
}

/** For each token whether it is a ± or ∓ that no set holds. */
function signsOutsideSets(tokens: readonly Token[]): boolean[] {
  let depth = 0;
  return tokens.map(({ text }) => {
    if (text === "\\{") depth++;
    else if (text === "\\}") depth--;
    return depth === 0 && (text === "±" || text === "∓");
  });
}
