import { BALL_ONE, BALL_ZERO, type Ball, BallArithmetic, signOf } from "./ball.ts";
import { ComplexArithmetic, type ComplexBall } from "./complex-ball.ts";
import type { Expression, FunctionName } from "./expression.ts";
import * as rational from "./rational.ts";
import { bitLength, fromInteger, isInteger, ONE, type Rational } from "./rational.ts";
import { NotJudged, OutOfWork, Undefined, type WorkBudget } from "./work-budget.ts";

/** Where the variables are. */
export type Point = ReadonlyMap<string, Rational>;

const MAX_FACTORIAL = 5000;
const MAX_SQUARED_POWER = 4096;

type Call = Extract<Expression, { kind: "call" }>;

/** Values of expressions, exact where they are fractions and can be kept, else as balls. */
export class Evaluation {
  readonly work: WorkBudget;
  readonly #exact = new WeakMap<Expression, { value: Rational | undefined }>();

  constructor(work: WorkBudget) {
    this.work = work;
  }

  /** The value if it is a fraction and was found to be one; undefined else. @throws Undefined where there is none. */
  exact(expression: Expression): Rational | undefined {
    if (expression.kind === "number") return expression.value;
    if (expression.kind !== "call") return undefined;
    const known = this.#exact.get(expression);
    if (known !== undefined) return known.value;
    this.work.spend(0.5);
    let value: Rational | undefined;
    try {
      const args = expression.args.map((arg) => this.exact(arg));
      if (args.every((arg) => arg !== undefined)) value = exactCall(expression.name, args, this.work);
    } catch (error) {
      // Too long to be kept exactly.
      if (!(error instanceof NotJudged) || error instanceof Undefined || error instanceof OutOfWork) throw error;
    }
    this.#exact.set(expression, { value });
    return value;
  }

  /** At this point, to some `bits`. Reals only, unless `complex`. @throws Undefined, NotJudged */
  at(point: Point, bits: number, complex: boolean): (expression: Expression) => ComplexBall {
    const evaluator = new PointEvaluation(this, point, new ComplexArithmetic(new BallArithmetic(bits, this.work)), complex);
    return (expression) => evaluator.value(expression);
  }
}

function exactCall(name: FunctionName, args: Rational[], work: WorkBudget): Rational | undefined {
  const [a, b] = args as [Rational, Rational];
  switch (name) {
    case "add":
      return args.reduce((sum, term) => rational.add(sum, term, work));
    case "multiply":
      return args.reduce((product, factor) => rational.multiply(product, factor, work));
    case "negate":
      return rational.negate(a);
    case "reciprocal":
      return rational.divide(ONE, a, work);
    case "absolute":
      return a.numerator < 0n ? rational.negate(a) : a;
    case "floor":
      return fromInteger(floorOf(a));
    case "ceiling":
      return fromInteger(-floorOf(rational.negate(a)));
    case "power": {
      if (isInteger(b)) return rational.power(a, b.numerator, work);
      if (b.denominator > 1000n) return undefined;
      const root = rational.root(a, Number(b.denominator), work);
      return root === undefined ? undefined : rational.power(root, b.numerator, work);
    }
    case "root":
      return isInteger(b) && b.numerator > 0n && b.numerator <= 1000n ? rational.root(a, Number(b.numerator), work) : undefined;
    case "factorial":
      return fromInteger(productOf(1n, factorialArgument(a), work));
    case "binomial":
      return binomial(a, b, work);
    case "exp":
      return a.numerator === 0n ? ONE : undefined;
    default:
      return undefined;
  }
}

function floorOf({ numerator, denominator }: Rational): bigint {
  const quotient = numerator / denominator;
  return numerator < 0n && quotient * denominator !== numerator ? quotient - 1n : quotient;
}

function factorialArgument(a: Rational): bigint {
  if (!isInteger(a) || a.numerator < 0n) throw new Undefined("It takes a factorial of what is not a natural number.");
  if (a.numerator > MAX_FACTORIAL) throw new NotJudged("A factorial is too large.");
  return a.numerator;
}

function productOf(from: bigint, to: bigint, work: WorkBudget): bigint {
  let product = 1n;
  for (let n = from; n <= to; n++) {
    product *= n;
    work.spend(0.2 + bitLength(n) / 100);
  }
  return product;
}

