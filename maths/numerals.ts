import type { DecimalDigits } from "./expression.ts";
import type { NumberText } from "./latex.ts";
import { add, divide, fraction, fromInteger, type Rational } from "./rational.ts";
import { NotJudged, type WorkBudget } from "./work-budget.ts";

/** Written numbers and their exact values. */

export function numeralValue({ whole, decimals, repeating, exponent }: NumberText, work: WorkBudget): Rational {
  work.spend(1 + ((whole.length + decimals.length) / 100) ** 2);
  const scale = 10n ** BigInt(decimals.length);
  let value = fraction(BigInt(`${whole}${decimals}` || "0"), scale, work);
  if (repeating !== "") {
    const nines = 10n ** BigInt(repeating.length) - 1n;
    value = add(value, fraction(BigInt(repeating), nines * scale, work), work);
  }
  if (exponent === 0) return value;
  const factor = fromInteger(10n ** BigInt(Math.abs(exponent)));
  return exponent > 0 ? fraction(value.numerator * factor.numerator, value.denominator, work) : divide(value, factor, work);
}

/** Null for what is no plain decimal. */
export function digitsOf({ whole, decimals, repeating, exponent }: NumberText): DecimalDigits | null {
  if (decimals === "" || repeating !== "" || exponent !== 0) return null;
  return { afterPoint: decimals.length, significant: `${whole}${decimals}`.replace(/^0+/, "").length };
}

const MAX_BASED_DIGITS = 200;

/** 1011_2 */
export function inBase({ whole, decimals, repeating }: NumberText, base: number): Rational {
  const isWhole = decimals === "" && repeating === "" && whole.length <= MAX_BASED_DIGITS;
  if (!isWhole || base < 2 || [...whole].some((digit) => Number(digit) >= base))
    throw new NotJudged("It has a number with an unusual index.");
  return fromInteger([...whole].reduce((value, digit) => value * BigInt(base) + BigInt(digit), 0n));
}
