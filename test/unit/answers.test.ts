import fc from "fast-check";
import { expect, test } from "vitest";
import { extract, lastBoxed } from "../../maths/answers.ts";

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

test.each([
  ["so \\boxed{7}. The final answer is 8.", "7", "boxed"],
  ["\\boxed{}", "", "boxed"],
  ["The final answer is 42. I hope it is correct.", "42", "final-answer"],
  ["**Final Answer:** $\\frac{1}{2}$ of it", "\\frac{1}{2}", "final-answer"],
  ["The final answer is:\n\n$$\n\\frac{3}{4}\n$$", "\\frac{3}{4}", "final-answer"],
  ["The answer is 3. But the final answer is 4", "4", "final-answer"],
  ["Janet has 18 eggs.\n#### 1,234", "1,234", "final-answer"],
  ["So the answer is: 3.5.", "3.5", "answer"],
  ["Therefore, the answer is **18**.", "18", "answer"],
  ["**Answer: 12**", "12", "answer"],
  ["Answer: 4 apples\nand 5 pears", "4 apples", "answer"],
  ["The answer is \\(7\\), not 8", "7", "answer"],
  ["answer is 1, no, the answer is 2", "2", "answer"],
  ["We get 10-5 = 5", "5", "last-number"],
  ["it is -5 or so", "-5", "last-number"],
  ["in all 1,234.50 dollars", "1,234.50", "last-number"],
  ["which is $-\\frac{3}{4}$", "-\\frac{3}{4}", "last-number"],
  ["about 20\\% of them", "20%", "last-number"],
  ["a ratio of 3/4.", "3/4", "last-number"],
  ["cut off in \\boxed{4", "4", "last-number"],
  ["<think>The answer is 3</think> It is 4", "4", "last-number"],
  ["<think>The answer is 3</think> done", null, "none"],
  ["nothing", null, "none"],
  ["", null, "none"],
])("%j says %j by %s", (text, answer, rule) => expect(extract(text)).toEqual({ answer, rule }));

test("extraction reads any text in linear time", () => {
  const pieces = ["answer is ", "final answer", "9", "1,", "\\frac{1}{", "answer ", "answer * ", "$$", "\\(", "####", " ", "**", "-"];
  for (const piece of pieces) extract(piece.repeat(50_000));
  extract(`answer${" ".repeat(200_000)}`);
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...pieces, "\\boxed{", "}", "</think>", ".", "\n") }), (text) => void extract(text)),
  );
});