function binomial(n: Rational, k: Rational, work: WorkBudget): Rational {
  const [top, bottom] = [factorialArgument(n), factorialArgument(k)];
  if (bottom > top) return fromInteger(0);
  const small = bottom * 2n > top ? top - bottom : bottom;
  return fromInteger(productOf(top - small + 1n, top, work) / productOf(1n, small, work));
}

class PointEvaluation {
  readonly #evaluation: Evaluation;
  readonly #point: Point;
  readonly #arithmetic: ComplexArithmetic;
  readonly #complex: boolean;

  constructor(evaluation: Evaluation, point: Point, arithmetic: ComplexArithmetic, complex: boolean) {
    this.#evaluation = evaluation;
    this.#point = point;
    this.#arithmetic = arithmetic;
    this.#complex = complex;
  }

  value(expression: Expression): ComplexBall {
    const real = this.#arithmetic.real;
    const exact = this.#evaluation.exact(expression);
    if (exact !== undefined) return { re: real.fromRational(exact), im: null };
    switch (expression.kind) {
      case "number":
        return { re: real.fromRational(expression.value), im: null };
      case "variable": {
        const value = this.#point.get(expression.name);
        if (value === undefined) throw new NotJudged("A variable has no value.");
        return { re: real.fromRational(value), im: null };
      }
      case "constant":
        if (expression.name === "pi") return { re: real.pi(), im: null };
        if (expression.name === "e") return { re: real.exp(BALL_ONE), im: null };
        if (expression.name === "i") return { re: BALL_ZERO, im: BALL_ONE };
        throw new NotJudged("It computes with infinity.");
      case "call":
        return this.#call(expression);
    }
  }

  #call(expression: Call): ComplexBall {
    const c = this.#arithmetic;
    if (expression.name === "power") return this.#power(expression.args[0]!, expression.args[1]!);
    if (expression.name === "root") return this.#root(expression.args[0]!, expression.args[1]!);
    if (["factorial", "binomial", "floor", "ceiling"].includes(expression.name)) return this.#discrete(expression);
    const args = expression.args.map((arg) => this.value(arg));
    const [a, b] = args as [ComplexBall, ComplexBall];
    switch (expression.name) {
      case "add":
        return args.reduce((sum, term) => c.add(sum, term));
      case "multiply":
        return args.reduce((product, factor) => c.multiply(product, factor));
      case "negate":
        return c.negate(a);
      case "reciprocal":
        return c.reciprocal(a);
      case "absolute":
        return c.absolute(a);
      case "exp":
        return c.exp(a);
      case "log":
        return { re: c.real.divide(c.real.ln(realPart(a)), c.real.ln(realPart(b))), im: null };
      default:
        return { re: this.#realFunction(expression.name, realPart(a)), im: null };
    }
  }

  #realFunction(name: FunctionName, x: Ball): Ball {
    const r = this.#arithmetic.real;
    const half = r.fromRational({ numerator: 1n, denominator: 2n });
    switch (name) {
      case "ln":
        return r.ln(x);
      case "sin":
        return r.sinCos(x)[0];
      case "cos":
        return r.sinCos(x)[1];
      case "tan":
        return r.divide(...r.sinCos(x));
      case "cot": {
        const [sine, cosine] = r.sinCos(x);
        return r.divide(cosine, sine);
      }
      case "sec":
        return r.divide(BALL_ONE, r.sinCos(x)[1]);
      case "csc":
        return r.divide(BALL_ONE, r.sinCos(x)[0]);
      case "arctan":
        return r.atan(x);
      case "arcsin":
        return this.#arcsine(x);
      case "arccos":
        return r.subtract(r.multiply(r.pi(), half), this.#arcsine(x));
      case "sinh":
        return r.multiply(r.subtract(r.exp(x), r.exp(r.negate(x))), half);
      case "cosh":
        return r.multiply(r.add(r.exp(x), r.exp(r.negate(x))), half);
      case "tanh": {
        const [up, down] = [r.exp(x), r.exp(r.negate(x))];
        return r.divide(r.subtract(up, down), r.add(up, down));
      }
      default:
        throw new NotJudged("It has a function that is not known.");
    }
  }

