import { bitLength, floorSqrt, type Rational } from "./rational.ts";
import { NotJudged, Undefined, type WorkBudget } from "./work-budget.ts";

/**
 * A real number that is known up to a bound: mantissa · 2^exponent, at most 2^error away from the true value. Every operation widens the bound by
 * what its inputs' bounds and its own rounding can amount to, so that "these differ" is a proof, and "these are the same" is said only to a known depth.
 */
export interface Ball {
  readonly mantissa: bigint;
  readonly exponent: number;
  /** log₂ of the bound; −∞ for an exact number. */
  readonly error: number;
}

const EXACT = Number.NEGATIVE_INFINITY;
/** Numbers beyond 2^±this are not computed with. */
const MAX_EXPONENT = 1_000_000;
/** Fixed-point series are carried this much further than their result is used. */
const GUARD_BITS = 32;

export const BALL_ZERO: Ball = { mantissa: 0n, exponent: 0, error: EXACT };
export const BALL_ONE: Ball = { mantissa: 1n, exponent: 0, error: EXACT };

/** log₂ of a bound of |a|, its error left out; −∞ for 0. */
export function magnitude(a: Ball): number {
  return a.mantissa === 0n ? EXACT : bitLength(a.mantissa) + a.exponent;
}

/** log₂(2^a + 2^b). */
function logSum(a: number, b: number): number {
  const [low, high] = a < b ? [a, b] : [b, a];
  return low === EXACT ? high : high + Math.log2(1 + 2 ** (low - high));
}

/** −1 or 1 when the whole ball is on that side of 0; 0 for exactly 0; undefined when that can't be said. */
export function signOf(a: Ball): -1 | 0 | 1 | undefined {
  if (a.mantissa === 0n) return a.error === EXACT ? 0 : undefined;
  if (magnitude(a) - 1 <= a.error) return undefined;
  return a.mantissa < 0n ? -1 : 1;
}

const shifted = (n: bigint, by: number) => (by >= 0 ? n << BigInt(by) : n >> BigInt(-by));

export class BallArithmetic {
  readonly bits: number;
  readonly #work: WorkBudget;
  readonly #seriesCost: number;

  constructor(bits: number, work: WorkBudget) {
    this.bits = bits;
    this.#work = work;
    this.#seriesCost = 20 * (bits / 128) ** 1.5;
  }

