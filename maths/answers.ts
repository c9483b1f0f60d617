const BOXED = "\\boxed{";
const THINK_END = "</think>";

/**
 * What stands in the last balanced `\boxed{…}` of a model's text, trimmed; null when there is none. Thoughts before the
 * last `</think>` don't count. Linear in the text's length.
 */
export function lastBoxed(text: string): string | null {
  const thought = text.lastIndexOf(THINK_END);
  const said = thought < 0 ? text : text.slice(thought + THINK_END.length);
  for (let start = said.lastIndexOf(BOXED); start >= 0; start = start === 0 ? -1 : said.lastIndexOf(BOXED, start - 1)) {
    const from = start + BOXED.length;
    const end = closingBrace(said, from);
    if (end !== undefined) return said.slice(from, end).trim();
    if (said.length - from > MAX_SCAN_CHARS) return null;
  }
  return null;
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