  /** arcsin x = 2·arctan(x / (1 + √(1 − x²))) */
  #arcsine(x: Ball): Ball {
    const r = this.#arithmetic.real;
    const rest = r.subtract(BALL_ONE, r.multiply(x, x));
    if (signOf(rest) === -1) throw new Undefined("It takes an inverse sine beyond 1.");
    const angle = r.atan(r.divide(x, r.add(BALL_ONE, r.sqrt(rest))));
    return r.add(angle, angle);
  }

  /** Functions of whole numbers, at points that are whole. */
  #discrete(expression: Call): ComplexBall {
    const args = expression.args.map((arg) => this.#exactAtPoint(arg));
    if (!args.every((arg) => arg !== undefined)) throw new NotJudged("It has a step at a number that is not known exactly.");
    const value = exactCall(expression.name, args, this.#evaluation.work)!;
    return { re: this.#arithmetic.real.fromRational(value), im: null };
  }

  #exactAtPoint(expression: Expression): Rational | undefined {
    if (expression.kind === "number") return expression.value;
    if (expression.kind === "variable") return this.#point.get(expression.name);
    if (expression.kind === "constant") return undefined;
    const args = expression.args.map((arg) => this.#exactAtPoint(arg));
    return args.every((arg) => arg !== undefined) ? exactCall(expression.name, args, this.#evaluation.work) : undefined;
  }

  #root(radicand: Expression, degree: Expression): ComplexBall {
    const n = this.#evaluation.exact(degree);
    if (n === undefined || !isInteger(n) || n.numerator < 1n) throw new NotJudged("It has a root of an unusual degree.");
    return this.#rationalPower(this.value(radicand), rational.divide(ONE, n, this.#evaluation.work));
  }

  #power(base: Expression, exponent: Expression): ComplexBall {
    const c = this.#arithmetic;
    const exactExponent = this.#evaluation.exact(exponent);
    if (exactExponent !== undefined) return this.#rationalPower(this.value(base), exactExponent);
    if (base.kind === "constant" && base.name === "e") return c.exp(this.value(exponent));
    const wholeExponent = this.#exactAtPoint(exponent);
    if (wholeExponent !== undefined && isInteger(wholeExponent)) return this.#rationalPower(this.value(base), wholeExponent);
    const power = this.value(exponent);
    const positive = realPart(this.value(base));
    if (signOf(positive) !== 1) throw new Undefined("It takes a power of a number that is not positive.");
    return c.exp(c.multiply(power, { re: c.real.ln(positive), im: null }));
  }

  #rationalPower(base: ComplexBall, exponent: Rational): ComplexBall {
    const c = this.#arithmetic;
    const r = c.real;
    if (isInteger(exponent)) {
      if (exponent.numerator === 0n) {
        if (base.im === null && signOf(base.re) === 0) throw new Undefined("It takes zero to the power zero.");
        return { re: BALL_ONE, im: null };
      }
      const size = exponent.numerator < 0n ? -exponent.numerator : exponent.numerator;
      if (size <= MAX_SQUARED_POWER) return c.integerPower(base, Number(exponent.numerator));
    }
    if (exponent.denominator === 2n && (this.#complex || signOf(realPart(base)) !== -1)) {
      return this.#rationalPower(c.sqrt(base), fromInteger(exponent.numerator));
    }
    const x = realPart(base);
    const sign = signOf(x);
    if (sign === 0) {
      if (exponent.numerator < 0n) throw new Undefined("It divides by zero.");
      return { re: BALL_ZERO, im: null };
    }
    if (sign === undefined) throw new NotJudged("A number is not known well enough.");
    if (sign === -1 && exponent.denominator % 2n === 0n) throw new Undefined("It takes an even root of a negative number.");
    const size = r.exp(r.multiply(r.fromRational(exponent), r.ln(sign === -1 ? r.negate(x) : x)));
    return { re: sign === -1 && exponent.numerator % 2n !== 0n ? r.negate(size) : size, im: null };
  }
}

function realPart(a: ComplexBall): Ball {
  if (a.im === null) return a.re;
  throw new NotJudged("It takes a complex number where only real ones are understood.");
}
