import { call, E, type Expression, type FunctionName, number, over, PI, product, sum } from "./expression.ts";
import type { NumberText, Token } from "./latex.ts";
import { digitsOf, inBase, numeralValue } from "./numerals.ts";
import { add, fraction, type Rational } from "./rational.ts";
import { lettersOf, TokenCursor } from "./token-cursor.ts";
import { NotJudged, type WorkBudget } from "./work-budget.ts";

/**
 * Formulas, by recursive descent:
 *
 *     sum      = [sign] product { sign product }
 *     product  = factor { ("*" | "/") factor | factor }       a factor that simply follows multiplies
 *     factor   = { sign } power
 *     power    = primary { "!" | "°" | "^" exponent }
 *     primary  = number | mixed number | variable | constant | function | group | |sum|
 *
 * What has no sure meaning is not guessed: it throws, or is noted in `Reading` where two readings are common.
 */

/** Forms like 1/2x and sin x/2 are read in two ways, and count only where both come to the same. */
export interface Reading {
  /** 1/2x as 1/(2x), sin x/2 as sin(x/2). */
  tight: boolean;
  /** Set by the parser when the choice mattered. */
  isAmbiguous: boolean;
  /** A bare `log` has base 10 or, `natural`, e. */
  naturalLog: boolean;
  hasBareLog: boolean;
  work: WorkBudget;
}

/** @throws NotJudged unless all tokens make one formula. */
export function parseExpression(tokens: readonly Token[], reading: Reading): Expression {
  const parser = new Parser(tokens.flatMap(lettersOf), reading);
  return parser.whole();
}

const FUNCTIONS = new Map<string, FunctionName>(
  (["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp"] as const).map(
    (name) => [name, name],
  ),
);
const INVERSES: Partial<Record<FunctionName, FunctionName>> = { sin: "arcsin", cos: "arccos", tan: "arctan" };
const GREEK = new Set(
  "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar".split(
    " ",
  ),
);
const CLOSERS = new Map([
  ["(", ")"],
  ["[", "]"],
  ["{", "}"],
  ["⌊", "⌋"],
  ["⌈", "⌉"],
]);

class Parser extends TokenCursor {
  readonly #reading: Reading;
  /** Inside |…| a bar closes. */
  #bars = 0;

  constructor(tokens: Token[], reading: Reading) {
    super(tokens);
    this.#reading = reading;
    reading.work.spend(tokens.length);
  }

  whole(): Expression {
    const expression = this.#sum();
    if (this.peek() !== undefined) throw new NotJudged("It is not one formula.");
    return expression;
  }

  #sum(): Expression {
    return this.nested(() => {
      const terms = [this.#product()];
      while (this.isMark("+") || this.isMark("-")) {
        const isMinus = this.isMark("-");
        this.at++;
        const term = this.#product();
        terms.push(isMinus ? call("negate", term) : term);
      }
      return sum(terms);
    });
  }

