import type { StageResult } from "./contracts.ts";

/** What is said of a stage whose text the token limit cut, and what to do about it. The tokens of a vote are those of all samples. */
export function cutAfter({ role, usage, vote }: Pick<StageResult, "role" | "usage" | "vote">): string {
  const where = vote === undefined ? `after ${usage.completionTokens} tokens` : "by the token limit";
  return `it was cut ${where}; raise ${role.toUpperCase()}_MAX_TOKENS, or maxTokens where the request set it.`;
}
