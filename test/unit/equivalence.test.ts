import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { equivalent, groupAnswers, MAX_WORK } from "../../maths/equivalence.ts";
import { seededRandom } from "../../maths/seeded-random.ts";
import { WorkBudget } from "../../maths/work-budget.ts";
import { type Case, DIFFERENT, EQUAL, KNOWN_DIFFERENT, KNOWN_EQUAL, UNDECIDED } from "../equivalence-cases.ts";
import { randomPair } from "../fuzz/random-answers.ts";

const verdictOf = ([gold, answer, options]: Case) => equivalent(gold, answer, options).verdict;

describe("verdicts", () => {
  const expected = [
    ["equal", [...KNOWN_EQUAL, ...EQUAL]],
    ["different", [...KNOWN_DIFFERENT, ...DIFFERENT]],
    ["undecided", UNDECIDED],
  ] as const;
  for (const [verdict, cases] of expected) {
    for (const each of cases) test(`${each[0]} and ${each[1]} are ${verdict}`, () => expect(verdictOf(each)).toBe(verdict));
  }

  it("are never wrongly equal, and undecided in at most 5 % of the cases that can be decided", () => {
    const all = [...KNOWN_EQUAL, ...KNOWN_DIFFERENT, ...EQUAL, ...DIFFERENT];
    expect(EQUAL.length + DIFFERENT.length).toBeGreaterThan(120);
    expect([...DIFFERENT, ...KNOWN_DIFFERENT, ...UNDECIDED].filter((each) => verdictOf(each) === "equal")).toEqual([]);
    expect(all.filter((each) => verdictOf(each) === "undecided").length / all.length).toBeLessThanOrEqual(0.05);
  });

  it("have a reason that doesn't repeat the answers", () => {
    for (const [gold, answer, options] of [...EQUAL, ...DIFFERENT, ...UNDECIDED]) {
      expect(equivalent(gold, answer, options).reason).toMatch(/^[A-Z].{5,99}\.$/);
    }
  });
});

describe("laws", () => {
  const ALL = [...KNOWN_EQUAL, ...KNOWN_DIFFERENT, ...EQUAL, ...DIFFERENT, ...UNDECIDED];

  it("is symmetric on all cases", () => {
    for (const [gold, answer, options] of ALL) {
      if (answer !== null)
        expect([answer, gold, equivalent(answer, gold, options).verdict]).toEqual([answer, gold, verdictOf([gold, answer, options])]);
    }
  });

  it("is reflexive on all cases, whatever is around the answer", () => {
    for (const text of ALL.flatMap(([gold, answer]) => [gold, answer ?? ""]).filter((each) => each.trim() !== "")) {
      expect(equivalent(text, text).verdict).toBe("equal");
      expect([text, equivalent(text, ` \\boxed{${text}} `).verdict]).toEqual([text, "equal"]);
    }
  });

  it("is transitive on numbers in any exact form", () => {
    const numbers = [
      "1/2",
      "0.5",
      "\\frac{2}{4}",
      "2^{-1}",
      "\\sqrt{\\frac14}",
      "\\sin\\frac{\\pi}{6}",
      "\\frac{\\sqrt3}{2\\sqrt3}",
      "50/100",
    ];
    for (const a of numbers) for (const b of numbers) expect([a, b, equivalent(a, b).verdict]).toEqual([a, b, "equal"]);
  });

  it("a fraction equals itself in any form, and no other", () => {
    const part = fc.integer({ min: 1, max: 9999 });
    fc.assert(
      fc.property(part, part, part, fc.integer({ min: -3, max: 3 }), (top, bottom, times, off) => {
        const gold = `\\frac{${top}}{${bottom}}`;
        const forms = [
          `${top * times}/${bottom * times}`,
          `\\dfrac{${top}}{${bottom}}`,
          `x = \\frac{-${top}}{-${bottom}}`,
          `${top}:${bottom}`,
        ];
        for (const form of forms) expect(equivalent(gold, form).verdict).toBe("equal");
        expect(equivalent(gold, `\\frac{${top + off}}{${bottom}}`).verdict).toBe(off === 0 ? "equal" : "different");
      }),
      { numRuns: 200 },
    );
  });

  it("a polynomial equals its expansion, and none with another coefficient", () => {
    const coefficient = fc.integer({ min: -20, max: 20 });
    fc.assert(
      fc.property(coefficient, coefficient, fc.integer({ min: -2, max: 2 }), (p, q, off) => {
        const factored = `(x+${p})(x+${q})`.replaceAll("+-", "-");
        const expanded = `x^2+${p + q}x+${p * q + off}`.replaceAll("+-", "-");
        expect(equivalent(factored, expanded).verdict).toBe(off === 0 ? "equal" : "different");
      }),
      { numRuns: 100 },
    );
  });

  it("digits count to the last one", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 1n, max: 10n ** 60n }), fc.bigInt({ min: -1n, max: 1n }), (n, off) => {
        expect(equivalent(`${n}`, `${n + off}`).verdict).toBe(off === 0n ? "equal" : "different");
        expect(equivalent(`0.${n}1`, `0.${n}${1n + off}`).verdict).toBe(off === 0n ? "equal" : "different");
        expect(equivalent(`\\sqrt{${n * n + off}}`, `${n}`).verdict).toBe(off === 0n ? "equal" : "different");
      }),
      { numRuns: 100 },
    );
  });
});