  #round(mantissa: bigint, exponent: number, error: number): Ball {
    const surplus = bitLength(mantissa) - this.bits;
    if (surplus <= 0) return this.#checked({ mantissa, exponent, error });
    return this.#checked({ mantissa: mantissa >> BigInt(surplus), exponent: exponent + surplus, error: logSum(error, exponent + surplus) });
  }

  #checked(a: Ball): Ball {
    this.#work.spend(1 + this.bits / 500);
    if (Math.abs(a.exponent) > MAX_EXPONENT) throw new NotJudged("A number is too large or too small.");
    return a;
  }

  fromRational(r: Rational): Ball {
    if (r.denominator === 1n) return this.#round(r.numerator, 0, EXACT);
    const shift = Math.max(0, this.bits + 8 + bitLength(r.denominator) - bitLength(r.numerator));
    return this.#round((r.numerator << BigInt(shift)) / r.denominator, -shift, -shift);
  }

  add(a: Ball, b: Ball): Ball {
    const [low, high] = a.exponent < b.exponent ? [a, b] : [b, a];
    const gap = high.exponent - low.exponent;
    const error = logSum(a.error, b.error);
    if (high.mantissa !== 0n && low.mantissa !== 0n && gap > 4 * this.bits) {
      // What the smaller one adds is below the rounding.
      const larger = magnitude(a) > magnitude(b) ? a : b;
      const smaller = larger === a ? b : a;
      return this.#round(larger.mantissa, larger.exponent, logSum(error, magnitude(smaller)));
    }
    if (low.mantissa === 0n) return this.#round(high.mantissa, high.exponent, error);
    if (high.mantissa === 0n) return this.#round(low.mantissa, low.exponent, error);
    return this.#round((high.mantissa << BigInt(gap)) + low.mantissa, low.exponent, error);
  }

  negate(a: Ball): Ball {
    return { ...a, mantissa: -a.mantissa };
  }

  subtract(a: Ball, b: Ball): Ball {
    return this.add(a, this.negate(b));
  }

  multiply(a: Ball, b: Ball): Ball {
    const error = logSum(logSum(product(magnitude(a), b.error), product(magnitude(b), a.error)), product(a.error, b.error));
    return this.#round(a.mantissa * b.mantissa, a.exponent + b.exponent, error);
  }

  divide(a: Ball, b: Ball): Ball {
    const sign = signOf(b);
    if (sign === 0) throw new Undefined("It divides by zero.");
    if (sign === undefined) throw new NotJudged("It may divide by zero.");
    const shift = Math.max(0, this.bits + 8 + bitLength(b.mantissa) - bitLength(a.mantissa));
    const exponent = a.exponent - b.exponent - shift;
    // |b| is at least 2^floor once its error is taken off.
    const floor =
      b.error === EXACT || b.error < magnitude(b) - 3 ? magnitude(b) - 1.5 : Math.log2(2 ** (magnitude(b) - 1 - b.error) - 1) + b.error;
    const error = logSum(a.error - floor, product(magnitude(a), b.error) - floor - (magnitude(b) - 1));
    return this.#round((a.mantissa << BigInt(shift)) / b.mantissa, exponent, logSum(error, exponent));
  }

  /** Of a ball that isn't wholly below 0. */
  sqrt(a: Ball): Ball {
    const sign = signOf(a);
    if (sign === 0) return BALL_ZERO;
    if (sign === undefined) return { mantissa: 0n, exponent: 0, error: (logSum(magnitude(a), a.error) + 1) / 2 };
    if (sign < 0) throw new Undefined("It takes an even root of a negative number.");
    this.#work.spend(this.#seriesCost / 4);
    let shift = Math.max(0, 2 * this.bits + 2 - bitLength(a.mantissa));
    if ((a.exponent - shift) % 2 !== 0) shift++;
    const exponent = (a.exponent - shift) / 2;
    const mantissa = floorSqrt(a.mantissa << BigInt(shift));
    return this.#round(mantissa, exponent, logSum(a.error - (magnitude(a) - 2) / 2, exponent));
  }

  /** As a whole number in units of 2^-bits. */
  #fixed(a: Ball, bits: number): bigint {
    return shifted(a.mantissa, a.exponent + bits);
  }

  exp(a: Ball): Ball {
    if (magnitude(a) > 20) throw new NotJudged("A number is too large or too small.");
    if (a.error > -2) throw new NotJudged("A number is not known well enough.");
    this.#work.spend(this.#seriesCost);
    const bits = this.bits + GUARD_BITS;
    const x = this.#fixed(a, bits);
    const ln2 = naturalLogOf2(bits);
    const times = x / ln2;
    const halvings = 8n;
    const r = (x - times * ln2) >> halvings;
    const one = 1n << BigInt(bits);
    let [sum, term] = [one, one];
    for (let n = 1n; term !== 0n; n++) {
      term = (term * r) >> BigInt(bits);
      term /= n;
      sum += term;
    }
    for (let i = 0n; i < halvings; i++) sum = (sum * sum) >> BigInt(bits);
    const exponent = Number(times) - bits;
    const top = bitLength(sum) + exponent;
    return this.#round(sum, exponent, logSum(a.error + top + 1, top - this.bits));
  }

  /** Of a ball wholly above 0. */
  ln(a: Ball): Ball {
    const sign = signOf(a);
    if (sign === undefined) throw new NotJudged("A number is not known well enough.");
    if (sign <= 0) throw new Undefined("It takes a logarithm of a number that is not positive.");
    if (a.error > magnitude(a) - 3) throw new NotJudged("A number is not known well enough.");
    this.#work.spend(this.#seriesCost);
    const bits = this.bits + GUARD_BITS;
    let twos = magnitude(a);
    // y in [3/4, 3/2): near 1 nothing cancels against the twos.
    let y = shifted(a.mantissa, bits - bitLength(a.mantissa));
    const one = 1n << BigInt(bits);
    if (4n * y < 3n * one) {
      y <<= 1n;
      twos--;
    }
    const logarithm = 2n * inverseTangent(((y - one) << BigInt(bits)) / (y + one), bits, 1n) + BigInt(twos) * naturalLogOf2(bits);
    const fromInput = a.error - (magnitude(a) - 1) + 1;
    return this.#round(logarithm, -bits, logSum(fromInput, Math.log2(Math.abs(twos) + 1) - bits + 8));
  }

  /** [sine, cosine] */
  sinCos(a: Ball): [Ball, Ball] {
    if (magnitude(a) > 64) throw new NotJudged("An angle is too large.");
    if (a.error > -2) throw new NotJudged("A number is not known well enough.");
    this.#work.spend(2 * this.#seriesCost);
    const bits = this.bits + GUARD_BITS + Math.max(0, Math.ceil(magnitude(a) === EXACT ? 0 : magnitude(a)));
    const halfPi = circleNumber(bits) >> 1n;
    const x = this.#fixed(a, bits);
    let turns = x / halfPi;
    let r = x - turns * halfPi;
    if (2n * r > halfPi) {
      r -= halfPi;
      turns++;
    } else if (2n * r < -halfPi) {
      r += halfPi;
      turns--;
    }
    const one = 1n << BigInt(bits);
    let [cosine, sine] = [0n, 0n];
    let term = one;
    for (let n = 0n; term !== 0n; n++) {
      const part = n % 4n < 2n ? term : -term;
      if (n % 2n === 0n) cosine += part;
      else sine += part;
      term = ((term * r) >> BigInt(bits)) / (n + 1n);
    }
    const error = logSum(a.error, -this.bits - GUARD_BITS + 8);
    const [s, c] = [this.#round(sine, -bits, error), this.#round(cosine, -bits, error)];
    const quarter = ((turns % 4n) + 4n) % 4n;
    if (quarter === 0n) return [s, c];
    if (quarter === 1n) return [c, this.negate(s)];
    if (quarter === 2n) return [this.negate(s), this.negate(c)];
    return [this.negate(c), s];
  }

  atan(a: Ball): Ball {
    this.#work.spend(2 * this.#seriesCost);
    const bits = this.bits + GUARD_BITS;
    const error = logSum(a.error, 12 - bits);
    if (magnitude(a) > this.bits)
      return this.#round((circleNumber(bits) >> 1n) * (a.mantissa < 0n ? -1n : 1n), -bits, logSum(error, 1 - this.bits));
    const one = 1n << BigInt(bits);
    let x = this.#fixed(a, bits);
    const isLarge = x > one || x < -one;
    if (isLarge) x = (one << BigInt(bits)) / x;
    for (let i = 0; i < 3; i++) x = (x << BigInt(bits)) / (one + floorSqrt((one << BigInt(bits)) + x * x));
    let angle = inverseTangent(x, bits, -1n) << 3n;
    if (isLarge) angle = (a.mantissa < 0n ? -1n : 1n) * (circleNumber(bits) >> 1n) - angle;
    return this.#round(angle, -bits, error);
  }

  pi(): Ball {
    const bits = this.bits + GUARD_BITS;
    return this.#round(circleNumber(bits), -bits, 4 - bits);
  }
}

