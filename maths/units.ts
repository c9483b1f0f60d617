import type { Token } from "./latex.ts";
import { NAMES } from "./latex-names.ts";
import { gcd, multiply, ONE, power, type Rational } from "./rational.ts";
import type { WorkBudget } from "./work-budget.ts";

/** What stands behind a number (or before it: currencies): 5 cm², 28 percent, $3, 12 apples. */
export interface Unit {
  /** What it measures, like `length^2·time^-1`; percent and angle degrees are kinds of their own, unknown words are `things`. */
  kind: string;
  /** How many of the kind's base unit it is. */
  factor: Rational;
  /** Of `things`, without plural endings. */
  words: string[];
}

type Known = readonly [names: string, dimension: string, numerator: number, denominator?: number];

const KNOWN: readonly Known[] = [
  ["m meter metre", "length", 1],
  ["km kilometer kilometre", "length", 1000],
  ["cm centimeter centimetre", "length", 1, 100],
  ["mm millimeter millimetre", "length", 1, 1000],
  ["inch inches in", "length", 254, 10_000],
  ["ft foot feet", "length", 3048, 10_000],
  ["yd yard", "length", 9144, 10_000],
  ["mi mile", "length", 1_609_344, 1000],
  ["kg kilogram kilogramme", "mass", 1],
  ["g gram gramme", "mass", 1, 1000],
  ["mg milligram", "mass", 1, 1_000_000],
  ["lb lbs pound", "mass", 45_359_237, 100_000_000],
  ["oz ounce", "mass", 45_359_237, 1_600_000_000],
  ["ton tonne", "ton", 1],
  ["s sec second", "time", 1],
  ["min minute", "time", 60],
  ["h hr hour", "time", 3600],
  ["day", "time", 86_400],
  ["week", "time", 604_800],
  ["month", "month", 1],
  ["year yr", "month", 12],
  ["L l liter litre", "length^3", 1, 1000],
  ["mL ml milliliter millilitre", "length^3", 1, 1_000_000],
  ["gallon gal", "gallon", 1],
  ["mph", "length·time^-1", 1_609_344, 3_600_000],
  ["kmh kph", "length·time^-1", 1000, 3600],
  ["° deg degree", "degree", 1],
  ["rad radian", "radian", 1],
  ["% percent pct", "percent", 1],
  ["$ dollar USD usd buck", "dollar", 1],
  ["cent ¢", "dollar", 1, 100],
  ["€ euro EUR", "euro", 1],
  ["£ GBP", "pound", 1],
  ["¥ yen", "yen", 1],
  ["rupee Rs", "rupee", 1],
  ["J joule", "joule", 1],
  ["N newton", "newton", 1],
  ["W watt", "watt", 1],
  ["unit", "unit", 1],
];

const UNITS = new Map(KNOWN.flatMap(([names, ...unit]) => names.split(" ").map((name) => [name, unit] as const)));

/** Words behind a number that are no unit: what they do to it isn't known here. */
const NO_UNIT = new Set(
  "and or if for when where otherwise mod is are be not no then else to of from than at least most more less about approximately plus minus times divided over between integer any all real even odd positive negative solutions undefined below above under before after ago by with without on off up down into half quarter pair couple score factorial choose remainder root".split(
    " ",
  ),
);
const SCALES = new Map<string, bigint>([
  ["hundred", 100n],
  ["thousand", 1000n],
  ["million", 1_000_000n],
  ["billion", 1_000_000_000n],
  ["trillion", 1_000_000_000_000n],
  ["dozen", 12n],
]);
const CURRENCY_MARKS = new Set(["$", "€", "£", "¥"]);
const MAX_UNIT_TOKENS = 16;

export interface Peeled {
  rest: Token[];
  unit: Unit | null;
  /** Of a word like million; 1 else. */
  scale: Rational;
}

/** Takes a unit off a formula's tokens; with null when there is none. */
export function peelUnit(tokens: readonly Token[], work: WorkBudget): Peeled {
  const currency = tokens.findIndex((token) => CURRENCY_MARKS.has(token.text));
  if (currency === 0 || (currency === 1 && /^[+-]$/.test(tokens[0]!.text))) {
    const rest = tokens.toSpliced(currency, 1);
    const { rest: number, scale } = peelScale(rest);
    return { rest: number, unit: knownUnit(tokens[currency]!.text)!, scale };
  }
  for (let from = Math.max(1, tokens.length - MAX_UNIT_TOKENS); from < tokens.length; from++) {
    if (!startsUnit(tokens, from)) continue;
    const unit = parseUnit(tokens.slice(from), work);
    if (unit === undefined) continue;
    const { rest, scale } = peelScale(tokens.slice(0, from));
    return { rest, unit, scale };
  }
  return { ...peelScale(tokens), unit: null };
}

function peelScale(tokens: readonly Token[]): { rest: Token[]; scale: Rational } {
  const scale = tokens.length > 1 ? SCALES.get(singular(tokens.at(-1)!.text)) : undefined;
  return scale === undefined
    ? { rest: [...tokens], scale: ONE }
    : { rest: tokens.slice(0, -1), scale: { numerator: scale, denominator: 1n } };
}

const ONE_LETTER_UNITS = /^[mgshLlNJW]$/;

