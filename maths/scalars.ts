import { BallArithmetic, signOf } from "./ball.ts";
import { ComplexArithmetic, type ComplexBall, complexMagnitude } from "./complex-ball.ts";
import type { Evaluation, Point } from "./evaluation.ts";
import { type Expression, hasVariable, minus, traitsOf } from "./expression.ts";
import { different, equal, type Judgement, undecided } from "./judgement.ts";
import { add, bitLength, compare, negate, type Rational } from "./rational.ts";
import { pointsBetweenKinks, samplePoints } from "./sample-points.ts";
import { NotJudged, OutOfWork, Undefined } from "./work-budget.ts";

/** Comparing formulas: exactly where both are fractions, else by values at enough points, known to enough digits. */

/** Bits that values are computed with, one after the other until they differ or agree deeply enough. */
const PRECISIONS = [128, 320, 640, 1280];
/**
 * Two numbers are taken for the same when no difference is seen in this many bits behind the point (and more for large ones: √(n²+1) and n are
 * close), and relative to their size in half as many.
 */
const AGREED_BITS = 200;
/** At a point of many, relative to their size: formulas that are not the same differ nearly everywhere. */
const AGREED_BITS_AT_POINT = 80;
const AGREED_BITS_AT_DEEP_POINT = 200;
const DEEP_POINTS = 2;
const MIN_POINTS = 3;
const MAX_VARIABLES = 12;

export function compareExpressions(a: Expression, b: Expression, evaluation: Evaluation): Judgement {
  const infinities = [infinitySign(a), infinitySign(b)];
  if (infinities[0] !== 0 && infinities[1] !== 0) {
    return infinities[0] === infinities[1] ? equal("Both are infinite.") : different("The signs of the infinities differ.");
  }
  const traits = traitsOf(a, b);
  if (infinities[0] !== 0 || infinities[1] !== 0) {
    return traits.variables.size === 0 && ![a, b].every((side) => traitsOf(side).hasInfinity)
      ? different("One is infinite.")
      : undecided("It computes with infinity.");
  }
  if (traits.hasInfinity) return undecided("It computes with infinity.");
  return traits.variables.size === 0 ? compareNumbers(a, b, evaluation) : compareAtPoints(a, b, evaluation);
}

/** 1 or −1 for ∞ and −∞, 0 for everything else. */
function infinitySign(expression: Expression): -1 | 0 | 1 {
  if (expression.kind === "constant") return expression.name === "infinity" ? 1 : 0;
  if (expression.kind !== "call" || expression.name !== "negate") return 0;
  const inner = infinitySign(expression.args[0]!);
  return inner === 0 ? 0 : inner === 1 ? -1 : 1;
}

function compareNumbers(a: Expression, b: Expression, evaluation: Evaluation): Judgement {
  const [exactA, exactB] = [evaluation.exact(a), evaluation.exact(b)];
  if (exactA !== undefined && exactB !== undefined && compare(exactA, exactB) === 0) return equal("The numbers are the same.");
  if (isRounded(a, b, evaluation) || isRounded(b, a, evaluation)) return equal("One is the other's decimal value.");
  if (exactA !== undefined && exactB !== undefined) return different("The numbers differ.");
  for (const bits of PRECISIONS) {
    const value = evaluation.at(new Map(), bits, true);
    const verdict = closeness(value(a), value(b), bits, evaluation);
    if (verdict === "apart") return different("The values differ.");
    if (verdict === "together") return equal("The values agree to 60 digits.");
  }
  return undecided("The values agree as far as they are known.");
}

/**
 * The rule for decimals: one with at least 10 significant digits, 6 of them behind the point, says the same as a fraction or a formula
 * whose value it is, rounded or cut at its last digit. From 16 digits on it may be as far off as a double's arithmetic (2⁻⁵⁰ of the
 * value). Two decimals are compared exactly, and so is a decimal with a fraction that has fewer digits.
 */
const MIN_ROUNDED_DIGITS = 10;
const MIN_ROUNDED_DECIMALS = 6;
const DOUBLE_DIGITS = 16;

