import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { AnswerText, type TextPiece, type TextRules } from "../../workers/engines/answer-text.ts";

const NONE: TextRules = { stops: [], ignoredStarts: [], thoughtOpeners: [], thoughtClosers: [], beginsInThought: false };

function answer(rules: Partial<TextRules>, pieces: string[]) {
  const given: TextPiece[] = [];
  const text = new AnswerText({ ...NONE, ...rules }, (piece) => given.push(piece));
  for (const piece of pieces) if (!text.stopped) text.push(piece);
  text.finish();
  const of = (kind: TextPiece["kind"]) =>
    given
      .filter((piece) => piece.kind === kind)
      .map((piece) => piece.text)
      .join("");
  return { content: of("content"), reasoning: of("reasoning"), stopped: text.stopped, tokens: text.tokens, given };
}

describe("stops", () => {
  test("end the text before them, and their tokens aren't counted", () => {
    expect(answer({ stops: ["END"] }, ["one ", "two", " E", "ND", " three"])).toMatchObject({
      content: "one two ",
      stopped: true,
      tokens: 3,
    });
  });

  test("nothing of what may become a stop is given before it is known", () => {
    const given: string[] = [];
    const text = new AnswerText({ ...NONE, stops: ["</end>"] }, (piece) => given.push(piece.text));
    text.push("a <");
    expect(given).toEqual(["a "]);
    text.push("/e");
    expect(given).toEqual(["a "]);
    text.push("lse");
    expect(given).toEqual(["a ", "</else"]);
  });

  test("what was held back is given when nothing follows", () => {
    expect(answer({ stops: ["</end>"] }, ["a </en"])).toMatchObject({ content: "a </en", stopped: false });
  });

  test("however the text is cut into tokens, it ends before the first stop that is complete, and no piece tells of a stop", () => {
    const letters = (options: { minLength: number; maxLength: number }) => fc.string({ unit: fc.constantFrom("a", "b", "c"), ...options });
    fc.assert(
      fc.property(
        fc.array(letters({ minLength: 0, maxLength: 4 }), { maxLength: 12 }),
        fc.array(letters({ minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 3 }),
        (pieces, stops) => {
          const byLetter = answer({ stops }, [...pieces.join("")]);
          const given = answer({ stops }, pieces);
          const whole = pieces.join("");
          expect(whole.startsWith(given.content)).toBe(true);
          for (const stop of stops) expect(given.content).not.toContain(stop);
          expect(given.stopped).toBe(stops.some((stop) => whole.includes(stop)));
          if (!given.stopped) expect(given.content).toBe(whole);
          else expect(stops.some((stop) => whole.startsWith(stop, given.content.length))).toBe(true);
          expect(given.content.length).toBeLessThanOrEqual(byLetter.content.length);
        },
      ),
    );
  });
});

describe("thoughts", () => {
  const rules = { thoughtOpeners: ["<think>\n"], thoughtClosers: ["\n</think>\n\n"] };

  test("are told apart, without their borders, wherever the tokens end", () => {
    const whole = "So: <think>\nhm, 1 < 2\n</think>\n\n42";
    for (const size of [1, 2, 3, 7, 100]) {
      const pieces = whole.match(new RegExp(`[^]{1,${size}}`, "g"))!;
      expect(answer(rules, pieces)).toMatchObject({ content: "So: 42", reasoning: "hm, 1 < 2", tokens: pieces.length });
    }
  });

  test("may have been opened by the prompt", () => {
    expect(answer({ ...rules, beginsInThought: true }, ["hm", "\n</thi", "nk>\n\n", "42"])).toMatchObject({
      content: "42",
      reasoning: "hm",
    });
  });

  test("a stop ends them, too", () => {
    expect(answer({ ...rules, beginsInThought: true, stops: ["Q:"] }, ["hm", " Q", ":", "42"])).toMatchObject({
      content: "",
      reasoning: "hm ",
      stopped: true,
    });
  });
});

describe("what an answer begins with", () => {
  const ignoredStarts = [" ", "  ", "\t"];

  test("is dropped, the longest that matches, and only there", () => {
    expect(answer({ ignoredStarts }, [" ", " ", " a", "  b"]).content).toBe(" a  b");
    expect(answer({ ignoredStarts }, ["a", " b"]).content).toBe("a b");
    expect(answer({ ignoredStarts }, [" "]).content).toBe("");
  });
});
