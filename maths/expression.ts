import { fromInteger, type Rational } from "./rational.ts";

/** What an answer says as a formula. Sums and products are flat, so that a long one is not a deep one. */
export type Expression =
  | { readonly kind: "number"; readonly value: Rational; readonly digits: DecimalDigits | null }
  | { readonly kind: "constant"; readonly name: "pi" | "e" | "i" | "infinity" }
  | { readonly kind: "variable"; readonly name: string }
  | { readonly kind: "call"; readonly name: FunctionName; readonly args: readonly Expression[] };

/** How a decimal was written; null for whole numbers and those that were computed. */
export interface DecimalDigits {
  afterPoint: number;
  significant: number;
}

export type FunctionName =
  | "add"
  | "multiply"
  | "negate"
  | "reciprocal"
  /** base, exponent */
  | "power"
  /** radicand, degree: the real root of odd degree of a negative number */
  | "root"
  | "absolute"
  | "floor"
  | "ceiling"
  | "factorial"
  | "binomial"
  | "exp"
  | "ln"
  /** argument, base */
  | "log"
  | "sin"
  | "cos"
  | "tan"
  | "cot"
  | "sec"
  | "csc"
  | "arcsin"
  | "arccos"
  | "arctan"
  | "sinh"
  | "cosh"
  | "tanh";

export const PI: Expression = { kind: "constant", name: "pi" };
export const E: Expression = { kind: "constant", name: "e" };

export function number(value: Rational | number, digits: DecimalDigits | null = null): Expression {
  return { kind: "number", value: typeof value === "number" ? fromInteger(value) : value, digits };
}

export function call(name: FunctionName, ...args: Expression[]): Expression {
  return { kind: "call", name, args };
}

export function sum(terms: Expression[]): Expression {
  return terms.length === 1 ? terms[0]! : call("add", ...terms);
}

export function product(factors: Expression[]): Expression {
  return factors.length === 1 ? factors[0]! : call("multiply", ...factors);
}

export function minus(a: Expression, b: Expression): Expression {
  return call("add", a, call("negate", b));
}

export function over(a: Expression, b: Expression): Expression {
  return call("multiply", a, call("reciprocal", b));
}

export interface ExpressionTraits {
  variables: Set<string>;
  hasImaginary: boolean;
  hasInfinity: boolean;
  /** Says something for whole numbers only, where it has variables. */
  isDiscrete: boolean;
  /** One formula here, another there: more points have to be looked at. */
  isPiecewise: boolean;
  /** Sums, products and whole powers of its variables. */
  isPolynomial: boolean;
}

export function traitsOf(...expressions: Expression[]): ExpressionTraits {
  const traits: ExpressionTraits = {
    variables: new Set(),
    hasImaginary: false,
    hasInfinity: false,
    isDiscrete: false,
    isPiecewise: false,
    isPolynomial: true,
  };
  const waiting = [...expressions];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    if (next.kind === "variable") traits.variables.add(next.name);
    else if (next.kind === "constant") {
      if (next.name === "i") traits.hasImaginary = true;
      if (next.name === "infinity") traits.hasInfinity = true;
    } else if (next.kind === "call") {
      if (["factorial", "binomial"].includes(next.name)) traits.isDiscrete = true;
      if (["absolute", "floor", "ceiling", "root"].includes(next.name) || isFractionalPower(next.name, next.args))
        traits.isPiecewise = true;
      if (!isPolynomialStep(next.name, next.args)) traits.isPolynomial = false;
      waiting.push(...next.args);
    }
  }
  return traits;
}

function isFractionalPower(name: FunctionName, [, exponent]: readonly Expression[]): boolean {
  return name === "power" && exponent?.kind === "number" && exponent.value.denominator !== 1n;
}

function isPolynomialStep(name: FunctionName, args: readonly Expression[]): boolean {
  if (["add", "multiply", "negate"].includes(name)) return true;
  if (!args.some(hasVariable)) return true;
  const exponent = args[1];
  return name === "power" && exponent?.kind === "number" && exponent.value.denominator === 1n && exponent.value.numerator > 0n;
}

export function hasVariable(expression: Expression): boolean {
  if (expression.kind === "variable") return true;
  return expression.kind === "call" && expression.args.some(hasVariable);
}

/** With `value` for the variable. */
export function substitute(expression: Expression, variable: string, value: Expression): Expression {
  if (expression.kind === "variable") return expression.name === variable ? value : expression;
  if (expression.kind !== "call") return expression;
  return { ...expression, args: expression.args.map((arg) => substitute(arg, variable, value)) };
}

/** Every sum in it that has a variable, itself included; at most `limit`. */
export function sumsWithVariables(expression: Expression, limit: number): Expression[] {
  const found: Expression[] = [];
  const waiting = [expression];
  for (let next = waiting.pop(); next !== undefined && found.length < limit; next = waiting.pop()) {
    if (next.kind !== "call") continue;
    if (next.name === "add" && next.args.some(hasVariable)) found.push(next);
    waiting.push(...next.args);
  }
  return found;
}
