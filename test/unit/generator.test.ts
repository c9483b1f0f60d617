import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  everyProblem,
  FAMILIES,
  FAMILY_WEIGHTS,
  type Family,
  familySize,
  type GeneratedProblem,
  type GeneratorOptions,
  generateProblems,
  isHeldOut,
} from "../../maths/generator.ts";
import { MathllmError } from "../../queues/errors.ts";

// A second opinion on every answer: it reads the text and knows nothing of how it was made ---------------------------------

interface Ratio {
  top: number;
  bottom: number;
}

/** The value of an expression, with fractions, powers, roots, brackets, an unknown and a factor right before it. */
function evaluate(expression: string, unknown = 0): Ratio {
  const source = expression
    .replace(/\\frac\{(\d+)\}\{(\d+)\}/g, "($1/$2)")
    .replace(/\\sqrt\{(\d+)\}/g, "√$1")
    .replace(/×|\\times|\\cdot|(?<=\d )x(?= \d)/g, "*")
    .replace(/÷|\\div/g, "/");
  const tokens = source.match(/\d+|[-+*/^()√]|[a-z]/g) ?? [];
  if (tokens.join("") !== source.replaceAll(" ", "")) throw new Error(`Not an expression: ${expression}`);
  let at = 0;
  const ratio = (top: number, bottom = 1): Ratio => ({ top, bottom });
  const atom = (): Ratio => {
    const token = tokens[at++]!;
    if (token === "(") {
      const inner = sum();
      at++;
      return inner;
    }
    if (token === "√") return ratio(Math.sqrt(Number(tokens[at++])));
    return ratio(/[a-z]/.test(token) ? unknown : Number(token));
  };
  const power = (): Ratio => {
    const base = atom();
    if (tokens[at] !== "^") return base;
    at++;
    return ratio(base.top ** atom().top);
  };
  const product = (): Ratio => {
    let left = power();
    for (let token = tokens[at]; token === "*" || token === "/" || /^[a-z(]$/.test(token ?? ""); token = tokens[at]) {
      if (token === "*" || token === "/") at++;
      const right = power();
      left =
        token === "/" ? ratio(left.top * right.bottom, left.bottom * right.top) : ratio(left.top * right.top, left.bottom * right.bottom);
    }
    return left;
  };
  const sum = (): Ratio => {
    let left = product();
    while (tokens[at] === "+" || tokens[at] === "-") {
      const sign = tokens[at++] === "+" ? 1 : -1;
      const right = product();
      left = ratio(left.top * right.bottom + sign * right.top * left.bottom, left.bottom * right.bottom);
    }
    return left;
  };
  const value = sum();
  if (at !== tokens.length) throw new Error(`Not an expression: ${expression}`);
  return value;
}

function said({ top, bottom }: Ratio): string {
  let divisor = Math.abs(bottom);
  while (top % divisor !== 0 || bottom % divisor !== 0) divisor--;
  const [a, b] = [top / divisor, bottom / divisor];
  return b === 1 ? String(a) : `${a < 0 ? "-" : ""}\\frac{${Math.abs(a)}}{${b}}`;
}

function solveEquation(equation: string): number {
  const [left, right] = equation.split(" = ") as [string, string];
  const at0 = evaluate(left, 0).top;
  return (Number(right) - at0) / (evaluate(left, 1).top - at0);
}

const commonDivisors = (a: number, b: number) =>
  Array.from({ length: Math.min(a, b) }, (_, i) => i + 1).filter((d) => (a % d) + (b % d) === 0);
const sumOf = (numbers: number[]) => numbers.reduce((sum, value) => sum + value, 0);
const productOf = (numbers: number[]) => numbers.reduce((product, value) => product * value, 1);

/** What a text that isn't an expression asks for, by how it is put; the function gets the text's numbers in order. */
const QUESTIONS: [RegExp, (...numbers: number[]) => number][] = [
  [/^What is the sum of|^Add | plus /, (a, b) => a! + b!],
  [/ minus /, (a, b) => a! - b!],
  [/^Subtract/, (b, a) => a! - b!],
  [/product of|^Multiply| times /, (a, b) => a! * b!],
  [/remainder| mod /, (a, b) => a! % b!],
  [/^Divide| divided by /, (a, b) => a! / b!],
  [/%|percent/, (p, n) => (p! * n!) / 100],
  [/\d\/\d+ of \d/, (c, d, n) => (c! * n!) / d!],
  [/greatest common divisor|gcd|GCD/, (a, b) => commonDivisors(a!, b!).at(-1)!],
  [/least common multiple|lcm|LCM/, (a, b) => (a! * b!) / commonDivisors(a!, b!).at(-1)!],
  [/squared|square of/, (n) => n! ** 2],
  [/square root/, (n) => Math.sqrt(n!)],
  [/to the power of/, (base, n) => base! ** n!],
  [/next/, (...terms) => 2 * terms.at(-1)! - terms.at(-2)!],
  [/average|mean/, (...values) => sumOf(values) / values.length],
  [/area of a rectangle/, (a, b) => a! * b!],
  [/perimeter of a rectangle/, (a, b) => 2 * (a! + b!)],
  [/area of a triangle/, (a, b) => (a! * b!) / 2],
  [/perimeter of a square/, (a) => 4 * a!],
  [/then buys/, (a, given, gained) => a! - given! + gained!],
  [/gives|gave/, (a, given) => a! - given!],
  [/gets \d|together/, (a, gained) => a! + gained!],
  [/get back/, (n, price, paid) => paid! - n! * price!],
  [/share/, (total, n) => total! / n!],
  [/speed in km|hours does it need/, (a, b) => Math.max(a!, b!) / Math.min(a!, b!)],
  [/km|with \d+ \w+ each|in each of|(boxes|bags|baskets|packs|crates) of|dollars/, (...numbers) => productOf(numbers)],
];

function solve(text: string): string {
  const equation = /[\d(]*[a-z]?[^,:]*?[a-z][^,:a-z]* = \d+/.exec(
    text.replace(/^(Solve for [a-z]: |Solve the equation |Solve |If |Find [a-z] if )/, ""),
  );
  if (equation !== null && !text.endsWith("?") === !text.startsWith("If ")) return String(solveEquation(equation[0]));
  const expression = text.replace(/^(What is|Compute|Calculate|Find|Evaluate) (.*)[.?]$/, "$2").replace(/ = \?$/, "");
  if (!/[A-Za-z]{2}|%/.test(expression.replace(/\\[a-z]+/g, ""))) return said(evaluate(expression));
  for (const [form, answer] of QUESTIONS) if (form.test(text)) return String(answer(...(text.match(/\d+/g) ?? []).map(Number)));
  throw new Error(`Not understood: ${text}`);
}

function take(count: number, options: GeneratorOptions): GeneratedProblem[] {
  const taken: GeneratedProblem[] = [];
  for (const problem of generateProblems(options)) if (taken.push(problem) === count) break;
  return taken;
}

const every = (family: Family, texts?: GeneratorOptions["texts"]) => [...everyProblem(family, { texts })];

const heldOutFile = path.join(import.meta.dirname, "../../models/held-out.jsonl");
const heldOut = readFileSync(heldOutFile, "utf8")
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line) as { family: Family; problem: string; answer: string });

