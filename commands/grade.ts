import { pipeline } from "node:stream/promises";
import type { Command } from "commander";
import { type GradedLine, GradeSummary, gradeLines } from "../producers/grade.ts";
import { oneOf } from "./options.ts";
import { EXIT_FAILED, type Run, say } from "./run.ts";

interface GradeOptions {
  percent: "number" | "value";
  json?: boolean;
}

export function addGrade(program: Command, run: Run): void {
  program
    .command("grade")
    .description("judge a file of answers against the right ones")
    .argument(
      "<file>",
      'JSONL with {"gold", "answer"}, or "-" for stdin; without an "answer" it is extracted from the text in "output" or "solution"',
    )
    .option("--percent <how>", "28 % is the number 28, or the value 0.28", oneOf(["number", "value"] as const), "number")
    .option("--json", "print the lines with verdict and reason instead of a summary")
    .action((file, options) => run(() => runGrade(file, options)));
}

async function runGrade(file: string, options: GradeOptions): Promise<number> {
  let bad = 0;
  const graded = gradeLines(file === "-" ? process.stdin : file, { percent: options.percent }, ({ message }) => {
    bad++;
    process.stderr.write(`${message}\n`);
  });
  if (options.json) await writeLines(graded);
  else {
    const summary = new GradeSummary();
    for await (const line of graded) summary.add(line);
    say(summary.text());
  }
  return bad === 0 ? 0 : EXIT_FAILED;
}

async function writeLines(graded: AsyncIterable<GradedLine>): Promise<void> {
  const lines = async function* () {
    for await (const { record } of graded) yield `${JSON.stringify(record)}\n`;
  };
  try {
    await pipeline(lines(), process.stdout, { end: false });
  } catch (error) {
    // A reader that has enough, like `head`.
    if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error;
  }
}
