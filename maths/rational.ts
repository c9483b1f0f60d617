import { NotJudged, Undefined, type WorkBudget } from "./work-budget.ts";

/** A fraction in lowest terms with a denominator above 0. */
export interface Rational {
  readonly numerator: bigint;
  readonly denominator: bigint;
}

const ZERO: Rational = { numerator: 0n, denominator: 1n };
export const ONE: Rational = { numerator: 1n, denominator: 1n };

/** Beyond this, 2000 decimal digits, an exact value is not kept. */
const MAX_FRACTION_BITS = 8192;
/** Whole numbers need no greatest common divisor, so that they may be longer. */
const MAX_INTEGER_BITS = 65_536;

export function bitLength(n: bigint): number {
  const hex = (n < 0n ? -n : n).toString(16);
  return hex === "0" ? 0 : 4 * hex.length - Math.clz32(Number.parseInt(hex[0]!, 16)) + 28;
}

export function gcd(a: bigint, b: bigint): bigint {
  let [x, y] = [a < 0n ? -a : a, b < 0n ? -b : b];
  while (y !== 0n) [x, y] = [y, x % y];
  return x;
}

export function fromInteger(n: bigint | number): Rational {
  return { numerator: BigInt(n), denominator: 1n };
}

/** @throws NotJudged for a denominator of 0 or too long numbers. */
export function fraction(numerator: bigint, denominator: bigint, work: WorkBudget): Rational {
  if (denominator === 0n) throw new Undefined("It divides by zero.");
  const bits = Math.max(bitLength(numerator), bitLength(denominator));
  if (denominator === 1n) {
    if (bits > MAX_INTEGER_BITS) throw new NotJudged("A number is too long.");
    work.spend(1 + bits / 1000);
    return { numerator, denominator };
  }
  if (bits > MAX_FRACTION_BITS) throw new NotJudged("A number is too long.");
  work.spend(1 + (bits / 200) ** 2);
  const common = gcd(numerator, denominator) * (denominator < 0n ? -1n : 1n);
  return { numerator: numerator / common, denominator: denominator / common };
}

export function add(a: Rational, b: Rational, work: WorkBudget): Rational {
  return fraction(a.numerator * b.denominator + b.numerator * a.denominator, a.denominator * b.denominator, work);
}

export function multiply(a: Rational, b: Rational, work: WorkBudget): Rational {
  return fraction(a.numerator * b.numerator, a.denominator * b.denominator, work);
}

export function divide(a: Rational, b: Rational, work: WorkBudget): Rational {
  return fraction(a.numerator * b.denominator, a.denominator * b.numerator, work);
}

export function negate(a: Rational): Rational {
  return { numerator: -a.numerator, denominator: a.denominator };
}

export function compare(a: Rational, b: Rational): -1 | 0 | 1 {
  const difference = a.numerator * b.denominator - b.numerator * a.denominator;
  return difference < 0n ? -1 : difference > 0n ? 1 : 0;
}

export function isInteger(a: Rational): boolean {
  return a.denominator === 1n;
}

/** `base` to a whole power. @throws NotJudged for 0 to a power ≤ 0 or a result that is too long. */
export function power(base: Rational, exponent: bigint, work: WorkBudget): Rational {
  if (base.numerator === 0n) {
    if (exponent <= 0n) throw new Undefined("It takes zero to a power that is not positive.");
    return ZERO;
  }
  const times = exponent < 0n ? -exponent : exponent;
  const bits = Math.max(bitLength(base.numerator), bitLength(base.denominator));
  const limit = base.denominator === 1n && exponent > 0n ? MAX_INTEGER_BITS : MAX_FRACTION_BITS;
  const isUnit = base.denominator === 1n && (base.numerator === 1n || base.numerator === -1n);
  if (isUnit) return base.numerator === 1n || times % 2n === 0n ? ONE : negate(ONE);
  if (times * BigInt(bits - 1) > BigInt(limit)) throw new NotJudged("A number is too long.");
  work.spend(1 + (bits * Number(times)) / 100);
  // In lowest terms a power stays so.
  const [n, d] = [base.numerator ** times, base.denominator ** times];
  if (exponent > 0n) return { numerator: n, denominator: d };
  return n < 0n ? { numerator: -d, denominator: -n } : { numerator: d, denominator: n };
}

/** The exact root if it is a fraction, else undefined; of a negative number only for an odd degree. */
export function root(a: Rational, degree: number, work: WorkBudget): Rational | undefined {
  if (a.numerator < 0n) {
    if (degree % 2 === 0) return undefined;
    const positive = root(negate(a), degree, work);
    return positive === undefined ? undefined : negate(positive);
  }
  const numerator = integerRoot(a.numerator, degree, work);
  const denominator = integerRoot(a.denominator, degree, work);
  if (numerator === undefined || denominator === undefined) return undefined;
  return { numerator, denominator };
}

function integerRoot(n: bigint, degree: number, work: WorkBudget): bigint | undefined {
  if (n < 2n) return n;
  const bits = bitLength(n);
  if (degree >= bits) return undefined;
  work.spend(2 + (bits / 100) ** 2);
  const found = degree === 2 ? floorSqrt(n) : floorRoot(n, degree);
  return found ** BigInt(degree) === n ? found : undefined;
}

/** ⌊√n⌋ by Newton's method, from above. */
export function floorSqrt(n: bigint): bigint {
  if (n < 2n) return n;
  const bits = bitLength(n);
  const shift = Math.max(0, bits - 100) & ~1;
  // One more than the root of the leading bits is never too small.
  let x = (BigInt(Math.ceil(Math.sqrt(Number(n >> BigInt(shift))))) + 1n) << BigInt(shift / 2);
  if (shift > 0) x += 1n << BigInt(shift / 2);
  for (;;) {
    const next = (x + n / x) >> 1n;
    if (next >= x) return x;
    x = next;
  }
}

function floorRoot(n: bigint, degree: number): bigint {
  const d = BigInt(degree);
  let x = 1n << BigInt(Math.ceil(bitLength(n) / degree));
  for (;;) {
    const next = ((d - 1n) * x + n / x ** (d - 1n)) / d;
    if (next >= x) return x;
    x = next;
  }
}
