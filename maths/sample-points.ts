import type { Evaluation, Point } from "./evaluation.ts";
import { type Expression, type ExpressionTraits, number, substitute, sumsWithVariables } from "./expression.ts";
import { add, compare, divide, fromInteger, multiply, negate, type Rational } from "./rational.ts";
import { NotJudged, OutOfWork } from "./work-budget.ts";

/**
 * Where formulas are compared. The value of a variable depends on its name and the point's number alone, so that both sides see the same and a
 * verdict can be repeated; it has 24 random bits, so that no formula is likely to have a special value there.
 */

const POINTS = 12;
const PIECEWISE_POINTS = 24;
/** All positive and not far from 1, for logarithms, roots and towers of powers. */
const POSITIVE_POINTS = 4;
/** Then of any sign, still not far from 1; the rest up to 2^13. */
const NEAR_POINTS = 8;

export function* samplePoints(variables: string[], traits: Pick<ExpressionTraits, "isDiscrete" | "isPiecewise">): Generator<Point> {
  const count = traits.isPiecewise ? PIECEWISE_POINTS : POINTS;
  for (let index = 0; index < count; index++) {
    yield new Map(variables.map((name) => [name, traits.isDiscrete ? wholeAt(name, index) : valueAt(name, index)]));
  }
}

const VALUE_BITS = 24n;

function valueAt(name: string, index: number): Rational {
  const random = hash(name, index);
  const mantissa = (1n << VALUE_BITS) + BigInt(random % (1 << Number(VALUE_BITS)));
  const spread = hash(`${name}#`, index);
  const exponent = index < POSITIVE_POINTS ? (spread % 3) - 2 : index < NEAR_POINTS ? (spread % 5) - 3 : (spread % 16) - 3;
  const sign = index < POSITIVE_POINTS || (spread >> 8) % 2 === 0 ? 1n : -1n;
  // Odd, so that it is in lowest terms.
  return { numerator: sign * (mantissa | 1n), denominator: 1n << (VALUE_BITS - BigInt(exponent)) };
}

/** Small first: a factorial is defined from 0 on, and large ones cost much. */
function wholeAt(name: string, index: number): Rational {
  return { numerator: BigInt(1 + (hash(name, index) % (6 + 3 * index))), denominator: 1n };
}

const MAX_KINKS = 8;
const MAX_KINKED_VARIABLES = 3;

/**
 * Further points for formulas with |…| and the like, which say one thing here and another there: on both sides of and between the places where
 * a sum in them is zero, one variable at a time. The places are right for sums that are linear, as in |x − 5|.
 */
export function pointsBetweenKinks(expressions: Expression[], variables: string[], evaluation: Evaluation): Point[] {
  const sums = expressions.flatMap((expression) => sumsWithVariables(expression, MAX_KINKS));
  const base = new Map(variables.map((name) => [name, valueAt(name, 0)]));
  return variables.slice(0, MAX_KINKED_VARIABLES).flatMap((variable) => {
    const zeros = sums.map((sum) => zeroOf(sum, variable, base, evaluation)).filter((zero) => zero !== undefined);
    const places = zeros.toSorted(compare).filter((zero, i, all) => i === 0 || compare(all[i - 1]!, zero) !== 0);
    return between(places, evaluation).map((value) => new Map([...base, [variable, value]]));
  });
}

function between(places: Rational[], { work }: Evaluation): Rational[] {
  const [first, last] = [places[0], places.at(-1)];
  if (first === undefined || last === undefined) return [];
  const middles = places.slice(1).map((place, i) => multiply(add(places[i]!, place, work), { numerator: 1n, denominator: 2n }, work));
  return [add(first, fromInteger(-1), work), ...middles, add(last, fromInteger(1), work)];
}

function zeroOf(sum: Expression, variable: string, base: Point, evaluation: Evaluation): Rational | undefined {
  let bound = sum;
  for (const [name, value] of base) if (name !== variable) bound = substitute(bound, name, number(value));
  try {
    const [at0, at1] = [0, 1].map((x) => evaluation.exact(substitute(bound, variable, number(x))));
    if (at0 === undefined || at1 === undefined || compare(at0, at1) === 0) return undefined;
    return divide(at0, add(at0, negate(at1), evaluation.work), evaluation.work);
  } catch (error) {
    if (error instanceof OutOfWork || !(error instanceof NotJudged)) throw error;
    return undefined;
  }
}

/** FNV-1a over both, then mixed; 31 bits. */
function hash(name: string, index: number): number {
  let h = 0x811c9dc5;
  for (const c of `${name}:${index}`) h = Math.imul(h ^ c.codePointAt(0)!, 0x01000193);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39);
  return (h ^ (h >>> 15)) >>> 1;
}
