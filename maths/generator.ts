import { hash } from "node:crypto";
import { MathllmError } from "../queues/errors.ts";
import { seededRandom } from "./seeded-random.ts";

/**
 * Problems of the shipped Student's families, in the wordings, number ranges and forms of answer that it was trained on
 * (models/train/problems.py), as an endless seeded stream.
 *
 * A family is a weighted union of parts. A part is a product of axes (its numbers and names) that its wordings put into words; no two
 * points of one part, and no two parts of one family, give the same text. So a stream never repeats a text and remembers none: it
 * visits each part in a seeded order without repetition, and knows exactly when a family has no more.
 *
 * `hard` takes the numbers that set a problem's size out of the trained ranges (longer numbers, larger denominators and factors, other
 * percentages), in the same wordings: no hard text can come from the trained ranges, and what the Student makes of it shows where it
 * errs. Answers stay exact: whole numbers below 10^9 or reduced fractions.
 */

export interface GeneratedProblem {
  /** The family and the beginning of the text's hash: the same text has the same id in every stream. */
  id: string;
  family: Family;
  problem: string;
  /** A whole number (`-14`) or a reduced fraction (`\frac{37}{42}`), as the Student writes it. */
  answer: string;
}

/** `held-out`: texts that training never saw; `others`: the rest; `all`: both. */
export const TEXTS = ["held-out", "others", "all"] as const;
export type Texts = (typeof TEXTS)[number];

export interface GeneratorOptions {
  /** Which families; default all. */
  families?: readonly Family[];
  /** The same seed and options give the same stream; a whole number of 32 bits, default 1. */
  seed?: number;
  /** Shares of the families, relative to each other, 0 leaves one out; default those of the training, `FAMILY_WEIGHTS`. */
  weights?: Partial<Record<Family, number>>;
  /** Numbers outside the trained ranges instead of inside; default false. */
  hard?: boolean;
  /** Default `held-out`. */
  texts?: Texts;
  /**
   * A family has no more texts after `count` of them. The others go on and share its weight; the stream ends after the last. What this
   * throws ends the stream with that error.
   */
  onExhausted?: (family: Family, count: number) => void;
}

/** One text in ten, chosen by the text alone, was never trained on: the first byte of its SHA-256 is divisible by 10. */
export function isHeldOut(text: string): boolean {
  return isHeldOutHash(hash("sha256", text, "hex"));
}

const isHeldOutHash = (hex: string): boolean => Number.parseInt(hex.slice(0, 2), 16) % 10 === 0;

/**
 * Distinct problems until every family is exhausted, which for most of them is never.
 * @throws MathllmError `invalid-request`, on the first problem asked for: an unknown family, a weight below 0, or no family left.
 */
export function* generateProblems(options: GeneratorOptions = {}): Generator<GeneratedProblem, void, void> {
  const random = seededRandom(options.seed ?? 1);
  const texts = options.texts ?? "held-out";
  let streams = weightsOf(options).map(([family, weight]) => ({
    family,
    weight,
    count: 0,
    problems: familyStream(family, options.hard ?? false, texts, random),
  }));
  while (streams.length > 0) {
    const stream = weighted(streams, random);
    const next = stream.problems.next();
    if (next.done) {
      streams = streams.filter((other) => other !== stream);
      options.onExhausted?.(stream.family, stream.count);
    } else {
      stream.count++;
      yield next.value;
    }
  }
}

/** Every text of a family once, in a fixed order. Some families have hundreds of millions: see `familySize`. */
export function* everyProblem(family: Family, options: Pick<GeneratorOptions, "hard" | "texts"> = {}): Generator<GeneratedProblem> {
  for (const part of partsOf(family, options.hard ?? false)) {
    for (let index = 0; index < part.size; index++) {
      if (!part.allows(index)) continue;
      const { say, answer } = part.at(index);
      for (const [, problem] of say) {
        const made = madeOf(family, problem, answer, options.texts ?? "held-out");
        if (made !== null) yield made;
      }
    }
  }
}

/** How many distinct texts a family has; about one in ten of them is held out. Takes up to a second for the families with conditions. */
export function familySize(family: Family, options: Pick<GeneratorOptions, "hard"> = {}): number {
  let texts = 0;
  for (const part of partsOf(family, options.hard ?? false)) {
    let points = part.size;
    if (part.isConditional) {
      points = 0;
      for (let index = 0; index < part.size; index++) if (part.allows(index)) points++;
    }
    texts += points * part.at(0).say.length;
  }
  return texts;
}

