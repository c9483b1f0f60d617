import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { type Ball, BallArithmetic, magnitude } from "../../maths/ball.ts";
import { bitLength, floorSqrt, fraction, root } from "../../maths/rational.ts";
import { NotJudged, WorkBudget } from "../../maths/work-budget.ts";

const arithmetic = (bits: number) => new BallArithmetic(bits, new WorkBudget(1e9));
const toDouble = ({ mantissa, exponent }: Ball) => {
  const surplus = Math.max(0, bitLength(mantissa) - 60);
  return Number(mantissa >> BigInt(surplus)) * 2 ** (exponent + surplus);
};

type Operation = readonly [name: string, (r: BallArithmetic, x: Ball, y: Ball) => Ball, (x: number, y: number) => number];

const OPERATIONS: Operation[] = [
  ["add", (r, x, y) => r.add(x, y), (x, y) => x + y],
  ["subtract", (r, x, y) => r.subtract(x, y), (x, y) => x - y],
  ["multiply", (r, x, y) => r.multiply(x, y), (x, y) => x * y],
  ["divide", (r, x, y) => r.divide(x, y), (x, y) => x / y],
  ["sqrt", (r, x) => r.sqrt(r.multiply(x, x)), (x) => Math.abs(x)],
  ["exp", (r, x) => r.exp(x), Math.exp],
  ["ln", (r, x) => r.ln(r.multiply(x, x)), (x) => Math.log(x * x)],
  ["sine", (r, x) => r.sinCos(x)[0], Math.sin],
  ["cosine", (r, x) => r.sinCos(x)[1], Math.cos],
  ["atan", (r, x) => r.atan(x), Math.atan],
  ["a sum that cancels", (r, x, y) => r.subtract(r.add(x, y), r.add(y, r.exp(r.ln(r.multiply(x, x))))), (x) => x - x * x],
];

describe("balls", () => {
  // Inputs that are known to so many bits only, so that their errors have to be carried on.
  const value = fc.tuple(fc.integer({ min: -1_000_000, max: 1_000_000 }), fc.integer({ min: 1, max: 1_000_000 }));

  test.each(OPERATIONS)("%s: the bound holds against more bits, and the value against a double", (_name, operation, double) => {
    fc.assert(
      fc.property(value, value, ([a, b], [c, d]) => {
        const at = (bits: number) => {
          const r = arithmetic(bits);
          const read = (top: number, bottom: number) => r.fromRational(fraction(BigInt(top), BigInt(bottom), new WorkBudget(1e9)));
          return operation(r, read(a, b), read(c, d));
        };
        let [rough, fine]: Ball[] = [];
        try {
          [rough, fine] = [at(128), at(500)];
        } catch (error) {
          if (error instanceof NotJudged) return;
          throw error;
        }
        const off = arithmetic(700).subtract(rough!, fine!);
        expect(magnitude({ ...off, error: Number.NEGATIVE_INFINITY }) - 1).toBeLessThanOrEqual(Math.max(rough!.error, fine!.error) + 1);
        // And it is of use: most of the bits are known.
        const size = Math.max(magnitude(rough!), -20);
        expect(rough!.error).toBeLessThan(size - 40);
        const expected = double(a / b, c / d);
        if (Math.abs(expected) < 1e300)
          expect(Math.abs(toDouble(fine!) - expected)).toBeLessThanOrEqual(
            1e-6 * Math.max(1e-4, Math.abs(expected), Math.abs(c / d), (a / b) ** 2 * 1e-6),
          );
      }),
      { numRuns: 300 },
    );
  });

  it("π and e to 60 digits", () => {
    const digits = (ball: Ball) => ((ball.mantissa * 10n ** 60n) >> BigInt(-ball.exponent)).toString();
    const r = arithmetic(300);
    expect(digits(r.pi())).toBe("3141592653589793238462643383279502884197169399375105820974944");
    expect(digits(r.exp(r.fromRational({ numerator: 1n, denominator: 1n })))).toBe(
      "2718281828459045235360287471352662497757247093699959574966967",
    );
  });
});

describe("roots", () => {
  it("are the largest whole number whose power is not above", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 10n ** 200n }), (n) => {
        const s = floorSqrt(n);
        expect(s * s <= n && (s + 1n) * (s + 1n) > n).toBe(true);
        expect(floorSqrt(n * n)).toBe(n);
      }),
    );
  });

  it("are exact or nothing", () => {
    const work = new WorkBudget(1e9);
    fc.assert(
      fc.property(fc.bigInt({ min: -(10n ** 30n), max: 10n ** 30n }), fc.integer({ min: 2, max: 9 }), (n, degree) => {
        const odd = degree % 2 === 1;
        const power = n ** BigInt(degree);
        expect(root({ numerator: power, denominator: 1n }, degree, work)?.numerator).toBe(odd || n >= 0n ? n : -n);
        if (power > 1n) expect(root({ numerator: power + 1n, denominator: 1n }, degree, work)).toBeUndefined();
      }),
    );
  });
});
