import { createReadStream } from "node:fs";
import path from "node:path";
import { MathllmError } from "../queues/errors.ts";
import { lastBoxed } from "./answers.ts";
import { type BankFormat, beginning, csvFields, formatOf, type RawRecord, splitRecords } from "./bank-formats.ts";
import { seededRandom } from "./seeded-random.ts";

/**
 * One reader for banks of problems with known answers, in JSONL or CSV with a header, in the shapes in which they are found:
 *
 * - `gsm8k`: `question`, `answer` (a solution that ends in `#### 42`; a comma between thousands is left out);
 * - `math`: `problem`, `solution`, `answer` (or the last `\boxed{…}` of the solution), `subject`, `level`, `unique_id`;
 * - `own`: `problem` or `question`, `expected` or `answer`, and optionally `id` or `custom_id`, `explain`, `model`, `priority`, `metadata`.
 *
 * The first record decides which, unless it is said. Reading is streamed: memory is bounded by one record, not by the file.
 */

export const SHAPES = ["gsm8k", "math", "own"] as const;
export type BankShape = (typeof SHAPES)[number];

export interface BankRecord {
  /** Where the record begins, from 1. */
  line: number;
  /** `id`, `custom_id` or `unique_id` of the record, else `line-12`. Not checked for being unique: that would take memory. */
  id: string;
  problem: string;
  /** The right answer; null only where `answers` is `optional`. */
  expected: string | null;
  /**
   * All other fields that are neither null nor empty. In CSV they are texts, but `explain` and `metadata`, which become a boolean and
   * an object. Of a GSM8K answer, what stands before `####` is the `solution`.
   */
  extra: Record<string, unknown>;
}

/** A record that can't be used. */
export interface BankIssue {
  line: number;
  expected: string;
  /** At most some 100 characters. */
  came: string;
}

export interface BankOptions {
  /** Default by the file's name, else by its first character. */
  format?: BankFormat;
  /** Default by the first record. */
  shape?: BankShape;
  /** Names of fields that are called differently here. */
  map?: FieldMap;
  /** Default `required`. */
  answers?: "required" | "optional";
  /**
   * 1, the default, ends the reading at the first bad record. With more, bad records are left out, and the error that names them all
   * comes when there are so many, or else at the end.
   */
  maxIssues?: number;
  /** Is handed each bad record instead: then the reading fails only at the `maxIssues`th one. */
  onIssue?: (issue: BankIssue) => void;
}

export interface FieldMap {
  problem?: string;
  answer?: string;
  id?: string;
}

export const MAX_BANK_PROBLEM_CHARS = 32_000;
/** A record of the longest problem with a long solution fits well; a file that is one line does not. */
export const MAX_RECORD_BYTES = 1 << 20;
const MAX_SHOWN_ISSUES = 20;
const MAX_SHOWN_CHARS = 80;

/**
 * The bank's records, in order. `source` is a file's path or its bytes.
 * @throws MathllmError `invalid-request`: the file can't be read or holds no record, a shape is unknown, or records are bad (then
 *   `extra.issues` holds them).
 */
export async function* readBank(source: string | AsyncIterable<Uint8Array>, options: BankOptions = {}): AsyncGenerator<BankRecord> {
  const { head, rest } = await beginning(typeof source === "string" ? fileBytes(source) : source);
  try {
    yield* readRecords(head, rest, typeof source === "string" ? source : null, options);
  } finally {
    await rest.return?.();
  }
}

/** `count` records chosen by the seed, each with the same chance, in the bank's order; all of them if there are fewer. Holds `count` in memory. */
export async function sampleBank(
  source: string | AsyncIterable<Uint8Array>,
  count: number,
  seed: number,
  options: BankOptions = {},
): Promise<{ records: BankRecord[]; total: number }> {
  const random = seededRandom(seed);
  const records: BankRecord[] = [];
  let total = 0;
  for await (const record of readBank(source, options)) {
    // Algorithm R: the n-th record takes a place with the chance count / n.
    const place = total < count ? total : Math.floor(random() * (total + 1));
    total++;
    if (place < count) records[place] = record;
  }
  return { records: records.sort((a, b) => a.line - b.line), total };
}

export interface BankCounts {
  /** Usable ones. */
  records: number;
  answered: number;
  invalid: number;
}

