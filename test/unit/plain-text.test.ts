import { expect, test } from "vitest";
import { equivalent } from "../../maths/equivalence.ts";
import { asciiOf } from "../../maths/plain-text.ts";

const TOO_MANY = /combining marks/;

/** Runs `body` and returns the longest run of combining marks that was put into a Unicode form, which takes time quadratic in it. */
function longestRunNormalised(body: () => unknown): number {
  const normalize = String.prototype.normalize;
  let longest = 0;
  String.prototype.normalize = function (form?: string): string {
    for (const [run] of normalize.call(this, "NFKD").matchAll(/\p{M}+/gu)) longest = Math.max(longest, [...run].length);
    return normalize.call(this, form);
  };
  try {
    body();
  } finally {
    String.prototype.normalize = normalize;
  }
  return longest;
}

test.each([
  ["a", "\u0301\u0323"],
  ["", "\u0323\u0301"],
  ["か", "\u3099\u0323"],
  ["ｶ", "ﾞ\u0301"],
  ["ﾊ", "ﾟ\u0323"],
  ["", "\u{1d165}\u{1d16d}"],
  ["x", "\u0344\u0323"],
])("an answer of %j and thousands of %j is not judged, and costs nothing", (first, marks) => {
  const text = first + marks.repeat(4000);
  const longest = longestRunNormalised(() => {
    expect(equivalent("1", text)).toMatchObject({ verdict: "undecided", reason: expect.stringMatching(TOO_MANY) });
    expect(equivalent(text, "1")).toMatchObject({ verdict: "undecided", reason: expect.stringMatching(TOO_MANY) });
  });
  expect(longest).toBeLessThan(100);
});

test("as many marks as a text may have, 30 in a row, change nothing", () => {
  const text = `x${"\u0301".repeat(30)}y${"\u0323".repeat(30)}`;
  expect(asciiOf(text)).toBe(text.normalize("NFKC"));
  expect(equivalent("½", "1/2").verdict).toBe("equal");
  expect(equivalent("ﬁve", "five").verdict).toBe("equal");
});

test("every character that becomes nothing but marks is counted as one", () => {
  const uncounted: string[] = [];
  for (let code = 0x80; code <= 0x10ffff; code++) {
    if (code >= 0xd800 && code <= 0xdfff) continue;
    const character = String.fromCodePoint(code);
    if (!/^\p{M}+$/u.test(character.normalize("NFKD"))) continue;
    try {
      asciiOf(character.repeat(31));
      uncounted.push(code.toString(16));
    } catch (error) {
      expect((error as Error).message).toMatch(TOO_MANY);
    }
  }
  expect(uncounted).toEqual([]);
});