describe("hostile texts", () => {
  const random = seededRandom(7);
  const pairs = Array.from({ length: 2000 }, () => randomPair(random));

  it("never throw, nor reach what was not foreseen, and cost no more than their budget", () => {
    for (const [gold, answer] of pairs) {
      const work = new WorkBudget(MAX_WORK);
      expect([gold, answer, equivalent(gold, answer, { work }).reason]).not.toEqual([gold, answer, expect.stringContaining("failed")]);
      // What ends it may have been one long operation.
      expect(work.left).toBeGreaterThan(-MAX_WORK / 2);
    }
  });

  it("with less work get the same verdict or none", () => {
    for (const [gold, answer] of [...EQUAL, ...DIFFERENT].slice(0, 150)) {
      const verdict = equivalent(gold, answer!).verdict;
      for (const units of [0, 5, 30, 200])
        expect([verdict, "undecided"]).toContain(equivalent(gold, answer!, { work: new WorkBudget(units) }).verdict);
    }
  });

  it("get the same verdict in both orders unless the work ran out", () => {
    for (const [gold, answer] of pairs.slice(0, 500)) {
      const [there, back] = [equivalent(gold, answer), equivalent(answer, gold)];
      if (![there, back].some(({ reason }) => reason.includes("work")))
        expect([gold, answer, there.verdict]).toEqual([gold, answer, back.verdict]);
    }
  });

  test.each([
    ["9^{9^{9^9}}", "1"],
    ["constructor", "\\toString"],
    ["__proto__", "\\toString{1}"],
    ["1,".repeat(9999), "1"],
    ["100 ".repeat(4999), "1"],
    ["{".repeat(100_000), "1"],
    [`${"(".repeat(5000)}1${")".repeat(5000)}`, "1"],
    ["1000000!", "2"],
    [`\\binom{10000000}{5000000}`, "2"],
    [Array.from({ length: 3000 }, (_, i) => i).join(","), Array.from({ length: 3000 }, (_, i) => 2999 - i).join(",")],
    ["10^{999999999}", "1"],
    ["1e999999999", "1"],
    [`0.${"1".repeat(15_000)}`, "1/9"],
    [`${"\\sin(".repeat(50)}x${")".repeat(50)}`, "x^{x^{x^x}}"],
    ["\\ln(".repeat(55) + 10 + ")".repeat(55), "1"],
  ])("%# is not judged for ever", (gold, answer) => {
    const { verdict, reason } = equivalent(gold, answer);
    expect(["different", "undecided"]).toContain(verdict);
    expect(reason).not.toContain("failed");
  });
});

describe("groups", () => {
  it("hold equal answers, the largest first, and no missing ones", () => {
    expect(groupAnswers(["1/2", "2", null, "0.5", "", "\\frac12", "2.0", "3"])).toEqual([
      { answer: "1/2", members: [0, 3, 5] },
      { answer: "2", members: [1, 6] },
      { answer: "3", members: [7] },
    ]);
  });

  it("of undecided answers are apart", () => {
    expect(groupAnswers(["1/0", "2/0", "1/0"])).toEqual([
      { answer: "1/0", members: [0, 2] },
      { answer: "2/0", members: [1] },
    ]);
  });
});
