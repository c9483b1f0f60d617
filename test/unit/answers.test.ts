import fc from "fast-check";
import { expect, test } from "vitest";
import { lastBoxed } from "../../maths/answers.ts";

test.each([
  ["the sum\n\\boxed{42}", "42"],
  ["\\boxed{1} then \\boxed{2}", "2"],
  ["\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"],
  ["\\boxed{ 7 } and so on", "7"],
  ["\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"],
  ["\\boxed{3} and a broken \\boxed{4", "3"],
  ["<think>\\boxed{1}</think> it is \\boxed{5}", "5"],
  ["<think>\\boxed{1}</think> no box", null],
  ["nothing", null],
  ["", null],
  ["\\boxed{}", ""],
])("%j → %j", (text, answer) => expect(lastBoxed(text)).toBe(answer));

test("hostile text is read in bounded time and never throws", () => {
  expect(lastBoxed("\\boxed{".repeat(50_000))).toBeNull();
  expect(lastBoxed("{".repeat(100_000))).toBeNull();
  fc.assert(fc.property(fc.string({ unit: fc.constantFrom("\\boxed{", "{", "}", "\\", "a", "</think>") }), (text) => void lastBoxed(text)));
});
