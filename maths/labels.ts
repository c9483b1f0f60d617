import type { Expression } from "./expression.ts";
import { parseExpression, type Reading } from "./expression-parser.ts";
import { canonicalText, type Token } from "./latex.ts";
import { NotJudged, OutOfWork } from "./work-budget.ts";

type Label = { kind: "labelled"; label: string; variable: Expression | null };

/** A name that stands for a value: x, S_n, f(x), P(A), AB, (x, y), the area. */
export function labelOf(tokens: readonly Token[], reading: Reading): Label | undefined {
  const [first] = tokens;
  if (first === undefined || tokens.length > 24) return undefined;
  const label = canonicalText(tokens).replaceAll(" ", "");
  const named: Label = { kind: "labelled", label, variable: null };
  if (/^\((?:[a-zA-Z](?:_\{?[a-z0-9]+\}?)?,?)+\)$/.test(label) && label.includes(",")) return named;
  if (/^[a-zA-Z]'*\([a-zA-Z0-9,'+-]+\)$/.test(label)) return named;
  if (first.text === "angle" || (first.text === "m" && tokens[1]?.text === "angle") || /^\\?[A-Z]{2,3}$/.test(label)) return named;
  if (
    tokens.every(({ kind }) => kind === "word" || kind === "letter") &&
    tokens.some(({ kind, upright, text }) => kind === "word" && (upright || text.length > 3))
  ) {
    return named;
  }
  if (first.kind !== "letter" && first.kind !== "command") return undefined;
  try {
    const variable = parseExpression(tokens, reading);
    return variable.kind === "variable" ? { ...named, label: first.text === label ? label : variable.name, variable } : undefined;
  } catch (error) {
    if (error instanceof OutOfWork || !(error instanceof NotJudged)) throw error;
    return undefined;
  }
}
