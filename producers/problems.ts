import { createWriteStream } from "node:fs";
import { realpath, rename, rm, stat } from "node:fs/promises";
import type { Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type BankRecord, type FieldMap, readBank, sampleBank } from "../maths/banks.ts";
import { type Family, generateProblems, type Texts } from "../maths/generator.ts";
import { MathllmError } from "../queues/errors.ts";

/** Writes problems with their answers, made or taken from a bank, as JSONL of our own shape: one `{id, problem, expected}` a line. */
export interface ProblemsOptions {
  /** How many are made. */
  count: number;
  /** Of the made problems and of the sample. */
  seed: number;
  families?: Family[];
  hard?: boolean;
  texts?: Texts;
  /** A bank (JSONL or CSV) to take problems from instead. */
  from?: string;
  /** How many of its problems, default all. */
  sample?: number;
  map?: FieldMap;
  /** A file to write, whole or not at all; default stdout. */
  output?: string;
}

/** More bad lines than anybody reads. */
const MAX_ISSUES = 100;
/** A bank's other fields that a batch of ours knows. */
const PASSED_ON = ["explain", "model", "priority", "metadata"];

export interface ProblemsSummary {
  /** How many fewer there are than asked for, and why; null when all are there. */
  shortage: string | null;
}

/**
 * @throws MathllmError `invalid-request`: the bank can't be read or has bad records (all are named, up to 100), or the file can't be
 *   written; then no file is written.
 */
export async function writeProblems(options: ProblemsOptions, stdout: Writable): Promise<ProblemsSummary> {
  const summary: ProblemsSummary = { shortage: null };
  const lines = options.from === undefined ? madeLines(options, summary) : bankLines(options, options.from, summary);
  if (options.output === undefined) await writeStdout(lines, stdout);
  else await writeFile(lines, options.output);
  return summary;
}

async function* madeLines(options: ProblemsOptions, summary: ProblemsSummary): AsyncGenerator<string> {
  const { count, seed, families, hard, texts } = options;
  const exhausted: string[] = [];
  const onExhausted = (family: Family, found: number) => exhausted.push(`${family} (${found})`);
  let made = 0;
  for (const { id, problem, answer } of generateProblems({ seed, families, hard, texts, onExhausted })) {
    yield lineOf({ id, problem, expected: answer });
    if (++made === count) return;
  }
  summary.shortage = `Expected ${count} problems; there are no more than ${made}: ${exhausted.join(", ")}.`;
}

async function* bankLines({ sample, seed, map }: ProblemsOptions, from: string, summary: ProblemsSummary): AsyncGenerator<string> {
  const bank = { map, maxIssues: MAX_ISSUES };
  if (sample === undefined) {
    for await (const record of readBank(from, bank)) yield bankLine(record);
    return;
  }
  const { records, total } = await sampleBank(from, sample, seed, bank);
  for (const record of records) yield bankLine(record);
  if (total < sample) summary.shortage = `Expected ${sample} problems; ${from} has no more than ${total}.`;
}

function bankLine({ id, problem, expected, extra }: BankRecord): string {
  return lineOf({ id, problem, expected, ...Object.fromEntries(Object.entries(extra).filter(([name]) => PASSED_ON.includes(name))) });
}

const lineOf = (row: { id: string; problem: string; expected: string | null }): string => `${JSON.stringify(row)}\n`;

/** Written beside it under another name first, so that a failure leaves what was there, and a bank can be written over itself. */
async function writeFile(lines: AsyncIterable<string>, output: string): Promise<void> {
  try {
    const there = await stat(output).catch(() => null);
    if (there?.isDirectory()) throw new Error("it is a folder");
    // A device or pipe can't be replaced.
    if (there !== null && !there.isFile()) return await pipeline(lines, createWriteStream(output));
    const target = there === null ? output : await realpath(output);
    const draft = `${target}.${process.pid}.tmp`;
    try {
      await pipeline(lines, createWriteStream(draft, { mode: there?.mode }));
      await rename(draft, target);
    } catch (error) {
      await rm(draft, { force: true });
      throw error;
    }
  } catch (error) {
    if (error instanceof MathllmError) throw error;
    const reason = (error as Error).message;
    throw new MathllmError("invalid-request", `Expected ${output} to be a file that can be written; ${reason}.`, { cause: error });
  }
}

/** A reader that has enough, like `head`, ends the writing without a word. */
async function writeStdout(lines: AsyncIterable<string>, stdout: Writable): Promise<void> {
  try {
    await pipeline(lines, stdout, { end: false });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error;
  }
}