function weightsOf({ families, weights }: GeneratorOptions): [Family, number][] {
  const known = new Set<string>(FAMILIES);
  for (const name of [...(families ?? []), ...Object.keys(weights ?? {})]) {
    if (!known.has(name)) throw new MathllmError("invalid-request", `Expected families among ${FAMILIES.join(", ")}; came ${name}.`);
  }
  const chosen = [...new Set(families ?? FAMILIES)].map((family): [Family, number] => {
    const weight = weights?.[family] ?? FAMILY_WEIGHTS[family];
    if (!(weight >= 0 && weight < Number.POSITIVE_INFINITY)) {
      throw new MathllmError("invalid-request", `Expected a weight of 0 or more for ${family}; came ${weight}.`);
    }
    return [family, weight];
  });
  const positive = chosen.filter(([, weight]) => weight > 0);
  if (positive.length === 0) throw new MathllmError("invalid-request", "Expected at least one family with a weight above 0; came none.");
  return positive;
}

/** A family's texts: parts and wordings by their shares, each (part, wording) through all its points in a seeded order. */
function* familyStream(family: Family, hard: boolean, texts: Texts, random: () => number): Generator<GeneratedProblem> {
  let boxes = partsOf(family, hard).flatMap((part) =>
    part.at(0).say.map(([share], wording, say) => ({
      part,
      wording,
      weight: (part.share * share) / say.reduce((sum, [other]) => sum + other, 0),
      points: null as Iterator<number> | null,
    })),
  );
  while (boxes.length > 0) {
    const box = weighted(boxes, random);
    box.points ??= shuffled(box.part.size, random);
    const made = nextOf(box.part, box.wording, box.points, family, texts);
    if (made === null) boxes = boxes.filter((other) => other !== box);
    else yield made;
  }
}

function nextOf(part: Part, wording: number, points: Iterator<number>, family: Family, texts: Texts): GeneratedProblem | null {
  for (let point = points.next(); !point.done; point = points.next()) {
    if (!part.allows(point.value)) continue;
    const { say, answer } = part.at(point.value);
    const made = madeOf(family, say[wording]![1], answer, texts);
    if (made !== null) return made;
  }
  return null;
}

function madeOf(family: Family, problem: string, answer: number | string, texts: Texts): GeneratedProblem | null {
  const hex = hash("sha256", problem, "hex");
  if (texts !== "all" && isHeldOutHash(hex) !== (texts === "held-out")) return null;
  return { id: `${family.replaceAll(" ", "-")}-${hex.slice(0, 16)}`, family, problem, answer: String(answer) };
}

function weighted<T extends { weight: number }>(items: readonly T[], random: () => number): T {
  let rest = random() * items.reduce((sum, { weight }) => sum + weight, 0);
  for (const item of items) {
    rest -= item.weight;
    if (rest < 0) return item;
  }
  return items.at(-1)!;
}

/**
 * Each of 0 … size - 1 once, in an order that the seed decides, without a table: a Feistel network over pairs of digits to the base
 * ⌈√size⌉, where the few results past the end are left out. `size` up to 2^52.
 */
function* shuffled(size: number, random: () => number): Generator<number> {
  const base = Math.ceil(Math.sqrt(size));
  const keys = Array.from({ length: 4 }, () => Math.floor(random() * 4_294_967_296));
  for (let i = 0; i < base * base; i++) {
    let high = Math.floor(i / base);
    let low = i % base;
    for (const key of keys) {
      const mixed = (high + mix(low ^ key)) % base;
      high = low;
      low = mixed;
    }
    const index = high * base + low;
    if (index < size) yield index;
  }
}

