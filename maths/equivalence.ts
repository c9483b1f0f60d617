import { compareStatements } from "./comparison.ts";
import { Evaluation } from "./evaluation.ts";
import type { Reading } from "./expression-parser.ts";
import { different, equal, type Judgement, undecided } from "./judgement.ts";
import { canonicalText, tokenise } from "./latex.ts";
import { parseStatement } from "./statements.ts";
import { NotJudged, WorkBudget } from "./work-budget.ts";

/** Whether two answers say the same. */

export type { Judgement };

export interface EquivalenceOptions {
  /**
   * What a percent sign means beside a bare number, which differs between data sets. `number` (default): 28 % is written 28; `value`:
   * 28 % is 0.28. Two percentages are compared alike.
   */
  percent?: "number" | "value";
  /** How much work it may take, default about 10 ms of it; with less there may be no verdict, but never another one. */
  work?: WorkBudget;
}

/**
 * Judges an answer against the right one. Symmetric, except where the work runs out in one order only; a text that isn't blank equals itself.
 * Never throws and does a bounded amount of work, whatever the texts are. No answer (null or blank) is different from everything, another blank one included.
 */
export function equivalent(gold: string, answer: string | null, options: EquivalenceOptions = {}): Judgement {
  if (answer === null || answer.trim() === "" || gold.trim() === "") return different("There is no answer.");
  if (gold.trim() === answer.trim()) return equal("The texts are the same.");
  try {
    return compareTexts(gold, answer, options);
  } catch (error) {
    if (error instanceof NotJudged) return undecided(error.message);
    // Not foreseen, and no reason to call the answer right or to end a batch.
    return undecided(`The comparison failed: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** Units of `WorkBudget`: some 10 ms. */
export const MAX_WORK = 10_000;

function compareTexts(
  gold: string,
  answer: string,
  { percent = "number", work = new WorkBudget(MAX_WORK) }: EquivalenceOptions,
): Judgement {
  const [left, right] = [tokenise(gold), tokenise(answer)];
  if (canonicalText(left) === canonicalText(right)) return equal("The texts differ in spelling only.");
  const read = (choice: { tight: boolean; naturalLog: boolean }) => {
    const reading: Reading = { ...choice, isAmbiguous: false, hasBareLog: false, work };
    const convention = { evaluation: new Evaluation(work), percentIsValue: percent === "value" };
    const judgement = compareStatements(parseStatement(left, reading), parseStatement(right, reading), convention);
    return { reading, judgement };
  };
  const { reading, judgement } = read({ tight: false, naturalLog: false });
  if (reading.isAmbiguous && read({ tight: true, naturalLog: false }).judgement.verdict !== judgement.verdict) {
    return undecided("It depends on how far a division sign reaches.");
  }
  if (reading.hasBareLog && judgement.verdict === "different" && read({ tight: false, naturalLog: true }).judgement.verdict === "equal") {
    return undecided("It depends on the base of the logarithm.");
  }
  return judgement;
}

export interface AnswerGroup {
  /** The first of its members. */
  answer: string;
  /** Places in the given list, ascending. */
  members: number[];
}

/** Groups answers that are equal, largest group first (of the same size, the one that was there first). No answer belongs to no group. */
export function groupAnswers(answers: readonly (string | null)[], options: EquivalenceOptions = {}): AnswerGroup[] {
  const groups: AnswerGroup[] = [];
  answers.forEach((answer, place) => {
    if (answer === null || answer.trim() === "") return;
    const group = groups.find((other) => equivalent(other.answer, answer, options).verdict === "equal");
    if (group === undefined) groups.push({ answer, members: [place] });
    else group.members.push(place);
  });
  return groups.sort((a, b) => b.members.length - a.members.length || a.members[0]! - b.members[0]!);
}
