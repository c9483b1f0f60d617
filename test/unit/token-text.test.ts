import path from "node:path";
import fc from "fast-check";
import { getLlama, type LlamaModel, LlamaText, SpecialToken, SpecialTokensText } from "node-llama-cpp";
import { beforeAll, describe, expect, test } from "vitest";
import { TokenText, triggerText, withoutMarks } from "../../workers/engines/token-text.ts";

let model: LlamaModel;
beforeAll(async () => {
  const llama = await getLlama({ gpu: false, build: "never" });
  model = await llama.loadModel({ modelPath: path.join(import.meta.dirname, "../../models/student.gguf"), vocabOnly: true });
});

function pieces(text: string): string[] {
  const tokenText = new TokenText(model, model.tokenize("<|im_start|>assistant\n", true));
  return model.tokenize(text).map((token) => tokenText.push(token));
}

describe("tokens as text", () => {
  test("a character whose bytes are spread over tokens comes whole", () => {
    const given = pieces("Grüße 😀 日本語 €");
    expect(given.join("")).toBe("Grüße 😀 日本語 €");
    expect(given.join("|")).not.toContain("\uFFFD");
    expect(given).toContain("😀");
  });

  test("any text comes as it is, in whole characters", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 30 }), (text) => {
        const given = pieces(`${text}.`);
        expect(given.join("")).toBe(`${text}.`);
        for (const piece of given) expect(piece.isWellFormed()).toBe(true);
      }),
      { numRuns: 40 },
    );
  });

  test("half a character is not given, neither at the end nor before a special token", () => {
    const tokenText = new TokenText(model, []);
    const [first] = model.tokenize("😀");
    expect(tokenText.push(first!)).toBe("");
    const [end] = model.tokenize("<|im_end|>", true);
    expect(withoutMarks(tokenText.push(end!))).toBe("");
    expect(tokenText.push(model.tokenize("a")[0]!)).toBe("a");
  });

  test("bytes that never become a character are shown as such, and what follows is not lost", () => {
    const tokenText = new TokenText(model, []);
    const [lead] = model.tokenize("😀");
    const given = [...Array(40).fill(lead!), model.tokenize("a")[0]!].map((token) => tokenText.push(token)).join("");
    expect(given).toMatch(/^\uFFFD+a$/);
  });

  test("a token without text is found by its trigger, and is no part of the text", () => {
    const [end] = model.tokenize("<|im_end|>", true);
    const mark = new TokenText(model, []).push(end!);
    expect(mark).not.toBe("");
    expect(withoutMarks(`a${mark}b`)).toBe("ab");
    expect(triggerText(LlamaText(new SpecialToken("EOS")), model)).toBe(mark);
    expect(triggerText(LlamaText(new SpecialTokensText("<|im_end|>\n")), model)).toBe(`${mark}\n`);
    expect(triggerText("<|im_end|>", model)).toBe("<|im_end|>");
    const [start] = model.tokenize("<|im_start|>", true);
    expect(new TokenText(model, []).push(start!)).not.toBe(mark);
  });
});
