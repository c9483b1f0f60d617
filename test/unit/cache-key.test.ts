import fc from "fast-check";
import { expect, test } from "vitest";
import { explainKey, solveKey, talkKey } from "../../queues/cache-key.ts";
import { solveRequestSchema } from "../../queues/contracts.ts";
import { explainPrompt, solvePrompt, talkPrompt } from "../../workers/solve/prompts.ts";
import { stageResult } from "../stand-in-worker.ts";

const MODEL = { modelId: "m", digest: "d", promptVersion: "p", maxTokens: 100 };

/** Texts of one row look alike, or some program takes them for the same. */
const LOOKALIKES = [
  ["1"],
  ["x"],
  [" ", "  ", "\t", "\u00a0", "\u2003", "\u3000", "\v", "\f"],
  ["\n", "\r\n", "\r", "\n\n", "\u2028", "\u2029", "\u0085", " \n", "\n "],
  ["", "\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u202e"],
  ["\u00e9", "e\u0301", "e"],
  ["a\u0301\u0323", "a\u0323\u0301", "\u1ea1\u0301", "\u00e1\u0323"],
  ["\ufb01", "fi"],
  ["\u0000", "\u0007", "\u001b", "\u007f"],
  ["\ud800", "\udc00", "\ufffd", "\\ud800"],
  ['"', "\\", '\\"', "\\\\"],
] as const;

/** Pairs that differ only where a row has several texts. */
const pairs = fc
  .array(
    fc.constantFrom(...LOOKALIKES).chain((row) => fc.tuple(fc.constantFrom<string>(...row), fc.constantFrom<string>(...row))),
    { maxLength: 8 },
  )
  .map((parts): [string, string] => [parts.map(([a]) => a).join(""), parts.map(([, b]) => b).join("")])
  .filter((texts) => texts.every((text) => text.trim() !== ""));

test("two texts with the same key give the model identical messages", () => {
  const solved = stageResult("student");
  fc.assert(
    fc.property(pairs, (texts) => {
      const [a, b] = texts.map((problem) => {
        const request = solveRequestSchema.parse({ problem });
        return {
          messages: [solvePrompt(request.problem), talkPrompt(request.problem), explainPrompt(request.problem, solved.text, solved.answer)],
          keys: [solveKey(MODEL, request), talkKey(MODEL, request), explainKey(MODEL, request, solved)],
        };
      });
      for (const [i, key] of a!.keys.entries()) {
        if (key === b!.keys[i]) expect(a!.messages[i]).toEqual(b!.messages[i]);
        else expect(a!.messages[i]).not.toEqual(b!.messages[i]);
      }
    }),
    { numRuns: 2000 },
  );
});

test("a problem loses the blanks around it and keeps all within, its first line's indentation too", () => {
  const problemOf = (problem: string) => solveRequestSchema.parse({ problem }).problem;
  expect(problemOf(" \t What is 1 + 0? \r\n\n")).toBe("What is 1 + 0?");
  expect(problemOf(" \r\n\n    if x:\r\n\treturn  1\r\rWhat?\n ")).toBe("    if x:\n\treturn  1\n\nWhat?");
  expect(problemOf("cafe\u0301\u00a0\u200b x")).toBe("cafe\u0301\u00a0\u200b x");
  expect(solveRequestSchema.safeParse({ problem: " \n\u3000 " }).success).toBe(false);
});

test("no key of a problem looks at its characters' Unicode forms: the time to find one grows no faster than the text", () => {
  const marks = `a${"\u0301\u0323".repeat(15_990)}`;
  const request = solveRequestSchema.parse({ problem: marks });
  expect(request.problem).toBe(marks);
  const normalize = String.prototype.normalize;
  let normalisedChars = 0;
  String.prototype.normalize = function (form?: string): string {
    normalisedChars += this.length;
    return normalize.call(this, form);
  };
  try {
    solveRequestSchema.parse({ problem: marks });
    solveKey(MODEL, request);
    talkKey(MODEL, request);
    explainKey(MODEL, request, stageResult("student"));
  } finally {
    String.prototype.normalize = normalize;
  }
  expect(normalisedChars).toBe(0);
});
