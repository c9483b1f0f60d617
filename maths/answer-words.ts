import { number } from "./expression.ts";
import type { Token } from "./latex.ts";
import type { Statement } from "./statements.ts";

/** Answers in words. */

/** The words of an answer that is nothing but words. */
export function wordsOf(tokens: readonly Token[]): string[] | undefined {
  if (!tokens.some(({ kind }) => kind === "word")) return undefined;
  const isText = tokens.every(({ kind, text }) => kind === "word" || kind === "letter" || (kind === "mark" && /^['.!?-]$/.test(text)));
  // One short word in the formula's own letters may be a product.
  if (!isText || (tokens.length === 1 && !tokens[0]!.upright && /^(?!no$)[a-z]{2}$|^[xyzabcmnk]{3}$/.test(tokens[0]!.text)))
    return undefined;
  return tokens.filter(({ kind }) => kind !== "mark").map(({ text }) => text.toLowerCase());
}

const NO_SOLUTION = /^(?:(?:there (?:is|are) )?no (?:real )?solutions?|none|(?:the )?empty set)$/;
const ALL_REALS = /^(?:all real numbers|all reals|(?:the )?real numbers)$/;
export const NUMERALS =
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split(
    " ",
  );

export function textStatement(words: string[]): Statement {
  const text = words.join(" ");
  if (NO_SOLUTION.test(text)) return { kind: "set", items: [] };
  if (ALL_REALS.test(text)) return { kind: "reals", without: null };
  const numeral = NUMERALS.indexOf(text);
  if (numeral >= 0) return { kind: "quantity", expression: number(numeral), unit: null };
  return { kind: "text", words };
}