/** log₂ of a product of which one factor may be 0. */
function product(a: number, b: number): number {
  return a === EXACT || b === EXACT ? EXACT : a + b;
}

/** x + sign·x³/3 + x⁵/5 + …: the inverse tangent (sign −1) or the inverse hyperbolic tangent (1), |x| well below 1, in units of 2^-bits. */
function inverseTangent(x: bigint, bits: number, sign: 1n | -1n): bigint {
  const square = sign * ((x * x) >> BigInt(bits));
  let [sum, power] = [x, x];
  for (let n = 3n; power !== 0n && power !== -1n; n += 2n) {
    power = (power * square) >> BigInt(bits);
    sum += power / n;
  }
  return sum;
}

const circleNumbers = new Map<number, bigint>();
const logarithms = new Map<number, bigint>();

/** π by Machin's formula, in units of 2^-bits. */
function circleNumber(bits: number): bigint {
  return cached(circleNumbers, bits, (one) => 16n * inverseTangent(one / 5n, bits, -1n) - 4n * inverseTangent(one / 239n, bits, -1n));
}

function naturalLogOf2(bits: number): bigint {
  return cached(logarithms, bits, (one) => 2n * inverseTangent(one / 3n, bits, 1n));
}

function cached(known: Map<number, bigint>, bits: number, compute: (one: bigint) => bigint): bigint {
  let value = known.get(bits);
  if (value === undefined) {
    value = compute(1n << BigInt(bits));
    known.set(bits, value);
  }
  return value;
}