  #product(): Expression {
    const isNegative = this.#signs();
    const factors = [this.#power()];
    let afterSlash = false;
    for (;;) {
      if (this.take("*")) {
        factors.push(this.#signedPower());
        afterSlash = false;
      } else if (this.take("/")) {
        const divisors = [this.#signedPower()];
        if (this.#startsFactor()) {
          this.#reading.isAmbiguous = true;
          if (this.#reading.tight) while (this.#startsFactor()) divisors.push(this.#power());
        }
        factors.push(call("reciprocal", product(divisors)));
        afterSlash = true;
      } else if (this.#startsFactor()) {
        if (afterSlash) this.#reading.isAmbiguous = true;
        factors.push(this.#power());
      } else break;
    }
    const value = product(factors);
    return isNegative ? call("negate", value) : value;
  }

  /** True for an odd number of minus signs. */
  #signs(): boolean {
    let isNegative = false;
    for (;;) {
      if (this.take("-")) isNegative = !isNegative;
      else if (!this.take("+")) return isNegative;
    }
  }

  #signedPower(): Expression {
    const isNegative = this.#signs();
    const value = this.#power();
    return isNegative ? call("negate", value) : value;
  }

  /** Whether what follows multiplies without a sign. */
  #startsFactor(): boolean {
    const token = this.peek();
    if (token === undefined) return false;
    if (token.kind === "mark") return CLOSERS.has(token.text) || (token.text === "|" && this.#bars === 0);
    if (token.kind !== "number") return true;
    const last = this.peek(-1);
    if (last?.kind === "mark" && /^[)\]}|⌋⌉]$/.test(last.text)) return true;
    throw new NotJudged("A number follows without a sign between.");
  }

  #power(): Expression {
    return this.nested(() => {
      let value = this.#primary();
      for (;;) {
        if (this.isMark("!") && this.isMark("!", 1)) throw new NotJudged("It has a double factorial.");
        if (this.take("!")) value = call("factorial", value);
        else if (this.take("°")) value = over(product([value, PI]), number(180));
        else if (this.take("^")) value = call("power", value, this.#exponent());
        else return value;
      }
    });
  }

  #exponent(): Expression {
    return this.nested(() => {
      if (this.isMark("{")) return this.#maybeTower(this.#group());
      const isNegative = this.#signs();
      const value = this.#maybeTower(this.#primary());
      return isNegative ? call("negate", value) : value;
    });
  }

  #maybeTower(base: Expression): Expression {
    return this.take("^") ? call("power", base, this.#exponent()) : base;
  }

  /** `{…}` */
  #group(): Expression {
    this.expect("{");
    const bars = this.#bars;
    this.#bars = 0;
    const value = this.#sum();
    this.#bars = bars;
    this.expect("}");
    return value;
  }

  #primary(): Expression {
    const token = this.peek();
    if (token === undefined) throw new NotJudged("It ends too early.");
    this.at++;
    if (token.kind === "number") return this.#numeral(token);
    if (token.kind === "letter") return this.#letter(token);
    if (token.kind === "command") return this.#command(token);
    if (token.text === "|") return this.#absolute();
    const closer = CLOSERS.get(token.text);
    if (closer === undefined) throw new NotJudged("It is not one formula.");
    const bars = this.#bars;
    this.#bars = 0;
    const value = this.#sum();
    this.#bars = bars;
    this.expect(closer);
    if (token.text === "⌊") return call("floor", value);
    return token.text === "⌈" ? call("ceiling", value) : value;
  }

  #absolute(): Expression {
    this.#bars++;
    const value = this.#sum();
    this.#bars--;
    this.expect("|");
    return call("absolute", value);
  }

  #numeral(token: Token): Expression {
    const text = token.number!;
    if (this.isMark("_")) return this.#based(text);
    const value = number(numeralValue(text, this.#reading.work), digitsOf(text));
    const isWhole = /^[0-9]+$/.test(token.text);
    const before = this.peek(-2);
    if (!isWhole || (before !== undefined && (before.kind !== "mark" || /^[\^)\]}!]$/.test(before.text)))) return value;
    const part = this.#properFraction();
    if (part === undefined) return value;
    return number(add((value as { value: Rational }).value, part, this.#reading.work));
  }

  /** What makes a number before it a mixed one: \frac{1}{2} or 1/2, both parts whole and less than one. */
  #properFraction(): Rational | undefined {
    const start = this.at;
    const part = this.#slashFraction() ?? this.#stackedFraction();
    if (part === undefined) {
      this.at = start;
      return undefined;
    }
    if (part.numerator >= part.denominator) throw new NotJudged("It is a mixed number with too large a fraction.");
    return part;
  }

  #slashFraction(): Rational | undefined {
    const [top, bottom] = [this.peek(), this.peek(2)];
    if (!(top?.kind === "number" && top.spaced && this.isMark("/", 1) && bottom?.kind === "number")) return undefined;
    this.at += 3;
    return this.#whole(top.text, bottom.text);
  }

  #stackedFraction(): Rational | undefined {
    if (this.peek()?.kind !== "command" || this.peek()?.text !== "frac") return undefined;
    this.at++;
    const [top, bottom] = this.#fractionArguments();
    if (top.kind !== "number" || bottom.kind !== "number" || top.digits !== null || bottom.digits !== null) return undefined;
    return this.#whole(String(top.value.numerator), String(bottom.value.numerator));
  }

  #whole(top: string, bottom: string): Rational | undefined {
    if (!/^[0-9]+$/.test(top) || !/^[0-9]+$/.test(bottom)) return undefined;
    return fraction(BigInt(top), BigInt(bottom), this.#reading.work);
  }

  /** 1011_2: digits in another base. */
  #based(text: NumberText): Expression {
    this.at++;
    const isBraced = this.take("{");
    const base = this.peek();
    if (base?.kind !== "number" || !/^[0-9]{1,2}$/.test(base.text)) throw new NotJudged("It has a number with an unusual index.");
    this.at++;
    if (isBraced) this.expect("}");
    return number(inBase(text, Number(base.text)));
  }

  #letter(token: Token): Expression {
    const index = this.isMark("_") ? this.#index() : "";
    let name = `${token.text}${index}`;
    while (this.take("'")) name += "'";
    if (name === "e") return E;
    if (name === "i") return { kind: "constant", name: "i" };
    if (/^[fg]'*$/.test(name) && this.isMark("(")) throw new NotJudged("It has a function that is not known.");
    return { kind: "variable", name };
  }

  /** `_1`, `_{n+1}`, as text. */
  #index(): string {
    this.expect("_");
    if (!this.isMark("{")) {
      const token = this.peek();
      if (token === undefined) throw new NotJudged("It ends too early.");
      this.at++;
      return `_${token.text}`;
    }
    let depth = 0;
    let text = "_";
    for (let token = this.peek(); token !== undefined; token = this.peek()) {
      this.at++;
      if (token.text === "{" && depth++ === 0) continue;
      if (token.text === "}" && --depth === 0) return text;
      text += token.text;
    }
    throw new NotJudged("A brace is not closed.");
  }

  #command(token: Token): Expression {
    const { text } = token;
    if (text === "pi") return PI;
    if (text === "infty") return { kind: "constant", name: "infinity" };
    if (GREEK.has(text)) return this.#letter(token);
    if (text === "frac") {
      const [top, bottom] = this.#fractionArguments();
      return over(top, bottom);
    }
    if (text === "binom") return call("binomial", ...this.#fractionArguments());
    if (text === "sqrt") return this.#squareRoot();
    const name = FUNCTIONS.get(text);
    if (name === undefined) throw new NotJudged("It has a command that is not understood.");
    return this.#function(name);
  }

  #fractionArguments(): [Expression, Expression] {
    const top = this.#argument(2);
    const bottom = this.#argument(1);
    return [top, bottom];
  }

  /** As TeX takes it: a group, or one digit, letter or command. A number of more than `maxDigits` has no sure meaning. */
  #argument(maxDigits: number): Expression {
    if (this.isMark("{")) return this.#group();
    const token = this.peek();
    if (token?.kind === "number") {
      if (!/^[0-9]+$/.test(token.text) || token.text.length > maxDigits) throw new NotJudged("It has a number without braces.");
      if (token.text.length === 1) this.at++;
      else this.replace({ ...token, text: token.text[1]!, spaced: false });
      return number(Number(token.text[0]));
    }
    if (token?.kind === "letter") {
      this.at++;
      return this.#letter(token);
    }
    if (token?.kind === "command") return this.nested(() => this.#primary());
    throw new NotJudged("It has a fraction without its parts.");
  }

  #squareRoot(): Expression {
    let degree: Expression = number(2);
    if (this.take("[")) {
      degree = this.#sum();
      this.expect("]");
    }
    const token = this.peek();
    // \sqrt12 is √1·2 for TeX and √12 for those who write it.
    if (token?.kind === "number" && token.text.length > 1 && !token.spaced) throw new NotJudged("It has a number without braces.");
    const radicand = this.isMark("{") ? this.#group() : this.nested(() => this.#primary());
    if (degree.kind === "number" && degree.value.numerator === 2n && degree.value.denominator === 1n) {
      return call("power", radicand, number({ numerator: 1n, denominator: 2n }));
    }
    return call("root", radicand, degree);
  }

  #function(name: FunctionName): Expression {
    let base: Expression | undefined;
    let exponent: Expression | undefined;
    for (;;) {
      if (name === "log" && base === undefined && this.take("_")) base = this.#argument(1);
      else if (exponent === undefined && this.take("^")) exponent = this.#exponent();
      else break;
    }
    const isInverse = exponent !== undefined && isMinusOne(exponent);
    const inverse = INVERSES[name];
    if (isInverse && inverse === undefined) throw new NotJudged("It has an inverse that is not understood.");
    const argument = this.#functionArgument();
    const value = isInverse ? call(inverse!, argument) : this.#applied(name, argument, base);
    return exponent === undefined || isInverse ? value : call("power", value, exponent);
  }

  #applied(name: FunctionName, argument: Expression, base: Expression | undefined): Expression {
    if (name !== "log") return call(name, argument);
    if (base !== undefined) return call("log", argument, base);
    this.#reading.hasBareLog = true;
    return this.#reading.naturalLog ? call("ln", argument) : call("log", argument, number(10));
  }

  /** In brackets, or a product of simple factors as far as it goes: sin 2x, but not beyond another function or a bracket. */
  #functionArgument(): Expression {
    const token = this.peek();
    if (token?.kind === "mark" && token.text !== "|" && token.text !== "-") return this.nested(() => this.#primary());
    const isNegative = this.#signs();
    const factors = [this.#power()];
    for (let next = this.peek(); next !== undefined && isSimple(next); next = this.peek()) {
      if (next.kind === "number") throw new NotJudged("A number follows without a sign between.");
      factors.push(this.#power());
    }
    if (this.isMark("/")) {
      this.#reading.isAmbiguous = true;
      if (this.#reading.tight) {
        this.at++;
        factors.push(call("reciprocal", this.#signedPower()));
      }
    }
    const value = product(factors);
    return isNegative ? call("negate", value) : value;
  }
}

function isSimple(token: Token): boolean {
  return token.kind === "letter" || token.kind === "number" || (token.kind === "command" && (token.text === "pi" || GREEK.has(token.text)));
}

function isMinusOne(exponent: Expression): boolean {
  if (exponent.kind !== "call" || exponent.name !== "negate") return false;
  const inner = exponent.args[0]!;
  return inner.kind === "number" && inner.value.numerator === 1n && inner.value.denominator === 1n;
}