/** How many texts each family has, and the hard ones. */
const SIZES: Record<Family, [trained: number, hard: number]> = {
  addition: [16_966_017, 166_617_000_000],
  subtraction: [15_968_016, 78_400_815_984],
  multiplication: [91_542, 6_087_600],
  division: [7_337, 44_436],
  remainder: [4_200, 133_560],
  equation: [440_340, 3_743_550],
  percentage: [1_800, 25_800],
  "fraction sum": [27_664, 3_199_840],
  "fraction of": [1_485, 32_760],
  "common divisor": [2_376, 29_120],
  "common multiple": [448, 2_808],
  square: [216, 8_766],
  power: [105, 1_725],
  sequence: [5_040, 725_004],
  average: [847_792, 23_114_660],
  geometry: [4_266, 185_720],
  "order of operations": [260_253, 10_962_000],
  "story total": [603_520, 7_524_320],
  "story change": [378_931_200, 318_781_440_000],
  "story price": [73_472, 1_708_224],
  "story share": [57_456, 796_320],
  "story speed": [1_408, 29_952],
};
const SMALL = FAMILIES.filter((family) => SIZES[family][0] < 30_000);
const LARGE = FAMILIES.filter((family) => SIZES[family][0] > 50_000);

describe("the stream", () => {
  const problems = take(20_000, {});

  it("gives 20,000 distinct held-out texts with right answers", () => {
    expect(new Set(problems.map(({ problem }) => problem)).size).toBe(20_000);
    expect(new Set(problems.map(({ id }) => id)).size).toBe(20_000);
    const wrong = problems.filter(({ problem, answer }) => solve(problem) !== answer);
    expect(wrong).toEqual([]);
    const seen = problems.filter(({ problem }) => createHash("sha256").update(problem).digest()[0]! % 10 !== 0);
    expect(seen).toEqual([]);
  });

  it("is the same for the same seed and another for another", () => {
    expect(take(200, {})).toEqual(problems.slice(0, 200));
    const others = take(2000, { seed: 2 }).map(({ problem }) => problem);
    const first = new Set(problems.slice(0, 2000).map(({ problem }) => problem));
    expect(others.filter((problem) => first.has(problem)).length).toBeLessThan(1000);
    expect(others.slice(0, 5)).not.toEqual(problems.slice(0, 5).map(({ problem }) => problem));
    expect(take(50, { seed: 2, hard: true })).not.toEqual(take(50, { seed: 3, hard: true }));
  });

  it("draws families in the training's proportions while all have texts, or in those asked for", () => {
    const shares = (families: readonly Family[], options: GeneratorOptions, count: number) => {
      const drawn = take(count, { families, ...options });
      return families.map((family) => drawn.filter((problem) => problem.family === family).length / count);
    };
    const total = sumOf(LARGE.map((family) => FAMILY_WEIGHTS[family]));
    const seen = shares(LARGE, {}, 5000);
    for (const [i, family] of LARGE.entries()) expect(Math.abs(seen[i]! - FAMILY_WEIGHTS[family] / total)).toBeLessThan(0.03);
    const asked = shares(["addition", "average", "equation"], { weights: { addition: 6, average: 3, equation: 1 } }, 3000);
    for (const [i, share] of [0.6, 0.3, 0.1].entries()) expect(Math.abs(asked[i]! - share)).toBeLessThan(0.03);
    expect(shares(["addition", "average"], { weights: { average: 0 } }, 50)).toEqual([1, 0]);
  });

  it("has numbers of all trained sizes, and negative differences, as often as the training", () => {
    const sums = take(4000, { families: ["addition"], texts: "others" });
    const operands = sums.flatMap(({ problem }) => problem.match(/\d+/g)!.map(Number));
    const share = (low: number, high: number) => operands.filter((n) => n >= low && n <= high).length / operands.length;
    expect(share(1, 9)).toBeCloseTo(0.1125, 1);
    expect(share(10, 99)).toBeCloseTo(0.6375, 1);
    expect(share(100, 999)).toBeCloseTo(0.25, 1);
    const negative = take(4000, { families: ["subtraction"] }).filter(({ answer }) => answer.startsWith("-")).length / 4000;
    expect(negative).toBeGreaterThan(0.11);
    expect(negative).toBeLessThan(0.19);
  });

  it("ends when the families are exhausted, having given every held-out text, and says so", () => {
    const exhausted: [Family, number][] = [];
    const families: Family[] = ["power", "square", "common multiple"];
    const given = [...generateProblems({ families, onExhausted: (family, count) => exhausted.push([family, count]) })];
    const all = families.flatMap((family) => every(family));
    expect(given.map(({ id }) => id).sort()).toEqual(all.map(({ id }) => id).sort());
    const counts = families.map((family): [Family, number] => [family, every(family).length]);
    expect(exhausted.sort()).toEqual(counts.sort());
    const stop = () => {
      throw new Error("enough");
    };
    expect(() => [...generateProblems({ families: ["power"], onExhausted: stop })]).toThrow("enough");
  });

  it("gives held-out texts, the others or all of them", () => {
    for (const [texts, fits] of [
      ["held-out", isHeldOut],
      ["others", (text: string) => !isHeldOut(text)],
      ["all", () => true],
    ] as const) {
      const textsOf = (problems: Iterable<GeneratedProblem>) => [...problems].map(({ problem }) => problem).sort();
      const given = textsOf(generateProblems({ families: ["power", "story speed"], texts }));
      expect(given).toEqual(textsOf([...every("power", "all"), ...every("story speed", "all")]).filter(fits));
    }
  });

  it("says what is wrong with its options", () => {
    const first = (options: GeneratorOptions) => () => generateProblems(options).next();
    expect(first({ families: ["calculus" as Family] })).toThrow(/came calculus/);
    expect(first({ weights: { calculus: 1 } as GeneratorOptions["weights"] })).toThrow(MathllmError);
    expect(first({ weights: { addition: -1 } })).toThrow(/0 or more for addition; came -1/);
    expect(first({ weights: { addition: Number.NaN } })).toThrow(MathllmError);
    expect(first({ families: [] })).toThrow(/at least one family/);
    expect(first({ families: ["addition"], weights: { addition: 0 } })).toThrow(/at least one family/);
  });

  it("holds for any families, seed and kind", () => {
    fc.assert(
      fc.property(
        fc.subarray(FAMILIES, { minLength: 1 }),
        fc.nat(4_294_967_295),
        fc.boolean(),
        fc.constantFrom("held-out", "others", "all"),
        (families, seed, hard, texts) => {
          const problems = take(60, { families, seed, hard, texts });
          expect(new Set(problems.map(({ problem }) => problem)).size).toBe(problems.length);
          for (const { family, problem, answer } of problems) {
            expect(families).toContain(family);
            expect(answer).toMatch(/^(-?\d{1,9}|-?\\frac\{\d+\}\{\d+\})$/);
            expect(solve(problem)).toBe(answer);
            if (texts !== "all") expect(isHeldOut(problem)).toBe(texts === "held-out");
          }
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe("the families", () => {
  it("have as many distinct texts as they say", () => {
    for (const family of FAMILIES) {
      expect([family, familySize(family)]).toEqual([family, SIZES[family][0]]);
      // The hard averages are millions of sums to count.
      if (family !== "average") expect([family, familySize(family, { hard: true })]).toEqual([family, SIZES[family][1]]);
    }
    for (const family of SMALL) {
      const texts = new Set(every(family, "all").map(({ problem }) => problem));
      expect([family, texts.size]).toEqual([family, SIZES[family][0]]);
    }
  });

  it("know every shipped held-out problem and its answer", () => {
    for (const family of SMALL) {
      const answers = new Map(every(family).map(({ problem, answer }) => [problem, answer]));
      for (const shipped of heldOut.filter((other) => other.family === family)) {
        expect([shipped.problem, answers.get(shipped.problem)]).toEqual([shipped.problem, shipped.answer]);
      }
    }
    // Too many to list: the same wordings, and the second opinion agrees with the shipped answer.
    const wording = (text: string) =>
      text
        .replace(/\b(Ana|Ben|Chloe|Dan|Emma|Finn|Grace|Hugo|Ida|Jack|Kim|Leo|Mia|Noah|Olga|Paul|Rosa|Sam|Tom|Zoe)\b/g, "N")
        .replace(/\b(apples|pens|books|cards|coins|eggs|balls|cookies|stickers|marbles|shells|stamps|tickets|oranges|roses|toys)\b/g, "T")
        .replace(/\b(boxes|bags|baskets|packs|crates)\b/g, "B")
        .replace(/\d+/g, "#");
    const known = new Set(
      LARGE.flatMap((family) => take(3000, { families: [family], texts: "all" })).map(({ problem }) => wording(problem)),
    );
    for (const { family, problem, answer } of heldOut) {
      expect([problem, solve(problem)]).toEqual([problem, answer]);
      if (LARGE.includes(family)) expect(known).toContain(wording(problem));
    }
    expect(heldOut.every(({ problem }) => isHeldOut(problem))).toBe(true);
  });

  it("share no text with their hard kind", () => {
    for (const family of SMALL) {
      const trained = new Set(every(family, "all").map(({ problem }) => problem));
      const shared = take(3000, { families: [family], hard: true, texts: "all" }).filter(({ problem }) => trained.has(problem));
      expect(shared).toEqual([]);
    }
    // What training's texts of the large families stay within.
    const numbers = (text: string) => text.match(/\d+/g)!.map(Number);
    const isBeyond: Partial<Record<Family, (text: string, answer: string) => boolean>> = {
      addition: (text) => Math.max(...numbers(text)) > 999,
      subtraction: (text) => Math.max(...numbers(text)) > 999,
      multiplication: (text) => Math.max(...numbers(text)) > 99,
      equation: (_, answer) => Number(answer) > 15,
      average: (text) => Math.max(...numbers(text)) > 30,
      "order of operations": (text) => Number(/(?:×|\*|\\times) (\d+)/.exec(text)![1]) > 10,
      "story total": (text) => Math.max(...numbers(text)) > 25,
      "story change": (text) => numbers(text)[0]! > 99,
      "story price": (text) => Math.min(...numbers(text)) > 9 && Math.max(...numbers(text)) > 15,
      "story share": (_, answer) => Number(answer) > 20,
    };
    expect(Object.keys(isBeyond).sort()).toEqual(LARGE.toSorted());
    for (const family of LARGE) {
      const trained = take(500, { families: [family] }).filter(({ problem, answer }) => isBeyond[family]!(problem, answer));
      expect([family, trained]).toEqual([family, []]);
      const hard = take(500, { families: [family], hard: true }).filter(({ problem, answer }) => !isBeyond[family]!(problem, answer));
      expect([family, hard]).toEqual([family, []]);
    }
  });
});
