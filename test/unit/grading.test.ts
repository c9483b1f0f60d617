import { expect, test } from "vitest";
import { gradeOf } from "../../maths/grading.ts";

test.each([
  ["1/2", "0.5", "equal"],
  ["7", "8", "different"],
  ["0", null, "different"],
])("expected %j, answered %j: %s", (expected, answer, verdict) => {
  expect(gradeOf(expected, answer)).toEqual({ verdict, reason: expect.any(String) });
});

test("nothing expected, nothing graded", () => {
  expect(gradeOf(undefined, "7")).toBeNull();
});
