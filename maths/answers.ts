const BOXED = "\\boxed{";
const THINK_END = "</think>";

/** What tells where the answer stands, the surest first. */
export type ExtractionRule = "boxed" | "final-answer" | "answer" | "last-number" | "none";

export interface Extraction {
  answer: string | null;
  rule: ExtractionRule;
}

/**
 * A model's answer and the rule that found it: the last balanced `\boxed{…}`; else what follows the last "final answer is" (or GSM8K's
 * `####`); else what follows the last "answer is" or "answer:"; else the last number. Thoughts before the last `</think>` don't count.
 * Linear in the text's length.
 */
export function extract(text: string): Extraction {
  const boxed = lastBoxed(text);
  if (boxed !== null) return { answer: boxed, rule: "boxed" };
  const said = afterThoughts(text);
  const final = afterLast(said, /\bfinal\s{1,3}answer\b(?:\s{1,3}is\b)?|####/gi);
  if (final !== null) return { answer: final, rule: "final-answer" };
  const answer = afterLast(said, /\banswer(?:\s{1,3}is\b|\s{0,3}\*{0,2}\s{0,3}[:=])/gi);
  if (answer !== null) return { answer, rule: "answer" };
  const number = lastNumber(said);
  return number === null ? { answer: null, rule: "none" } : { answer: number, rule: "last-number" };
}

/**
 * What stands in the last balanced `\boxed{…}` of a model's text, trimmed; null when there is none. Thoughts before the
 * last `</think>` don't count. Linear in the text's length.
 */
export function lastBoxed(text: string): string | null {
  const said = afterThoughts(text);
  for (let start = said.lastIndexOf(BOXED); start >= 0; start = start === 0 ? -1 : said.lastIndexOf(BOXED, start - 1)) {
    const from = start + BOXED.length;
    const end = closingBrace(said, from);
    if (end !== undefined) return said.slice(from, end).trim();
    if (said.length - from > MAX_SCAN_CHARS) return null;
  }
  return null;
}

function afterThoughts(text: string): string {
  const thought = text.lastIndexOf(THINK_END);
  return thought < 0 ? text : text.slice(thought + THINK_END.length);
}

/** Unbalanced boxes are only looked at near the end, so that hostile text can't make the search quadratic. */
const MAX_SCAN_CHARS = 4096;

function closingBrace(text: string, from: number): number | undefined {
  let depth = 1;
  for (let i = from; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return i;
  }
  return undefined;
}

/** An answer that is announced in words is a short one. */
const MAX_ANNOUNCED_CHARS = 500;

/** The rest of the sentence behind the last match, without the marks around it; null when there is no match or nothing behind it. */
function afterLast(text: string, pattern: RegExp): string | null {
  let end = -1;
  for (const match of text.matchAll(pattern)) end = match.index + match[0].length;
  if (end < 0) return null;
  const rest = text.slice(end, end + MAX_ANNOUNCED_CHARS).replace(/^(?:[\s:*=]|\$\$(?=\s*$))+/, "");
  const formula = /^(?:\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\])/s.exec(rest);
  const inside = formula?.slice(1).find((group) => group !== undefined);
  const answer = inside ?? /^[^\n]*?(?=[.!]?\**\s*(?:\n|$)|[.!]\**\s)/.exec(rest)?.[0] ?? "";
  const trimmed = answer.replace(/\*+$/, "").trim();
  return trimmed === "" ? null : trimmed;
}

/** A LaTeX fraction of whole numbers, or digits with separators, a fraction's second half and a percent sign. */
const NUMBER = /\\[dt]?frac\{-?[0-9]{1,30}\}\{-?[0-9]{1,30}\}|(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:\/[0-9]+)?|\.[0-9]+/g;

function lastNumber(text: string): string | null {
  let last: RegExpExecArray | undefined;
  for (const match of text.matchAll(NUMBER)) last = match;
  if (last === undefined) return null;
  const before = text.slice(Math.max(0, last.index - 2), last.index);
  // After a digit or a letter it subtracts.
  const isNegative = /(?:^|[^0-9a-zA-Z)}])[-−]$/.test(last.index === 1 ? before.slice(-1) : before);
  const percent = /^\s?\\?%/.test(text.slice(last.index + last[0].length)) ? "%" : "";
  return `${isNegative ? "-" : ""}${last[0]}${percent}`;
}
