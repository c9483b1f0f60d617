import { type Case, DIFFERENT, EQUAL, KNOWN_DIFFERENT, KNOWN_EQUAL, UNDECIDED } from "../equivalence-cases.ts";

/** Pairs of answers that nobody thought of: made from a grammar, from real ones by mutation, from any characters, and to hurt. */

type Random = () => number;

export function randomPair(random: Random): [string, string] {
  const kind = random();
  if (kind < 0.3) return [formula(random, 4), formula(random, 4)];
  if (kind < 0.6) {
    const [gold, answer] = oneOf(random, CASES);
    return [mutated(random, gold), mutated(random, answer ?? gold)];
  }
  if (kind < 0.75) {
    const text = formula(random, 4);
    return [text, mutated(random, text)];
  }
  if (kind < 0.9) return [characters(random), characters(random)];
  return [hostile(random), random() < 0.5 ? hostile(random) : formula(random, 3)];
}

const CASES: readonly Case[] = [...KNOWN_EQUAL, ...KNOWN_DIFFERENT, ...EQUAL, ...DIFFERENT, ...UNDECIDED];

function oneOf<T>(random: Random, choices: readonly T[]): T {
  return choices[Math.floor(random() * choices.length)]!;
}

const below = (random: Random, limit: number) => Math.floor(random() * limit);

const LEAVES = "0 1 2 3 7 10 12 0.5 .25 1,000 x y n e i \\pi \\theta x_1 \\infty 5\\frac12 -4 100 3.14159 \\text{ab} 2^{10}".split(" ");
const FUNCTIONS = "\\sin \\cos \\tan \\ln \\log \\exp \\arcsin \\sqrt \\tan^{-1} \\log_2 \\sinh".split(" ");

function formula(random: Random, depth: number): string {
  if (depth === 0 || random() < 0.15) return oneOf(random, LEAVES);
  const part = () => formula(random, depth - 1);
  const forms: (() => string)[] = [
    () => `${part()}+${part()}`,
    () => `${part()}-${part()}`,
    () => `${part()}${part()}`,
    () => `${part()} \\cdot ${part()}`,
    () => `${part()}/${part()}`,
    () => `\\frac{${part()}}{${part()}}`,
    () => `(${part()})`,
    () => `{${part()}}^{${part()}}`,
    () => `(${part()})^2`,
    () => `\\sqrt[3]{${part()}}`,
    () => `${oneOf(random, FUNCTIONS)}{${part()}}`,
    () => `|${part()}|`,
    () => `${part()}!`,
    () => `\\binom{${part()}}{${part()}}`,
    () => `${oneOf(random, ["(", "["])}${part()},${part()}${oneOf(random, [")", "]"])}`,
    () => `\\{${part()},${part()}\\}`,
    () => `${part()}, ${part()}`,
    () => `${part()} ${oneOf(random, ["=", "<", "\\le", ">", "\\ne", "\\in"])} ${part()}`,
    () => `${part()} \\cup ${part()}`,
    () => `\\begin{pmatrix}${part()}&${part()}\\\\${part()}&${part()}\\end{pmatrix}`,
    () => `${part()}${oneOf(random, ["%", "\\%", " cm", "^\\circ", "\\text{ apples}", ":3", " \\text{ or } x=2"])}`,
    () => `${part()}\\pm ${part()}`,
    () => `\\left|${part()}\\right|`,
    () => `\\lfloor ${part()}\\rfloor`,
  ];
  return oneOf(random, forms)();
}

const SNIPPETS = "\\ { } ( ) [ ] ^ _ , . 0 9 - + / \\frac \\text{ \\left \\sqrt $ % & ! | = < : ; \\\\ é ² ½ √ ∞ \\begin{ 💥 \u202e".split(
  " ",
);

function mutated(random: Random, text: string): string {
  let result = text;
  for (let times = 1 + below(random, 3); times > 0; times--) {
    const at = below(random, result.length + 1);
    const length = below(random, 4);
    const change = random();
    if (change < 0.35) result = result.slice(0, at) + result.slice(at + length);
    else if (change < 0.7) result = result.slice(0, at) + oneOf(random, SNIPPETS) + result.slice(at);
    else if (change < 0.85) result = result.slice(0, at) + result.slice(at, at + length).repeat(2) + result.slice(at);
    else result = result.slice(at) + result.slice(0, at);
  }
  return result;
}

function characters(random: Random): string {
  const highest = oneOf(random, [0x7f, 0x7f, 0x2ff, 0xffff, 0x10ffff]);
  return Array.from({ length: below(random, 60) }, () => String.fromCodePoint(below(random, highest + 1))).join("");
}

function hostile(random: Random): string {
  const times = 10 ** (1 + below(random, 4)) + below(random, 10);
  const digit = () => String(1 + below(random, 9));
  const forms: (() => string)[] = [
    () => "{".repeat(times),
    () => `${"(".repeat(times)}x${")".repeat(times)}`,
    () => `${"\\frac{1}{".repeat(times)}x${"}".repeat(times)}`,
    () => "\\sqrt{".repeat(times) + digit() + "}".repeat(times),
    () => Array.from({ length: 3 + below(random, 8) }, digit).join("^{") + "}".repeat(3),
    () => `${digit()}^{${digit()}^{${digit()}^{${digit()}${digit()}}}}`,
    () => `${digit()}${digit()}${digit()}${digit()}!`.repeat(1 + below(random, 20)),
    () => `${below(random, 1e6)}!!!`,
    () => digit().repeat(times),
    () => `0.${digit().repeat(times)}`,
    () => `${digit()}e${below(random, 1e9)}`,
    () => Array.from({ length: Math.min(times, 3000) }, () => below(random, 1e6)).join(", "),
    () => `\\{${Array.from({ length: Math.min(times, 3000) }, () => `x+${below(random, 100)}`).join(",")}\\}`,
    () => "-".repeat(times) + digit(),
    () => Array.from({ length: Math.min(times, 2000) }, digit).join("+"),
    () => `(${Array.from({ length: 30 }, () => `\\sin(${digit()}x)`).join("+")})^{${below(random, 5000)}}`,
    () => Array.from({ length: 12 }, (_, i) => `\\sin^{${digit()}}x_{${i}}`).join(""),
    () => "\\pm 1".repeat(Math.min(times, 100)),
    () => "1\\cup".repeat(times),
    () => Array.from({ length: 60 }, (_, i) => `(${i},${i + 1})`).join("\\cup"),
    () => `\\binom{${below(random, 1e7)}}{${below(random, 1e6)}}`,
    () => `\\frac{1}{${digit()}}`.repeat(Math.min(times, 500)),
    () => `${"\\text{".repeat(times)}a${"}".repeat(times)}`,
    () => "$".repeat(times),
    () => "1,".repeat(times),
    () => `\\begin{pmatrix}${"1&".repeat(times)}1\\end{pmatrix}`,
    () => "|".repeat(times),
    () => "a".repeat(times),
    () => "\\left(".repeat(times),
    () => `|${Array.from({ length: 40 }, () => `|x-${digit()}|`).join("+")}|`,
  ];
  return oneOf(random, forms)();
}
