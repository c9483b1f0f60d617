import { equivalent, type Judgement } from "./equivalence.ts";

export type Grade = Judgement;

/** Whether the answer is the expected one; null when none was expected. No answer is different from every answer. */
export function gradeOf(expected: string | undefined, answer: string | null): Grade | null {
  return expected === undefined ? null : equivalent(expected, answer);
}
