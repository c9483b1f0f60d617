import { NotJudged } from "./work-budget.ts";

/** An answer's text without what only sets it off: delimiters, boxes, characters that LaTeX has a command for. */

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ";
const SUPERSCRIPT_MEANINGS = "0123456789+-n";
const SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉";

const UNICODE: Record<string, string> = {
  "−": "-",
  "–": "-",
  "—": "-",
  "×": "\\times ",
  "⋅": "\\cdot ",
  "·": "\\cdot ",
  "÷": "/",
  "⁄": "/",
  "∕": "/",
  "≤": "\\leq ",
  "⩽": "\\leq ",
  "≥": "\\geq ",
  "⩾": "\\geq ",
  "≠": "\\neq ",
  "≈": "\\approx ",
  "±": "\\pm ",
  "∓": "\\mp ",
  "√": "\\sqrt ",
  "∞": "\\infty ",
  "∪": "\\cup ",
  "∩": "\\cap ",
  "∈": "\\in ",
  "∅": "\\emptyset ",
  "⌊": "\\lfloor ",
  "⌋": "\\rfloor ",
  "⌈": "\\lceil ",
  "⌉": "\\rceil ",
  ℝ: "\\mathbb{R}",
  "°": "\\degree ",
  "′": "'",
  "’": "'",
  "⟨": "\\langle ",
  "⟩": "\\rangle ",
  "…": "\\ldots ",
  "∠": "\\angle ",
  "½": "\\frac{1}{2}",
  "⅓": "\\frac{1}{3}",
  "⅔": "\\frac{2}{3}",
  "¼": "\\frac{1}{4}",
  "¾": "\\frac{3}{4}",
  π: "\\pi ",
  θ: "\\theta ",
  α: "\\alpha ",
  β: "\\beta ",
  γ: "\\gamma ",
  λ: "\\lambda ",
  μ: "\\mu ",
  φ: "\\phi ",
  ω: "\\omega ",
};

/**
 * More marks in a row than Unicode's stream-safe format has, which no text in any language needs; a Unicode form takes time that is quadratic in
 * them. The two half-width sound marks become combining ones.
 */
const TOO_MANY_MARKS = /[\p{M}ﾞﾟ]{31}/u;

/** @throws NotJudged for a text with more than 30 combining marks in a row. */
export function asciiOf(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: plain ASCII needs nothing
  if (/^[\x00-\x7f]*$/.test(text)) return text;
  if (TOO_MANY_MARKS.test(text)) throw new NotJudged("It has more than 30 combining marks in a row.");
  return text
    .replace(
      new RegExp(`[${SUPERSCRIPTS}]+`, "g"),
      (run) => `^{${[...run].map((c) => SUPERSCRIPT_MEANINGS[SUPERSCRIPTS.indexOf(c)]).join("")}}`,
    )
    .replace(new RegExp(`[${SUBSCRIPTS}]+`, "g"), (run) => `_{${[...run].map((c) => SUBSCRIPTS.indexOf(c)).join("")}}`)
    .replace(/[^\p{ASCII}]/gu, (c) => UNICODE[c] ?? c)
    .normalize("NFKC");
}

const WRAPPERS: [RegExp, string][] = [
  [/^\$\$(.*)\$\$$/s, "$$"],
  [/^\$(.*)\$$/s, "$"],
  [/^\\\((.*)\\\)$/s, "\\("],
  [/^\\\[(.*)\\\]$/s, "\\["],
  [/^\*\*(.*)\*\*$/s, "**"],
  [/^\\boxed\s*\{(.*)\}$/s, "{"],
  [/^\\fbox\s*\{(.*)\}$/s, "{"],
];

export function withoutDelimiters(text: string): string {
  let rest = text.trim();
  for (let i = 0; i < 8; i++) {
    const before = rest;
    for (const [pattern, inner] of WRAPPERS) {
      const content = pattern.exec(rest)?.[1];
      // What holds the delimiter again is more than one formula.
      if (content !== undefined && (inner === "{" ? isBalanced(content) : !content.includes(inner))) rest = content.trim();
    }
    rest = rest.replace(/([^.])[.,;]$/, "$1").trim();
    if (rest === before) break;
  }
  const dollars = rest.match(/(?<!\\)\$/g)?.length ?? 0;
  // In pairs they delimit, alone they are money.
  if (dollars > 0 && dollars % 2 === 0) rest = rest.replace(/(?<!\\)\$/g, " ");
  return rest
    .replace(/,\s*\\!\s*(?=[0-9]{3})/g, "{,}")
    .replace(/\b([ap])\.\s?m\b\.?/gi, "$1m")
    .replace(/(?<!\\)\\[()[\]]/g, " ");
}

/** Whether no closing brace comes before its opening one, and none stays open. */
function isBalanced(text: string): boolean {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth < 0) return false;
  }
  return depth === 0;
}