function isRounded(decimal: Expression, other: Expression, evaluation: Evaluation): boolean {
  const { digits, value } = literalOf(decimal);
  if (digits === null || digits.significant < MIN_ROUNDED_DIGITS || digits.afterPoint < MIN_ROUNDED_DECIMALS) return false;
  if (literalOf(other).value !== null) return false;
  const exact = evaluation.exact(other);
  const isDouble = digits.significant >= DOUBLE_DIGITS;
  if (exact !== undefined && 10n ** BigInt(digits.afterPoint) % exact.denominator === 0n && !isDouble) return false;
  const difference = exact !== undefined ? rationalDifference(exact, value!, evaluation) : ballDifference(other, decimal, evaluation);
  if (difference === undefined) return false;
  const lastDigit = -digits.afterPoint * Math.log2(10);
  const double = isDouble ? bitLength(value!.numerator) - bitLength(value!.denominator) - 50 : Number.NEGATIVE_INFINITY;
  return difference < Math.max(lastDigit, double);
}

/** log₂ |a − b| */
function rationalDifference(a: Rational, b: Rational, evaluation: Evaluation): number {
  const { numerator, denominator } = add(a, negate(b), evaluation.work);
  return logOf(numerator) - logOf(denominator);
}

function logOf(n: bigint): number {
  const positive = n < 0n ? -n : n;
  const shift = Math.max(0, bitLength(positive) - 60);
  return Math.log2(Number(positive >> BigInt(shift))) + shift;
}

function ballDifference(a: Expression, b: Expression, evaluation: Evaluation): number | undefined {
  const { re, im } = evaluation.at(new Map(), PRECISIONS[1]!, true)(minus(a, b));
  if (im !== null) return undefined;
  return Math.max(logOf(re.mantissa) + re.exponent, re.error);
}

/** A number as written, with its sign; nulls for everything that is computed. */
function literalOf(expression: Expression): { value: Rational | null; digits: { afterPoint: number; significant: number } | null } {
  if (expression.kind === "number") return expression;
  if (expression.kind !== "call" || expression.name !== "negate") return { value: null, digits: null };
  const { value, digits } = literalOf(expression.args[0]!);
  return { value: value === null ? null : negate(value), digits };
}

type Closeness = "apart" | "together" | "unknown";

/** Of two values that were computed with so many bits. Together are those that agree to `depth` bits of their size. */
function closenessAtPoint(a: ComplexBall, b: ComplexBall, bits: number, depth: number, evaluation: Evaluation): Closeness {
  return closeness(a, b, bits, evaluation, (size) => size - depth);
}

function closeness(
  a: ComplexBall,
  b: ComplexBall,
  bits: number,
  evaluation: Evaluation,
  /** log₂ of the error up to which values of this size (log₂; 0 for those that may be zero) count. */
  maxError: (size: number) => number = (size) => Math.min(-AGREED_BITS - 2 * Math.max(0, size), size - AGREED_BITS / 2),
): Closeness {
  const arithmetic = new ComplexArithmetic(new BallArithmetic(bits, evaluation.work));
  const { re, im } = arithmetic.add(a, arithmetic.negate(b));
  const parts = im === null ? [re] : [re, im];
  if (parts.some((part) => Math.abs(signOf(part) ?? 0) === 1)) return "apart";
  const isNonZero = [a.re, a.im, b.re, b.im].some((part) => part !== null && Math.abs(signOf(part) ?? 0) === 1);
  const limit = maxError(isNonZero ? Math.max(complexMagnitude(a), complexMagnitude(b)) : 0);
  return parts.every(({ error }) => error <= limit) ? "together" : "unknown";
}

function compareAtPoints(a: Expression, b: Expression, evaluation: Evaluation): Judgement {
  const traits = traitsOf(a, b);
  if (traits.variables.size > MAX_VARIABLES) return undecided("It has too many variables.");
  let agreed = 0;
  let oneUndefined = 0;
  const look = (points: Iterable<Point>): Judgement | undefined => {
    for (const point of points) {
      const found = compareAt(point, a, b, agreed < DEEP_POINTS, traits.hasImaginary, evaluation);
      if (found === "apart") return different("The values differ where the variables are the same.");
      if (found === "together") agreed++;
      else if (found === "one undefined") oneUndefined++;
    }
    return undefined;
  };
  const names = [...traits.variables];
  const judgement =
    look(samplePoints(names, traits)) ??
    (traits.isPiecewise ? look(pointsBetweenKinks([a, b], names, evaluation)) : undefined) ??
    (agreed === 0 && !traits.isDiscrete ? look(samplePoints(names, { ...traits, isDiscrete: true })) : undefined);
  if (judgement !== undefined) return judgement;
  if (oneUndefined > 0) return undecided("One is undefined where the other has a value.");
  if (agreed < MIN_POINTS) return undecided("They could be compared at too few points.");
  return equal(`The values agree at ${agreed} points.`);
}

