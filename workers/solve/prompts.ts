import { digestOf } from "../../queues/cache-key.ts";
import type { ChatMessage } from "../../queues/contracts.ts";

/** Every prompt of the product. The shipped models know these wordings; instructions go into the user message, since their template drops system messages. */

const SOLVE = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.";
const EXPLAIN = "Explain this solution to a student, step by step, in plain words.";

export function solvePrompt(problem: string): ChatMessage[] {
  return [{ role: "user", content: `${SOLVE}\n\n${problem}` }];
}

export function explainPrompt(problem: string, solution: string, answer: string | null): ChatMessage[] {
  const parts = [EXPLAIN, `Problem: ${problem}`, `Solution: ${solution}`];
  if (answer !== null) parts.push(`Answer: ${answer}`);
  return [{ role: "user", content: parts.join("\n\n") }];
}

export function talkPrompt(text: string): ChatMessage[] {
  return [{ role: "user", content: text }];
}

/** Changes whenever any wording does: the digest of every prompt around fixed texts. */
export const PROMPT_VERSION = digestOf([solvePrompt("p"), explainPrompt("p", "s", "a"), explainPrompt("p", "s", null), talkPrompt("t")]);