/** Spreads 32 bits over 32 bits (the finalizer of murmur3). */
function mix(bits: number): number {
  let mixed = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

// What families are made of ------------------------------------------------------------------------------------------

interface Axis<T> {
  size: number;
  at(index: number): T;
}

/** low, low + 1, … high, each times `factor`. */
const from = (low: number, high: number, factor = 1): Axis<number> => ({ size: high - low + 1, at: (index) => (low + index) * factor });
const among = <T>(items: readonly T[]): Axis<T> => ({ size: items.length, at: (index) => items[index]! });

/** A way to say it, and its share among the wordings of its part. */
type Wording = readonly [share: number, text: string];

interface Made {
  say: readonly Wording[];
  answer: number | string;
}

interface Part {
  share: number;
  size: number;
  isConditional: boolean;
  allows(index: number): boolean;
  at(index: number): Made;
}

/**
 * The points are all combinations of the axes' values that satisfy `where`. `make` puts one into words: the same number of wordings
 * with the same shares for each point, and each wording says every axis, so that no two points share a text.
 */
function part<V extends object>(
  share: number,
  axes: { [K in keyof V]: Axis<V[K]> },
  make: (values: NoInfer<V>) => Made,
  where?: (values: NoInfer<V>) => boolean,
): Part {
  const named = Object.entries(axes) as [string, Axis<unknown>][];
  const valuesAt = (index: number): V => {
    const values: Record<string, unknown> = {};
    let rest = index;
    for (const [name, axis] of named) {
      values[name] = axis.at(rest % axis.size);
      rest = Math.floor(rest / axis.size);
    }
    return values as V;
  };
  return {
    share,
    size: named.reduce((size, [, axis]) => size * axis.size, 1),
    isConditional: where !== undefined,
    allows: where === undefined ? () => true : (index) => where(valuesAt(index)),
    at: (index) => make(valuesAt(index)),
  };
}

const each = (share: number, ...texts: string[]): Wording[] => texts.map((text) => [share, text]);

/** The ways to ask for an expression's value, `share` together. */
function asked(expression: string, share = 1): Wording[] {
  return [
    [share / 4, `What is ${expression}?`],
    ...each(
      share / 8,
      `Compute ${expression}.`,
      `Calculate ${expression}.`,
      `Find ${expression}.`,
      `Evaluate ${expression}.`,
      `${expression} = ?`,
      expression,
    ),
  ];
}

/** Four in five with spaces around the sign. */
const askedSpaced = (a: number, sign: string, b: number, share: number): Wording[] => [
  ...asked(`${a} ${sign} ${b}`, 0.8 * share),
  ...asked(`${a}${sign}${b}`, 0.2 * share),
];

/** Takes the trained or the hard one of two. */
type Of = <T>(trained: T, hard: T) => T;
type FamilyParts = (of: Of) => Part[];

const NAMES = "Ana Ben Chloe Dan Emma Finn Grace Hugo Ida Jack Kim Leo Mia Noah Olga Paul Rosa Sam Tom Zoe".split(" ");
const THINGS = "apples pens books cards coins eggs balls cookies stickers marbles shells stamps tickets oranges roses toys".split(" ");
const BOXES = "boxes bags baskets packs crates".split(" ");
const VEHICLES = ["train", "car", "bus", "boat"];

const name = among(NAMES);
const thing = among(THINGS);
const box = among(BOXES);
const vehicle = among(VEHICLES);
const twoNames = among(NAMES.flatMap((one) => NAMES.filter((other) => other !== one).map((other) => [one, other] as const)));

function pairs(low: number, high: number, fits: (a: number, b: number) => boolean): (readonly [number, number])[] {
  const numbers = Array.from({ length: high - low + 1 }, (_, i) => low + i);
  return numbers.flatMap((a) => numbers.filter((b) => fits(a, b)).map((b) => [a, b] as const));
}

/** Numerator and denominator of the proper fractions with such denominators, unreduced ones too. */
const fractions = (low: number, high: number) => among(pairs(1, high, (a, b) => b >= low && a < b));

function gcd(a: number, b: number): number {
  return b === 0 ? Math.abs(a) : gcd(b, a % b);
}

function shownFraction(top: number, bottom: number): number | string {
  const divisor = gcd(top, bottom);
  return bottom === divisor ? top / divisor : `${top < 0 ? "-" : ""}\\frac{${Math.abs(top) / divisor}}{${bottom / divisor}}`;
}

/**
 * Training draws a number from 1–20 in one case of four, from 10–99 in two and from 100–999 in one; these are the same shares over
 * ranges that don't overlap.
 */
const SIZES = [
  { share: 0.25 * (9 / 20), low: 1, high: 9 },
  { share: 0.25 * (11 / 20) + 0.5 * (11 / 90), low: 10, high: 20 },
  { share: 0.5 * (79 / 90), low: 21, high: 99 },
  { share: 0.25, low: 100, high: 999 },
];
const SIZE_PAIRS = SIZES.flatMap((a) => SIZES.map((b) => ({ a, b })));

// The families ---------------------------------------------------------------------------------------------------------

const addition: FamilyParts = (of) =>
  of(SIZE_PAIRS, [{ a: HARD_SIZE, b: HARD_SIZE }]).map(({ a, b }) =>
    part(a.share * b.share, { a: from(a.low, a.high), b: from(b.low, b.high) }, ({ a, b }) => ({
      say: [...askedSpaced(a, "+", b, 2), ...each(1, `What is the sum of ${a} and ${b}?`, `Add ${a} and ${b}.`, `What is ${a} plus ${b}?`)],
      answer: a + b,
    })),
  );
const HARD_SIZE = { share: 1, low: 1000, high: 99_999 };

/** Of the differences that would be negative, seven in ten are turned around. */
const subtraction: FamilyParts = (of) => {
  const difference = ({ a, b }: { a: number; b: number }): Made => ({
    say: [...askedSpaced(a, "-", b, 2), ...each(1, `What is ${a} minus ${b}?`, `Subtract ${b} from ${a}.`)],
    answer: a - b,
  });
  const hardAxes = { least: from(1000, 50_000), more: from(0, 49_999) };
  return of(
    SIZE_PAIRS.flatMap(({ a, b }) => {
      const share = a.share * b.share;
      const axes = { a: from(a.low, a.high), b: from(b.low, b.high) };
      if (a.low > b.high) return [part(1.7 * share, axes, difference)];
      if (a.high < b.low) return [part(0.3 * share, axes, difference)];
      return [part(0.85 * share, axes, difference, ({ a, b }) => a >= b), part(0.15 * share, axes, difference, ({ a, b }) => a < b)];
    }),
    [
      part(0.85, hardAxes, ({ least, more }) => difference({ a: least + more, b: least })),
      part(0.15, { ...hardAxes, more: from(1, 49_999) }, ({ least, more }) => difference({ a: least, b: least + more })),
    ],
  );
};

const multiplication: FamilyParts = (of) => {
  const sign = among(["×", "*", "x", "\\times", "\\cdot"]);
  const product = (share: number, a: Axis<number>, b: Axis<number>, where?: (values: { a: number; b: number }) => boolean) => [
    part(
      0.4 * share,
      { a, b, sign },
      ({ a, b, sign }) => ({
        say: asked(`${a} ${sign} ${b}`),
        answer: a * b,
      }),
      where,
    ),
    part(
      0.6 * share,
      { a, b },
      ({ a, b }) => ({
        say: each(1, `What is the product of ${a} and ${b}?`, `Multiply ${a} by ${b}.`, `What is ${a} times ${b}?`),
        answer: a * b,
      }),
      where,
    ),
  ];
  return of(
    [
      ...product(1, from(2, 12), from(2, 12)),
      ...product(1, from(13, 99), from(2, 9)),
      ...product(1, from(2, 9), from(13, 99)),
      ...product(1, from(11, 40), from(11, 40), ({ a, b }) => a > 12 || b > 12),
    ],
    [...product(1, from(100, 999), from(11, 99)), ...product(1, from(11, 99), from(100, 999))],
  );
};

const division: FamilyParts = (of) => {
  const b = of(from(2, 12), from(13, 40));
  const q = of(from(2, 30), from(31, 99));
  return [
    part(1, { b, q, sign: among(["÷", "/", "\\div"]) }, ({ b, q, sign }) => ({ say: asked(`${b * q} ${sign} ${b}`), answer: q })),
    part(2, { b, q }, ({ b, q }) => ({ say: each(1, `Divide ${b * q} by ${b}.`, `What is ${b * q} divided by ${b}?`), answer: q })),
  ];
};

const remainder: FamilyParts = (of) => [
  part(
    1,
    { b: of(from(3, 12), from(13, 40)), q: of(from(2, 15), from(16, 60)), r: of(from(0, 11), from(0, 39)) },
    ({ b, q, r }) => {
      const a = b * q + r;
      return {
        say: each(
          1,
          `What is the remainder when ${a} is divided by ${b}?`,
          `Find the remainder of ${a} divided by ${b}.`,
          `What is ${a} mod ${b}?`,
          `Compute ${a} mod ${b}.`,
        ),
        answer: r,
      };
    },
    ({ b, r }) => r < b,
  ),
];

const equation: FamilyParts = (of) => {
  const a = of(from(2, 12), from(13, 25));
  const x = of(from(1, 15), from(16, 60));
  const b = of(from(1, 30), from(31, 99));
  const solve = (v: string, e: string, x: number): Made => ({
    say: each(
      1,
      `Solve for ${v}: ${e}`,
      `Solve ${e} for ${v}.`,
      `If ${e}, what is ${v}?`,
      `Find ${v} if ${e}.`,
      `Solve ${e}.`,
      `Solve the equation ${e}.`,
    ),
    answer: x,
  });
  return [among(["x"]), among(["y", "n", "k", "t"])].flatMap((v) => [
    part(1, { v, a, x, b }, ({ v, a, x, b }) => solve(v, `${a}${v} + ${b} = ${a * x + b}`, x)),
    part(
      1,
      { v, a, x, b },
      ({ v, a, x, b }) => solve(v, `${a}${v} - ${b} = ${a * x - b}`, x),
      ({ a, x, b }) => b <= a * x,
    ),
    part(1, { v, a, x, b }, ({ v, a, x, b }) => solve(v, `${a}(${v} + ${b}) = ${a * (x + b)}`, x)),
    part(1, { v, x, b }, ({ v, x, b }) => solve(v, `${v} + ${b} = ${x + b}`, x)),
    part(1, { v, a, x }, ({ v, a, x }) => solve(v, `${a}${v} = ${a * x}`, x)),
  ]);
};

/** `n` is such that the answer is whole. */
const percentage: FamilyParts = (of) => {
  const percents = (share: number, list: number[], stepOf: (p: number) => number, times: Axis<number>) =>
    part(share, { p: among(list), times }, ({ p, times }) => {
      const n = times * stepOf(p);
      return {
        say: each(
          1,
          `What is ${p}% of ${n}?`,
          `Find ${p}% of ${n}.`,
          `Calculate ${p} percent of ${n}.`,
          `What is ${p} percent of ${n}?`,
          `${p}% of ${n}`,
        ),
        answer: (p * n) / 100,
      };
    });
  const tens = [10, 20, 30, 40, 50, 60, 80, 90];
  const fives = [5, 15, 25, 75];
  const others = Array.from({ length: 98 }, (_, i) => i + 2).filter((p) => !tens.includes(p) && !fives.includes(p));
  return of(
    [percents(8, tens, () => 10, from(1, 30)), percents(4, fives, () => 20, from(1, 30))],
    [percents(1, others, (p) => 100 / gcd(p, 100), from(1, 60))],
  );
};

const fractionSum: FamilyParts = (of) => {
  const proper = of(fractions(2, 9), fractions(11, 30));
  const ways = (a: number, b: number, sign: string, c: number, d: number) => [
    ...asked(`${a}/${b} ${sign} ${c}/${d}`, 0.7),
    ...asked(`\\frac{${a}}{${b}} ${sign} \\frac{${c}}{${d}}`, 0.3),
  ];
  return [
    part(0.6, { one: proper, two: proper }, ({ one: [a, b], two: [c, d] }) => ({
      say: ways(a, b, "+", c, d),
      answer: shownFraction(a * d + c * b, b * d),
    })),
    part(
      0.4,
      { one: proper, two: proper },
      ({ one: [a, b], two: [c, d] }) => ({ say: ways(a, b, "-", c, d), answer: shownFraction(a * d - c * b, b * d) }),
      ({ one: [a, b], two: [c, d] }) => a * d >= c * b,
    ),
  ];
};

const fractionOf: FamilyParts = (of) => [
  part(1, { fraction: of(fractions(2, 10), fractions(11, 30)), k: of(from(2, 12), from(13, 40)) }, ({ fraction: [c, d], k }) => ({
    say: each(1, `What is ${c}/${d} of ${d * k}?`, `Find ${c}/${d} of ${d * k}.`, `Compute ${c}/${d} of ${d * k}.`),
    answer: c * k,
  })),
];

const commonDivisor: FamilyParts = (of) => {
  const coprime = (low: number, high: number) => among(pairs(low, high, (p, q) => p !== q && gcd(p, q) === 1));
  return [
    part(1, { g: of(from(2, 12), from(13, 40)), ratio: of(coprime(1, 9), coprime(10, 30)) }, ({ g, ratio: [p, q] }) => {
      const [a, b] = [g * p, g * q];
      return {
        say: each(
          1,
          `What is the greatest common divisor of ${a} and ${b}?`,
          `Find the greatest common divisor of ${a} and ${b}.`,
          `Find gcd(${a}, ${b}).`,
          `What is the GCD of ${a} and ${b}?`,
        ),
        answer: g,
      };
    }),
  ];
};

/** Training turns two equal numbers into neighbours, which is how 12 meets 13. */
const commonMultiple: FamilyParts = (of) => {
  const trained = [...pairs(2, 12, (a, b) => a !== b), [12, 13] as const, [13, 12] as const];
  return [
    part(
      1,
      {
        both: among(
          of(
            trained,
            pairs(14, 40, (a, b) => a !== b),
          ),
        ),
      },
      ({ both: [a, b] }) => ({
        say: each(
          1,
          `What is the least common multiple of ${a} and ${b}?`,
          `Find the least common multiple of ${a} and ${b}.`,
          `Find lcm(${a}, ${b}).`,
          `What is the LCM of ${a} and ${b}?`,
        ),
        answer: (a * b) / gcd(a, b),
      }),
    ),
  ];
};

const square: FamilyParts = (of) => {
  const n = of(from(2, 25), from(26, 999));
  return [
    part(1, { n }, ({ n }) => ({
      say: each(1, `What is ${n}^2?`, `What is ${n} squared?`, `Compute ${n}^2.`, `Evaluate ${n}^2.`, `Find the square of ${n}.`),
      answer: n * n,
    })),
    part(1, { n }, ({ n }) => ({
      say: each(
        1,
        `What is the square root of ${n * n}?`,
        `Find the square root of ${n * n}.`,
        `What is \\sqrt{${n * n}}?`,
        `Evaluate \\sqrt{${n * n}}.`,
      ),
      answer: n,
    })),
  ];
};

/** The greatest exponent of each base, from 3 on; hard ones go on from there, up to nine digits, and to larger bases. */
const TRAINED_EXPONENTS = [
  [2, 10],
  [3, 5],
  [4, 4],
  [5, 4],
  [6, 3],
  [7, 3],
  [8, 3],
  [9, 3],
  [10, 4],
] as const;
const trainedPowers = TRAINED_EXPONENTS.flatMap(([base, last]) => pairs(2, 10, (b, n) => b === base && n >= 3 && n <= last));
const hardPowers = pairs(2, 99, (b, n) => n >= 3 && b ** n < 1e9).filter(
  ([b, n]) => !trainedPowers.some(([base, exponent]) => b === base && n === exponent),
);

const power: FamilyParts = (of) => [
  part(1, { term: among(of(trainedPowers, hardPowers)) }, ({ term: [base, n] }) => ({
    say: each(
      1,
      `What is ${base}^${n}?`,
      `Compute ${base}^${n}.`,
      `What is ${base} to the power of ${n}?`,
      `Evaluate ${base}^${n}.`,
      `Calculate ${base}^${n}.`,
    ),
    answer: base ** n,
  })),
];

const sequence: FamilyParts = (of) => [
  part(1, { start: of(from(1, 40), from(41, 999)), step: of(from(2, 15), from(16, 99)), terms: from(3, 5) }, ({ start, step, terms }) => {
    const listed = Array.from({ length: terms }, (_, i) => start + step * i).join(", ");
    return {
      say: each(
        1,
        `What is the next number in the sequence ${listed}?`,
        `Find the next term of the sequence ${listed}, ...`,
        `What comes next: ${listed}, ...?`,
      ),
      answer: start + step * terms,
    };
  }),
];

/** Training draws 2, 3, 3 or 4 numbers until their average is whole: one draw in 2, 3 or 4 is. */
const average: FamilyParts = (of) => {
  const v = of(from(1, 30), from(31, 99));
  const mean = (...values: number[]): Made => {
    const listed = `${values.slice(0, -1).join(", ")} and ${values.at(-1)}`;
    return {
      say: each(
        1,
        `What is the average of ${listed}?`,
        `Find the mean of ${listed}.`,
        `What is the mean of ${listed}?`,
        `Find the average of ${listed}.`,
      ),
      answer: values.reduce((sum, value) => sum + value, 0) / values.length,
    };
  };
  return [
    part(
      1 / 2,
      { a: v, b: v },
      ({ a, b }) => mean(a, b),
      ({ a, b }) => (a + b) % 2 === 0,
    ),
    part(
      2 / 3,
      { a: v, b: v, c: v },
      ({ a, b, c }) => mean(a, b, c),
      ({ a, b, c }) => (a + b + c) % 3 === 0,
    ),
    part(
      1 / 4,
      { a: v, b: v, c: v, d: v },
      ({ a, b, c, d }) => mean(a, b, c, d),
      ({ a, b, c, d }) => (a + b + c + d) % 4 === 0,
    ),
  ];
};

const geometry: FamilyParts = (of) => {
  const a = of(from(2, 30), from(31, 200));
  const b = of(from(2, 12), from(13, 99));
  const whatIs = (figure: string) => [`What is the ${figure}?`, `Find the ${figure}.`];
  const rectangle = (measure: string, a: number, b: number) =>
    [`sides ${a} and ${b}`, `length ${a} and width ${b}`, `a length of ${a} and a width of ${b}`].flatMap((size) =>
      whatIs(`${measure} of a rectangle with ${size}`),
    );
  return [
    part(1, { a, b }, ({ a, b }) => ({ say: each(1, ...rectangle("area", a, b)), answer: a * b })),
    part(1, { a, b }, ({ a, b }) => ({ say: each(1, ...rectangle("perimeter", a, b)), answer: 2 * (a + b) })),
    part(1, { height: of(from(2, 20), from(21, 99)), base: of(from(1, 10, 2), from(11, 60, 2)) }, ({ height, base }) => ({
      say: each(1, ...whatIs(`area of a triangle with base ${base} and height ${height}`)),
      answer: (height * base) / 2,
    })),
    part(1, { a }, ({ a }) => ({ say: each(1, ...whatIs(`perimeter of a square with side ${a}`)), answer: 4 * a })),
  ];
};

const orderOfOperations: FamilyParts = (of) => {
  const sign = among(["×", "*", "\\times"]);
  const a = of(from(2, 50), from(51, 500));
  const b = of(from(2, 10), from(11, 30));
  return [
    part(1, { a, b, c: b, sign }, ({ a, b, c, sign }) => ({ say: asked(`${a} + ${b} ${sign} ${c}`), answer: a + b * c })),
    part(1, { rest: of(from(0, 40), from(41, 400)), b, c: b, sign }, ({ rest, b, c, sign }) => ({
      say: asked(`${b * c + rest} - ${b} ${sign} ${c}`),
      answer: rest,
    })),
    part(1, { a: of(from(2, 15), from(16, 60)), b, c: b, sign }, ({ a, b, c, sign }) => ({
      say: asked(`(${a} + ${b}) ${sign} ${c}`),
      answer: (a + b) * c,
    })),
    part(1, { a, b, c: b, sign }, ({ a, b, c, sign }) => ({ say: asked(`${b} ${sign} ${c} + ${a}`), answer: b * c + a })),
  ];
};

const storyTotal: FamilyParts = (of) => {
  const n = of(from(2, 9), from(10, 40));
  const k = of(from(3, 25), from(26, 99));
  return [
    part(2, { name, thing, box, n, k }, ({ name, thing, box, n, k }) => ({
      say: each(
        1,
        `${name} has ${n} ${box} with ${k} ${thing} each. How many ${thing} does ${name} have?`,
        `${name} buys ${n} ${box} of ${k} ${thing}. How many ${thing} is that?`,
      ),
      answer: n * k,
    })),
    part(1, { thing, box, n, k }, ({ thing, box, n, k }) => ({
      say: each(1, `There are ${k} ${thing} in each of ${n} ${box}. How many ${thing} are there in total?`),
      answer: n * k,
    })),
  ];
};

const storyChange: FamilyParts = (of) => {
  const a = of(from(20, 99), from(200, 999));
  const given = of(from(2, 19), from(20, 199));
  const gained = of(from(2, 40), from(41, 400));
  return [
    part(2, { names: twoNames, thing, a, given }, ({ names: [name, other], thing, a, given }) => ({
      say: each(
        1,
        `${name} has ${a} ${thing} and gives ${given} to ${other}. How many ${thing} does ${name} have left?`,
        `${name} had ${a} ${thing}. ${name} gave ${given} of them to ${other}. How many are left?`,
      ),
      answer: a - given,
    })),
    part(1, { name, thing, a, gained }, ({ name, thing, a, gained }) => ({
      say: each(1, `${name} has ${a} ${thing} and gets ${gained} more. How many ${thing} does ${name} have now?`),
      answer: a + gained,
    })),
    part(1, { names: twoNames, thing, a, gained }, ({ names: [name, other], thing, a, gained }) => ({
      say: each(1, `${name} has ${a} ${thing}. ${other} has ${gained} ${thing}. How many ${thing} do they have together?`),
      answer: a + gained,
    })),
    part(2, { names: twoNames, thing, a, given, gained }, ({ names: [name, other], thing, a, given, gained }) => ({
      say: each(
        1,
        `${name} has ${a} ${thing}, gives ${given} to ${other} and then buys ${gained} more. How many ${thing} does ${name} have now?`,
      ),
      answer: a - given + gained,
    })),
  ];
};

const storyPrice: FamilyParts = (of) => {
  const n = of(from(2, 9), from(10, 40));
  const price = of(from(2, 15), from(16, 99));
  return [
    part(1, { name, thing, n, price }, ({ name, thing, n, price }) => ({
      say: each(1, `${name} buys ${n} ${thing} for ${price} dollars each. How many dollars does ${name} pay?`),
      answer: n * price,
    })),
    part(1, { thing, n, price }, ({ thing, n, price }) => ({
      say: each(1, `If one of the ${thing} costs ${price} dollars, how many dollars do ${n} ${thing} cost?`),
      answer: n * price,
    })),
    part(2, { name, thing, n, price }, ({ name, thing, n, price }) => {
      const paid = (Math.floor((n * price) / 50) + 1) * 50;
      return {
        say: each(
          1,
          `${name} buys ${n} ${thing} for ${price} dollars each and pays with ${paid} dollars. How many dollars does ${name} get back?`,
        ),
        answer: paid - n * price,
      };
    }),
  ];
};

const storyShare: FamilyParts = (of) => {
  const n = of(from(2, 10), from(11, 40));
  const k = of(from(2, 20), from(21, 99));
  return [
    part(1, { thing, n, k }, ({ thing, n, k }) => ({
      say: each(1, `${n * k} ${thing} are shared equally among ${n} children. How many ${thing} does each child get?`),
      answer: k,
    })),
    part(1, { name, thing, n, k }, ({ name, thing, n, k }) => ({
      say: each(1, `${name} shares ${n * k} ${thing} equally among ${n} friends. How many ${thing} does each friend get?`),
      answer: k,
    })),
  ];
};

const storySpeed: FamilyParts = (of) => {
  const axes = { vehicle, speed: of(from(2, 12, 10), from(13, 60, 10)), hours: of(from(2, 9), from(10, 48)) };
  return [
    part(1, axes, ({ vehicle, speed, hours }) => ({
      say: each(
        1,
        `A ${vehicle} travels at ${speed} km per hour for ${hours} hours. How many km does it travel?`,
        `How many km does a ${vehicle} cover in ${hours} hours at ${speed} km per hour?`,
      ),
      answer: speed * hours,
    })),
    part(1, axes, ({ vehicle, speed, hours }) => ({
      say: each(1, `A ${vehicle} travels ${speed * hours} km in ${hours} hours. What is its speed in km per hour?`),
      answer: speed,
    })),
    part(1, axes, ({ vehicle, speed, hours }) => ({
      say: each(1, `A ${vehicle} travels at ${speed} km per hour. How many hours does it need for ${speed * hours} km?`),
      answer: hours,
    })),
  ];
};

const MAKERS = {
  addition,
  subtraction,
  multiplication,
  division,
  remainder,
  equation,
  percentage,
  "fraction sum": fractionSum,
  "fraction of": fractionOf,
  "common divisor": commonDivisor,
  "common multiple": commonMultiple,
  square,
  power,
  sequence,
  average,
  geometry,
  "order of operations": orderOfOperations,
  "story total": storyTotal,
  "story change": storyChange,
  "story price": storyPrice,
  "story share": storyShare,
  "story speed": storySpeed,
} as const satisfies Record<string, FamilyParts>;

export type Family = keyof typeof MAKERS;
export const FAMILIES = Object.keys(MAKERS) as Family[];

/** How often training drew each family, relative to the others. */
export const FAMILY_WEIGHTS: Readonly<Record<Family, number>> = {
  addition: 3,
  subtraction: 3,
  multiplication: 4,
  division: 1.5,
  remainder: 2.5,
  equation: 3,
  percentage: 2.5,
  "fraction sum": 5,
  "fraction of": 1,
  "common divisor": 2,
  "common multiple": 1.5,
  square: 1,
  power: 0.8,
  sequence: 2,
  average: 1.5,
  geometry: 1.5,
  "order of operations": 1.5,
  "story total": 1,
  "story change": 1.5,
  "story price": 1,
  "story share": 1,
  "story speed": 1,
};

function partsOf(family: Family, hard: boolean): Part[] {
  return MAKERS[family](hard ? (_, second) => second : (first) => first);
}
