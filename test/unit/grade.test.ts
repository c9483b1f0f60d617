import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type GradedLine, type GradeIssue, GradeSummary, gradeLines } from "../../producers/grade.ts";

const jsonl = (...lines: unknown[]) => lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join("");

async function grade(input: string, percent: "number" | "value" = "number"): Promise<{ graded: GradedLine[]; issues: GradeIssue[] }> {
  const issues: GradeIssue[] = [];
  const bytes = async function* () {
    yield Buffer.from(input);
  };
  const graded: GradedLine[] = [];
  for await (const line of gradeLines(bytes(), { percent }, (issue) => issues.push(issue))) graded.push(line);
  return { graded, issues };
}

describe("grading a file", () => {
  it("keeps a line's fields, adds verdict and reason, and extracts where there is no answer", async () => {
    const lines = [
      { id: "a", gold: "1/2", answer: "0.5", level: { of: 3 } },
      { gold: 7, answer: null },
      { gold: "2x=10", answer: "10", verdict: "old" },
      { gold: "12", output: "so \\boxed{12}" },
      { gold: "12", solution: "The answer is 13." },
      { gold: "3" },
    ];
    const { graded } = await grade(jsonl(...lines));
    expect(graded.map(({ record }) => record.verdict)).toEqual(["equal", "different", "undecided", "equal", "different", "different"]);
    expect(graded[0]!.record).toEqual({ ...lines[0], verdict: "equal", reason: expect.any(String) });
    expect(graded[3]).toMatchObject({ rule: "boxed", record: { output: lines[3]!.output, answer: "12", rule: "boxed" } });
    expect(graded[4]!.record).toMatchObject({ answer: "13", rule: "answer" });
  });

  it("sums up: accuracy with its interval, rules, what stayed undecided", async () => {
    const { graded } = await grade(
      jsonl({ gold: "5", answer: "5.0" }, { gold: "5", output: "it is 6" }, "", { gold: "1/0", answer: "2/0" }),
    );
    const summary = new GradeSummary();
    for (const line of graded) summary.add(line);
    expect(summary.text()).toContain("1 of 3 right (33.3 %; 95 % interval 6.1 to 79.2 %, Wilson), 1 different, 1 undecided");
    expect(summary.text()).toContain("Extracted by: last-number 1");
    expect(summary.text()).toContain('line 4: "1/0" and "2/0"');
    expect(new GradeSummary().text()).toBe("Nothing to grade.\n");
  });

  it("names each bad line and judges the others", async () => {
    const bad = ["nope", [1], { answer: "5" }, { gold: "5", answer: true }, { gold: "5", output: 5 }, `{"gold": "${"9".repeat(1 << 20)}"}`];
    const { graded, issues } = await grade(jsonl({ gold: "5", answer: "5" }, ...bad, { gold: "6", answer: "6" }));
    expect(graded.map(({ line }) => line)).toEqual([1, 8]);
    expect(issues.map(({ line }) => line)).toEqual([2, 3, 4, 5, 6, 7]);
    for (const { line, message } of issues) expect(message).toMatch(new RegExp(`^line ${line}: expected .*; came .{1,250}$`));
  });

  it("takes percent signs as the data set means them", async () => {
    const input = jsonl({ gold: "10\\%", answer: "0.1" }, { gold: "10", answer: "10%" });
    const verdicts = async (percent: "number" | "value") => (await grade(input, percent)).graded.map(({ record }) => record.verdict);
    expect(await verdicts("number")).toEqual(["different", "equal"]);
    expect(await verdicts("value")).toEqual(["equal", "different"]);
  });

  it("says which file it can't read", async () => {
    const lines = gradeLines("none.jsonl", {}, () => {});
    await expect(lines.next()).rejects.toThrow("Expected a file of answers at none.jsonl; there is none.");
  });
});

describe("mathllm grade", () => {
  const CLI = path.join(import.meta.dirname, "../../mathllm.ts");
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-grade-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  async function run(args: string[], stdin = ""): Promise<{ code: number; stdout: string; stderr: string }> {
    const child = spawn(process.execPath, [CLI, "grade", ...args], { cwd: folder });
    child.stdin.end(stdin);
    const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]);
    return { code, stdout, stderr };
  }

  it("prints the same lines in order, alone on stdout, and exits 0 when all were read", async () => {
    const lines = [
      { id: 2, gold: "10%", answer: "0.1" },
      { id: 1, gold: "5", answer: "6" },
    ];
    await writeFile(path.join(folder, "answers.jsonl"), jsonl(...lines));
    const { code, stdout, stderr } = await run(["answers.jsonl", "--json", "--percent", "value"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const printed = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(printed).toEqual([
      { ...lines[0], verdict: "equal", reason: expect.any(String) },
      { ...lines[1], verdict: "different", reason: expect.any(String) },
    ]);
  });

  it("reads stdin, sums up, and exits 1 with a bad line's number", async () => {
    const { code, stdout, stderr } = await run(["-"], jsonl({ gold: "5", answer: "5" }, "nope"));
    expect(code).toBe(1);
    expect(stdout).toContain("1 of 1 right");
    expect(stderr).toMatch(/^line 2: expected a JSON object .*; came "nope" .*\n$/);
  });
});
