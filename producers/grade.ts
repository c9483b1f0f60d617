import { createReadStream } from "node:fs";
import { type Accuracy, AccuracyCount } from "../maths/accuracy.ts";
import { type ExtractionRule, extract } from "../maths/answers.ts";
import { beginning, type RawRecord, splitRecords } from "../maths/bank-formats.ts";
import { type EquivalenceOptions, equivalent, type Judgement } from "../maths/equivalence.ts";
import { MathllmError } from "../queues/errors.ts";

/**
 * Judges a file of answers, one JSON object a line with `gold` and `answer` (texts or numbers; an answer may be null or missing). Where there is
 * no `answer` but a model's whole text in `output` or `solution`, the answer is extracted from that. Memory is bounded by one line.
 */
export interface GradedLine {
  line: number;
  /** The line's own fields, with `verdict` and `reason`; and `answer` and `rule` where the answer was extracted. */
  record: Record<string, unknown> & Judgement;
  rule: ExtractionRule | null;
}

export interface GradeIssue {
  line: number;
  message: string;
}

const MAX_GRADE_LINE_BYTES = 1 << 20;
const MAX_SHOWN_CHARS = 80;
const MAX_SHOWN_LINES = 20;

/**
 * The lines in order; those that can't be judged go to `onIssue` instead.
 * @throws MathllmError `invalid-request` when the file can't be read.
 */
export async function* gradeLines(
  source: string | AsyncIterable<Uint8Array>,
  options: EquivalenceOptions,
  onIssue: (issue: GradeIssue) => void,
): AsyncGenerator<GradedLine> {
  const { head, rest } = await beginning(typeof source === "string" ? fileBytes(source) : source);
  try {
    for await (const raw of splitRecords(head, rest, "jsonl", MAX_GRADE_LINE_BYTES)) {
      const graded = gradeLine(raw, options);
      if (typeof graded === "string") onIssue({ line: raw.line, message: `line ${raw.line}: ${graded}` });
      else yield graded;
    }
  } finally {
    await rest.return?.();
  }
}

async function* fileBytes(file: string): AsyncGenerator<Uint8Array> {
  try {
    yield* createReadStream(file);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reasons: Record<string, string> = { ENOENT: "there is none", EISDIR: "it is a folder", EACCES: "it may not be read" };
    throw new MathllmError("invalid-request", `Expected a file of answers at ${file}; ${reasons[code ?? ""] ?? message}.`, {
      cause: error,
    });
  }
}

/** A text says what is wrong with the line. */
function gradeLine({ line, bytes, tooLong }: RawRecord, options: EquivalenceOptions): GradedLine | string {
  if (tooLong) return `expected at most ${MAX_GRADE_LINE_BYTES} bytes; came more`;
  const text = Buffer.from(bytes).toString("utf8");
  let record: unknown;
  try {
    record = JSON.parse(text);
  } catch (error) {
    return `expected a JSON object like {"gold": "1/2", "answer": "0.5"}; came ${shown(text)} (${(error as Error).message})`;
  }
  if (typeof record !== "object" || record === null || Array.isArray(record)) return `expected a JSON object; came ${shown(text)}`;
  const fields = record as Record<string, unknown>;
  const gold = answerText(fields.gold);
  if (typeof gold !== "string") return `expected the right answer in "gold", a text or a number; came ${shown(fields.gold)}`;
  const found = foundAnswer(fields);
  if (typeof found === "string") return found;
  const judgement = equivalent(gold, found.answer, options);
  const extracted = found.rule === null ? {} : found;
  return { line, record: { ...fields, ...extracted, ...judgement }, rule: found.rule };
}

function foundAnswer(fields: Record<string, unknown>): { answer: string | null; rule: ExtractionRule | null } | string {
  if (fields.answer !== undefined) {
    const answer = answerText(fields.answer);
    return answer === undefined ? `expected "answer" to be a text, a number or null; came ${shown(fields.answer)}` : { answer, rule: null };
  }
  const output = fields.output ?? fields.solution;
  if (output === undefined || output === null) return { answer: null, rule: null };
  if (typeof output !== "string") return `expected "output" or "solution" to be a text; came ${shown(output)}`;
  return extract(output);
}

function answerText(value: unknown): string | null | undefined {
  if (typeof value === "string" || value === null) return value;
  return typeof value === "number" ? String(value) : undefined;
}

function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length <= MAX_SHOWN_CHARS ? text : `${text.slice(0, MAX_SHOWN_CHARS)}… (${text.length} characters)`;
}

/** What a reader wants to know of a graded file. */
export class GradeSummary {
  readonly #count = new AccuracyCount();
  readonly #rules = new Map<ExtractionRule, number>();
  readonly #undecided: string[] = [];

  add({ line, record, rule }: GradedLine): void {
    this.#count.add(record.verdict);
    if (rule !== null) this.#rules.set(rule, (this.#rules.get(rule) ?? 0) + 1);
    if (record.verdict === "undecided" && this.#undecided.length < MAX_SHOWN_LINES) {
      this.#undecided.push(`  line ${line}: ${shown(record.gold)} and ${shown(record.answer)}: ${record.reason}`);
    }
  }

  text(): string {
    const accuracy = this.#count.summary();
    const lines = [accuracyText(accuracy)];
    if (this.#rules.size > 0) lines.push(`Extracted by: ${[...this.#rules].map(([rule, times]) => `${rule} ${times}`).join(", ")}`);
    if (accuracy.undecided > 0) {
      const more = accuracy.undecided - this.#undecided.length;
      lines.push("Undecided, counted as not right:", ...this.#undecided, ...(more > 0 ? [`  and ${more} more`] : []));
    }
    return `${lines.join("\n")}\n`;
  }
}

const percent = (share: number) => (100 * share).toFixed(1);

function accuracyText({ graded, equal, different, undecided, accuracy, low, high }: Accuracy): string {
  if (accuracy === null) return "Nothing to grade.";
  const interval = `95 % interval ${percent(low)} to ${percent(high)} %, Wilson`;
  return `${equal} of ${graded} right (${percent(accuracy)} %; ${interval}), ${different} different, ${undecided} undecided`;
}