function startsUnit(tokens: readonly Token[], at: number): boolean {
  const token = tokens[at]!;
  const before = tokens[at - 1]!;
  // In cos 60° it belongs to the angle.
  if (token.text === "°")
    return !tokens.slice(0, at).some(({ kind, text }) => kind === "command" && NAMES.has(text) && !isNumberName(text));
  if (/^[%¢$€£]$/.test(token.text)) return true;
  if (before.text === "-" || before.text === "+" || before.text === "*" || before.text === "/" || before.text === "^") return false;
  if (before.kind === "command" && before.text !== "pi") return false;
  if (token.kind === "word") return !SCALES.has(singular(token.text)) && (token.upright || token.spaced || before.kind === "number");
  if (token.kind === "command") return token.text === "sec" && at === tokens.length - 1;
  if (token.kind !== "letter") return false;
  if (token.upright) return before.kind === "number" || before.kind === "mark" || before.upright || token.spaced;
  return token.spaced && before.kind === "number" && ONE_LETTER_UNITS.test(token.text);
}

/** Words that change the number, fractions in words among them: 5 tenths. */
function isNoUnit(word: string): boolean {
  if (UNITS.has(word) || UNITS.has(singular(word))) return false;
  return NO_UNIT.has(word) || NO_UNIT.has(singular(word)) || /(?:th|ths|thirds?|halves|fold|st|nd|rd)$/.test(word);
}

const isNumberName = (name: string) => name === "pi" || name === "sqrt";

/** unit { ["*"] unit | ("/" | "per") unit }, each with a power, or a label of unknown words. */
function parseUnit(tokens: readonly Token[], work: WorkBudget): Unit | undefined {
  let at = 0;
  const dimensions = new Map<string, number>();
  let factor = ONE;
  const words: string[] = [];
  let sign = 1;
  let nextPower = 1;
  while (at < tokens.length) {
    const token = tokens[at++]!;
    const { text } = token;
    const lower = text.toLowerCase();
    if (text === "/" || lower === "per") {
      sign = -1;
      continue;
    }
    if (text === "*") continue;
    if (text === "°" && /^[CF]$/.test(tokens[at]?.text ?? "")) {
      dimensions.set(tokens[at++]!.text === "C" ? "celsius" : "fahrenheit", 1);
      continue;
    }
    if (lower === "square" || lower === "sq" || lower === "cubic") {
      nextPower = lower === "cubic" ? 3 : 2;
      if (tokens[at]?.text === ".") at++;
      continue;
    }
    if (token.kind === "mark" && !UNITS.has(text)) return undefined;
    if (token.kind === "number" || (token.kind === "command" && text !== "sec") || isNoUnit(lower)) return undefined;
    let exponent = nextPower;
    nextPower = 1;
    const written = exponentAt(tokens, at);
    if (written !== undefined) [exponent, at] = written;
    if (lower === "squared" || lower === "cubed") return undefined;
    const unit = knownUnit(text);
    if (unit === undefined) words.push(singular(lower));
    else {
      for (const [dimension, times] of dimensionsOf(unit.kind)) {
        dimensions.set(dimension, (dimensions.get(dimension) ?? 0) + sign * exponent * times);
      }
      factor = multiply(factor, power(unit.factor, BigInt(sign * exponent), work), work);
    }
    sign = 1;
  }
  if (words.length > 0) {
    const known = [...dimensions.keys()];
    return { kind: "things", factor: ONE, words: [...words, ...known].toSorted() };
  }
  const kind = [...dimensions].filter(([, times]) => times !== 0).toSorted(([a], [b]) => (a < b ? -1 : 1));
  if (kind.length === 0) return undefined;
  return { kind: kind.map(([name, times]) => (times === 1 ? name : `${name}^${times}`)).join("·"), factor, words: [] };
}

function exponentAt(tokens: readonly Token[], at: number): [exponent: number, at: number] | undefined {
  if (tokens[at]?.text !== "^") return undefined;
  const isBraced = tokens[at + 1]?.text === "{";
  let next = isBraced ? at + 2 : at + 1;
  const isNegative = tokens[next]?.text === "-";
  if (isNegative) next++;
  const digits = tokens[next];
  if (digits?.kind !== "number" || !/^[1-9]$/.test(digits.text)) return undefined;
  next++;
  if (isBraced && tokens[next++]?.text !== "}") return undefined;
  return [isNegative ? -Number(digits.text) : Number(digits.text), next];
}

function dimensionsOf(kind: string): [string, number][] {
  return kind.split("·").map((part) => {
    const [name, times = "1"] = part.split("^");
    return [name!, Number(times)];
  });
}

function knownUnit(name: string): Unit | undefined {
  const lower = name.toLowerCase();
  // One letter means another thing in capitals.
  const known = UNITS.get(name) ?? (name.length > 1 ? (UNITS.get(lower) ?? UNITS.get(singular(lower))) : undefined);
  if (known === undefined) return undefined;
  const [kind, numerator, denominator = 1] = known;
  const common = gcd(BigInt(numerator), BigInt(denominator));
  return { kind, factor: { numerator: BigInt(numerator) / common, denominator: BigInt(denominator) / common }, words: [] };
}

function singular(word: string): string {
  if (/(?:[sxz]|ch|sh)es$/.test(word)) return word.slice(0, -2);
  return /[^s]s$/.test(word) ? word.slice(0, -1) : word;
}
