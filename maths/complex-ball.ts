import { BALL_ONE, BALL_ZERO, type Ball, type BallArithmetic, magnitude, signOf } from "./ball.ts";
import { NotJudged } from "./work-budget.ts";

/** A complex number of two balls; real ones have no imaginary part at all, and take half the work. */
export interface ComplexBall {
  readonly re: Ball;
  readonly im: Ball | null;
}

export class ComplexArithmetic {
  readonly real: BallArithmetic;

  constructor(real: BallArithmetic) {
    this.real = real;
  }

  add(a: ComplexBall, b: ComplexBall): ComplexBall {
    const im = a.im === null ? b.im : b.im === null ? a.im : this.real.add(a.im, b.im);
    return { re: this.real.add(a.re, b.re), im };
  }

  negate(a: ComplexBall): ComplexBall {
    return { re: this.real.negate(a.re), im: a.im === null ? null : this.real.negate(a.im) };
  }

  multiply(a: ComplexBall, b: ComplexBall): ComplexBall {
    const r = this.real;
    if (a.im === null && b.im === null) return { re: r.multiply(a.re, b.re), im: null };
    const [ai, bi] = [a.im ?? BALL_ZERO, b.im ?? BALL_ZERO];
    return simplified({
      re: r.subtract(r.multiply(a.re, b.re), r.multiply(ai, bi)),
      im: r.add(r.multiply(a.re, bi), r.multiply(ai, b.re)),
    });
  }

  reciprocal(a: ComplexBall): ComplexBall {
    const r = this.real;
    if (a.im === null) return { re: r.divide(BALL_ONE, a.re), im: null };
    const square = r.add(r.multiply(a.re, a.re), r.multiply(a.im, a.im));
    return { re: r.divide(a.re, square), im: r.divide(r.negate(a.im), square) };
  }

  absolute(a: ComplexBall): ComplexBall {
    const r = this.real;
    if (a.im !== null) return { re: r.sqrt(r.add(r.multiply(a.re, a.re), r.multiply(a.im, a.im))), im: null };
    return { re: a.re.mantissa < 0n ? r.negate(a.re) : a.re, im: null };
  }

  /** By squaring, |exponent| a few thousand at most. */
  integerPower(base: ComplexBall, exponent: number): ComplexBall {
    let result: ComplexBall = { re: BALL_ONE, im: null };
    let square = base;
    for (let n = Math.abs(exponent); n > 0; n = Math.floor(n / 2)) {
      if (n % 2 === 1) result = this.multiply(result, square);
      if (n > 1) square = this.multiply(square, square);
    }
    return exponent < 0 ? this.reciprocal(result) : result;
  }

  exp(a: ComplexBall): ComplexBall {
    const size = this.real.exp(a.re);
    if (a.im === null) return { re: size, im: null };
    const [sine, cosine] = this.real.sinCos(a.im);
    return { re: this.real.multiply(size, cosine), im: this.real.multiply(size, sine) };
  }

  /** The principal root of any number. */
  sqrt(a: ComplexBall): ComplexBall {
    const r = this.real;
    if (a.im === null) {
      if (signOf(a.re) !== -1) return { re: r.sqrt(a.re), im: null };
      return { re: BALL_ZERO, im: r.sqrt(r.negate(a.re)) };
    }
    const size = this.absolute(a).re;
    const half = r.fromRational({ numerator: 1n, denominator: 2n });
    const im = r.sqrt(r.multiply(r.subtract(size, a.re), half));
    const sign = signOf(a.im);
    if (sign === undefined) throw new NotJudged("A number is not known well enough.");
    return { re: r.sqrt(r.multiply(r.add(size, a.re), half)), im: sign < 0 ? r.negate(im) : im };
  }
}

/** Without an imaginary part that is exactly 0. */
function simplified(a: ComplexBall): ComplexBall {
  return a.im !== null && signOf(a.im) === 0 ? { re: a.re, im: null } : a;
}

/** log₂ of a bound of |a|, errors left out. */
export function complexMagnitude(a: ComplexBall): number {
  return Math.max(magnitude(a.re), a.im === null ? Number.NEGATIVE_INFINITY : magnitude(a.im)) + 1;
}