/** Reads all of it and counts; bad records don't end it. */
export async function countBank(source: string | AsyncIterable<Uint8Array>, options: BankOptions = {}): Promise<BankCounts> {
  const counts = { records: 0, answered: 0, invalid: 0 };
  const onIssue = (issue: BankIssue) => {
    counts.invalid++;
    options.onIssue?.(issue);
  };
  for await (const { expected } of readBank(source, { ...options, maxIssues: Number.POSITIVE_INFINITY, onIssue })) {
    counts.records++;
    if (expected !== null) counts.answered++;
  }
  return counts;
}

async function* fileBytes(file: string): AsyncGenerator<Uint8Array> {
  try {
    yield* createReadStream(file);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reasons: Record<string, string> = { ENOENT: "there is none", EISDIR: "it is a folder", EACCES: "it may not be read" };
    throw new MathllmError("invalid-request", `Expected a file of problems at ${file}; ${reasons[code ?? ""] ?? message}.`, {
      cause: error,
    });
  }
}

function formatOfName(file: string): BankFormat | undefined {
  const extension = path.extname(file).toLowerCase();
  return extension === ".csv" ? "csv" : [".jsonl", ".ndjson"].includes(extension) ? "jsonl" : undefined;
}

async function* readRecords(
  head: Uint8Array,
  rest: AsyncIterator<Uint8Array>,
  file: string | null,
  options: BankOptions,
): AsyncGenerator<BankRecord> {
  const name = file ?? "the bank";
  const format = options.format ?? (file === null ? undefined : formatOfName(file)) ?? formatOf(head);
  const issues = new Issues(name, options);
  let header: string[] | null = null;
  let { shape } = options;
  let isEmpty = true;
  for await (const raw of splitRecords(head, rest, format, MAX_RECORD_BYTES)) {
    try {
      const text = textOf(raw);
      if (format === "csv" && header === null) {
        header = headerOf(raw.line, text);
        continue;
      }
      isEmpty = false;
      const fields = header === null ? objectOf(raw.line, text) : rowOf(raw.line, text, header);
      shape ??= shapeOf(raw.line, fields, options.map);
      yield recordOf(raw.line, fields, shape, options);
    } catch (error) {
      if (!(error instanceof BadRecord)) throw error;
      isEmpty = false;
      // Without a header nothing after it has names.
      if (format === "csv" && header === null) throw issues.failure([error.issue]);
      issues.add(error.issue);
    }
  }
  if (isEmpty) throw new MathllmError("invalid-request", `Expected problems in ${name}; it holds none.`);
  issues.end();
}

class Issues {
  readonly #name: string;
  readonly #options: BankOptions;
  readonly #max: number;
  readonly #kept: BankIssue[] = [];
  #count = 0;

  constructor(name: string, options: BankOptions) {
    this.#name = name;
    this.#options = options;
    this.#max = options.maxIssues ?? (options.onIssue === undefined ? 1 : Number.POSITIVE_INFINITY);
  }