function compareAt(
  point: Point,
  a: Expression,
  b: Expression,
  isDeep: boolean,
  complex: boolean,
  evaluation: Evaluation,
): "apart" | "together" | "one undefined" | "unknown" {
  const depth = isDeep ? AGREED_BITS_AT_DEEP_POINT : AGREED_BITS_AT_POINT;
  for (const bits of isDeep ? PRECISIONS.slice(1, 3) : PRECISIONS.slice(0, 2)) {
    const value = evaluation.at(point, bits, complex);
    const [left, right] = [definedValue(value, a), definedValue(value, b)];
    if (left === "unknown" || right === "unknown") continue;
    if (left === "undefined" || right === "undefined") return left === right ? "unknown" : "one undefined";
    const found = closenessAtPoint(left, right, bits, depth, evaluation);
    if (found !== "unknown") return found;
  }
  return "unknown";
}

function definedValue(value: (expression: Expression) => ComplexBall, expression: Expression): ComplexBall | "undefined" | "unknown" {
  try {
    return value(expression);
  } catch (error) {
    if (error instanceof OutOfWork || !(error instanceof NotJudged)) throw error;
    return error instanceof Undefined ? "undefined" : "unknown";
  }
}

/** −1, 0, 1 as a is less, the same, more; undefined when that isn't known, or one is not a real number. */
export function order(a: Expression, b: Expression, evaluation: Evaluation): -1 | 0 | 1 | undefined {
  const [infinityA, infinityB] = [infinitySign(a), infinitySign(b)];
  if (infinityA !== 0 || infinityB !== 0) return infinityA === infinityB ? 0 : infinityA < infinityB ? -1 : 1;
  if (hasVariable(a) || hasVariable(b)) return undefined;
  const judgement = compareNumbers(a, b, evaluation);
  if (judgement.verdict === "equal") return 0;
  if (judgement.verdict === "undecided") return undefined;
  const [exactA, exactB] = [evaluation.exact(a), evaluation.exact(b)];
  if (exactA !== undefined && exactB !== undefined) return compare(exactA, exactB);
  for (const bits of PRECISIONS) {
    const { re, im } = evaluation.at(new Map(), bits, true)(minus(a, b));
    if (im !== null) return undefined;
    const sign = signOf(re);
    if (sign !== undefined) return sign;
  }
  return undefined;
}

/** The sign of the constant that a is of b, 0 when they are in no constant proportion, undefined when that isn't known. */
export function proportion(a: Expression, b: Expression, evaluation: Evaluation): -1 | 0 | 1 | undefined {
  const traits = traitsOf(a, b);
  if (traits.variables.size === 0 || traits.variables.size > MAX_VARIABLES) return undefined;
  const bits = PRECISIONS[1]!;
  const arithmetic = new ComplexArithmetic(new BallArithmetic(bits, evaluation.work));
  let first: [ComplexBall, ComplexBall] | undefined;
  let sign: -1 | 1 | undefined;
  let agreed = 0;
  for (const point of samplePoints([...traits.variables], traits)) {
    const value = evaluation.at(point, bits, false);
    const [left, right] = [definedValue(value, a), definedValue(value, b)];
    if (typeof left === "string" || typeof right === "string") {
      if (left !== right) return undefined;
      continue;
    }
    const signs = [signOf(left.re), signOf(right.re)];
    if (!signs.every((s) => s === 1 || s === -1)) continue;
    first ??= [left, right];
    sign ??= signs[0] === signs[1] ? 1 : -1;
    if (first[0] === left) continue;
    const found = closenessAtPoint(
      arithmetic.multiply(left, first[1]),
      arithmetic.multiply(right, first[0]),
      bits,
      AGREED_BITS_AT_POINT,
      evaluation,
    );
    if (found === "apart") return 0;
    if (found === "unknown") return undefined;
    agreed++;
  }
  return agreed >= MIN_POINTS ? sign : undefined;
}
