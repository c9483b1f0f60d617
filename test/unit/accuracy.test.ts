import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { accuracyOf, wilson } from "../../maths/accuracy.ts";

describe("Wilson's interval", () => {
  // By hand: for 8 of 10 and z = 1.96 the middle is (0.8 + 0.19208) / 1.38416 and the spread 1.96·√(0.016 + 0.009604) / 1.38416.
  test.each([
    [8, 10, 0.4902, 0.9433],
    [50, 100, 0.4038, 0.5962],
    [0, 10, 0, 0.2775],
    [10, 10, 0.7225, 1],
    [0, 0, 0, 1],
  ])("of %d right in %d is %d to %d", (right, total, low, high) => {
    const interval = wilson(right, total);
    expect(interval.low).toBeCloseTo(low, 4);
    expect(interval.high).toBeCloseTo(high, 4);
  });

  it("lies around the share and within 0 and 1, and is the mirror image for the wrong ones", () => {
    fc.assert(
      fc.property(fc.nat({ max: 100_000 }), fc.nat({ max: 100_000 }), (right, wrong) => {
        const { low, high } = wilson(right, right + wrong);
        expect(low).toBeGreaterThanOrEqual(0);
        expect(high).toBeLessThanOrEqual(1);
        const mirrored = wilson(wrong, right + wrong);
        expect(low).toBeCloseTo(1 - mirrored.high, 10);
        if (right + wrong === 0) return;
        const share = right / (right + wrong);
        expect(low).toBeLessThanOrEqual(share);
        expect(high).toBeGreaterThanOrEqual(share);
      }),
    );
  });

  test.each([
    [3, 2],
    [-1, 2],
    [0.5, 2],
  ])("refuses %d of %d", (right, total) => expect(() => wilson(right, total)).toThrow(RangeError));
});

it("counts what is undecided as graded and not right", () => {
  expect(accuracyOf(["equal", "undecided", "different", "equal"])).toMatchObject({
    graded: 4,
    equal: 2,
    different: 1,
    undecided: 1,
    accuracy: 0.5,
    ...wilson(2, 4),
  });
  expect(accuracyOf([])).toMatchObject({ graded: 0, accuracy: null, low: 0, high: 1 });
});