  add(issue: BankIssue): void {
    this.#count++;
    // What is only counted is not kept: a large file may be bad from end to end.
    if (this.#options.onIssue === undefined || this.#kept.length < MAX_SHOWN_ISSUES) this.#kept.push(issue);
    this.#options.onIssue?.(issue);
    if (this.#count >= this.#max) throw this.failure(this.#kept);
  }

  end(): void {
    if (this.#options.onIssue === undefined && this.#count > 0) throw this.failure(this.#kept);
  }

  failure(issues: BankIssue[]): MathllmError {
    // What is wrong with every record alike, such as the name of a field, is said once.
    const alike = [...Map.groupBy(issues, ({ expected, came }) => `${expected}; ${came}`).values()];
    const shown = alike.slice(0, MAX_SHOWN_ISSUES).map(([first, ...others]) => {
      const more = others.length === 0 ? "" : ` (and ${others.length} more like it)`;
      return `${issueText(first!)}${more}`;
    });
    if (alike.length > shown.length) shown.push("and others");
    return new MathllmError("invalid-request", `${this.#name}: ${shown.join("\n")}`, { extra: { issues } });
  }
}

export function issueText({ line, expected, came }: BankIssue): string {
  return `line ${line}: expected ${expected}; came ${came}`;
}

class BadRecord extends Error {
  readonly issue: BankIssue;

  constructor(line: number, expected: string, came: string) {
    super(expected);
    this.issue = { line, expected, came };
  }
}

/** A value as it came, cut where it is long. */
function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length <= MAX_SHOWN_CHARS ? text : `${text.slice(0, MAX_SHOWN_CHARS)}… (${text.length} characters)`;
}

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function textOf({ line, bytes, tooLong, unclosed }: RawRecord): string {
  if (tooLong) {
    const beginning = Buffer.from(bytes.subarray(0, MAX_SHOWN_CHARS)).toString("utf8");
    const cause = unclosed ? " (a quote that is never closed?)" : "";
    throw new BadRecord(line, `a record of at most ${MAX_RECORD_BYTES} bytes`, `a longer one${cause} that begins with ${shown(beginning)}`);
  }
  try {
    return UTF8.decode(bytes);
  } catch {
    const isUtf16 = (bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff);
    throw new BadRecord(line, "text in UTF-8", isUtf16 ? "UTF-16" : "other bytes");
  }
}

type Fields = Record<string, unknown>;

function objectOf(line: number, text: string, what = "a JSON object on a line"): Fields {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const isArray = line === 1 && text.trimStart().startsWith("[");
    throw new BadRecord(line, what, isArray ? "the beginning of a JSON array" : `${shown(text)}: ${reasonOf(error)}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new BadRecord(line, what, shown(value));
  return value as Fields;
}

/** V8 says what is wrong first and then quotes the text, which is shown already. */
const reasonOf = (error: unknown): string => (error as Error).message.replace(/,? *("|\.\.\.).*$/s, "");

function headerOf(line: number, text: string): string[] {
  const names = fieldsOf(line, text).map((name) => name.trim());
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new BadRecord(line, "a header that names each column once", `${shown(twice)} twice`);
  return names;
}

function fieldsOf(line: number, text: string): string[] {
  const fields = csvFields(text);
  if (!Array.isArray(fields)) throw new BadRecord(line, fields.expected, shown(fields.came));
  return fields;
}

function rowOf(line: number, text: string, header: string[]): Fields {
  const values = fieldsOf(line, text);
  if (values.length !== header.length) throw new BadRecord(line, `${header.length} fields as in the header`, `${values.length}`);
  const fields: Fields = Object.fromEntries(header.map((name, i) => [name, values[i]!]));
  if (present(fields, "explain")) fields.explain = booleanOf(line, fields.explain as string);
  if (present(fields, "metadata")) fields.metadata = objectOf(line, fields.metadata as string, "metadata: a JSON object");
  return fields;
}

function booleanOf(line: number, text: string): boolean {
  if (/^(true|1)$/i.test(text)) return true;
  if (/^(false|0)$/i.test(text)) return false;
  throw new BadRecord(line, "explain: true or false", shown(text));
}

/** In CSV a field that is not given is empty. */
const isGiven = (value: unknown): boolean => value !== undefined && value !== null && value !== "";
const present = (fields: Fields, name: string): boolean => Object.hasOwn(fields, name) && isGiven(fields[name]);
const firstPresent = (fields: Fields, names: readonly string[]): string | undefined => names.find((name) => present(fields, name));
/** The problem's field is named even where it is empty, which is worth a message of its own. */
const problemField = (fields: Fields, names: readonly string[]): string | undefined =>
  firstPresent(fields, names) ?? names.find((name) => Object.hasOwn(fields, name));

const FINAL_MARK = "####";

/** Solution and answer of `… #### 42`. */
function gsm8kAnswer(text: string): { solution: string; final: string } | null {
  const mark = text.lastIndexOf(FINAL_MARK);
  const final = mark < 0 ? "" : text.slice(mark + FINAL_MARK.length).trim();
  return final === "" || final.includes("\n") ? null : { solution: text.slice(0, mark).trim(), final };
}

/** Where each shape has what; a name in `map` goes before. */
const FIELD_NAMES: Record<BankShape, { problem: string[]; answer: string[]; id: string[] }> = {
  gsm8k: { problem: ["question"], answer: ["answer"], id: ["id", "custom_id"] },
  math: { problem: ["problem"], answer: ["answer"], id: ["unique_id", "id", "custom_id"] },
  own: { problem: ["problem", "question"], answer: ["expected", "answer"], id: ["id", "custom_id"] },
};

function namesOf(shape: BankShape, map: FieldMap = {}): { problem: string[]; answer: string[]; id: string[] } {
  const names = FIELD_NAMES[shape];
  return {
    problem: map.problem === undefined ? names.problem : [map.problem],
    answer: map.answer === undefined ? names.answer : [map.answer],
    id: map.id === undefined ? names.id : [map.id],
  };
}

function shapeOf(line: number, fields: Fields, map: FieldMap = {}): BankShape {
  const names = namesOf("own", map);
  if (problemField(fields, names.problem) === undefined) {
    throw new BadRecord(
      line,
      `a field ${names.problem.join(" or ")} (fields with other names can be mapped)`,
      `the fields ${shown(Object.keys(fields))}`,
    );
  }
  const answer = firstPresent(fields, names.answer);
  const answerText = answer === undefined ? null : fields[answer];
  if (typeof answerText === "string" && gsm8kAnswer(answerText) !== null) return "gsm8k";
  const isMath = present(fields, "solution") && ["subject", "type", "level", "unique_id"].some((name) => present(fields, name));
  return isMath ? "math" : "own";
}

function recordOf(line: number, fields: Fields, shape: BankShape, { map, answers = "required" }: BankOptions): BankRecord {
  const names = namesOf(shape, map);
  const problemName = problemField(fields, names.problem);
  if (problemName === undefined) throw missing(line, names.problem, fields);
  const problem = fields[problemName];
  if (typeof problem !== "string") throw new BadRecord(line, `${problemName}: a text`, shown(problem));
  if (problem.trim() === "") throw new BadRecord(line, `${problemName}: a text that is not blank`, shown(problem));
  if (problem.length > MAX_BANK_PROBLEM_CHARS) {
    throw new BadRecord(line, `${problemName}: at most ${MAX_BANK_PROBLEM_CHARS} characters`, `${problem.length}`);
  }
  if (!problem.isWellFormed()) throw new BadRecord(line, `${problemName}: characters of Unicode`, "half of a surrogate pair");
  const answerName = firstPresent(fields, names.answer);
  const idName = firstPresent(fields, names.id);
  const expected = expectedOf(line, fields, answerName, shape);
  if (expected === null && answers === "required") throw missing(line, names.answer, fields);
  const used = [problemName, answerName, idName];
  const extra = Object.fromEntries(Object.entries(fields).filter(([name, value]) => !used.includes(name) && isGiven(value)));
  if (shape === "own") checkOwn(line, extra);
  if (shape === "gsm8k" && answerName !== undefined) {
    const solution = gsm8kAnswer(String(fields[answerName]))?.solution;
    if (isGiven(solution)) extra.solution ??= solution;
  }
  return { line, id: idOf(line, fields, idName), problem, expected, extra };
}

function missing(line: number, names: readonly string[], fields: Fields): BadRecord {
  const empty = names.find((name) => Object.hasOwn(fields, name));
  return new BadRecord(
    line,
    `a field ${names.join(" or ")}`,
    empty === undefined ? `the fields ${shown(Object.keys(fields))}` : `${empty} empty`,
  );
}

function expectedOf(line: number, fields: Fields, name: string | undefined, shape: BankShape): string | null {
  const value = name === undefined ? undefined : fields[name];
  if (value === undefined) return shape === "math" && typeof fields.solution === "string" ? lastBoxed(fields.solution) || null : null;
  if (typeof value === "number") {
    // JSON.parse has rounded it already.
    if (Math.abs(value) > Number.MAX_SAFE_INTEGER) throw new BadRecord(line, `${name}: a text, for a number that large`, shown(value));
    return String(value);
  }
  if (typeof value !== "string") throw new BadRecord(line, `${name}: a text or a number`, shown(value));
  if (value.trim() === "") throw new BadRecord(line, `${name}: a text that is not blank`, shown(value));
  if (shape !== "gsm8k") return value;
  const final = gsm8kAnswer(value)?.final;
  if (final === undefined) {
    throw new BadRecord(line, `${name}: a solution that ends in ${FINAL_MARK} and the answer`, shown(value.slice(-MAX_SHOWN_CHARS)));
  }
  return /^-?\d{1,3}(,\d{3})+(\.\d+)?$/.test(final) ? final.replaceAll(",", "") : final;
}

function idOf(line: number, fields: Fields, name: string | undefined): string {
  if (name === undefined) return `line-${line}`;
  const value = fields[name];
  if (typeof value !== "string" && typeof value !== "number") throw new BadRecord(line, `${name}: a text or a number`, shown(value));
  return String(value);
}

/** The types alone: which models and classes there are is known to those who send the problems off. */
function checkOwn(line: number, extra: Fields): void {
  const isText = (value: unknown) => typeof value === "string";
  const isTexts = (value: unknown) => typeof value === "object" && !Array.isArray(value) && Object.values(value!).every(isText);
  const checks: [string, string, (value: unknown) => boolean][] = [
    ["explain", "true or false", (value) => typeof value === "boolean"],
    ["model", "a text", isText],
    ["priority", "a text", isText],
    ["metadata", "an object of texts", isTexts],
  ];
  for (const [name, expected, fits] of checks) {
    if (Object.hasOwn(extra, name) && !fits(extra[name])) throw new BadRecord(line, `${name}: ${expected}`, shown(extra[name]));
  }
}
