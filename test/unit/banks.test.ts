import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { PassThrough } from "node:stream";
import { promisify } from "node:util";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type BankIssue,
  type BankOptions,
  type BankRecord,
  countBank,
  MAX_BANK_PROBLEM_CHARS,
  MAX_RECORD_BYTES,
  readBank,
  sampleBank,
} from "../../maths/banks.ts";
import { writeProblems } from "../../producers/problems.ts";
import { MAX_PROBLEM_CHARS } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-banks-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** The content in chunks of at most so many bytes. */
async function* chunked(content: string | Uint8Array, size = 65_536): AsyncGenerator<Uint8Array> {
  const bytes = typeof content === "string" ? Buffer.from(content) : content;
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const item of items) list.push(item);
  return list;
}

const read = (content: string | Uint8Array, options: BankOptions = {}, chunkBytes?: number): Promise<BankRecord[]> =>
  all(readBank(chunked(content, chunkBytes), options));

/** How the reading of such a content fails. */
const failure = (content: string | Uint8Array, options: BankOptions = {}): Promise<MathllmError> =>
  failureOf(readBank(chunked(content), options));

async function failureOf(records: AsyncIterable<BankRecord>): Promise<MathllmError> {
  const error = await all(records).then(
    () => new Error("It did not fail."),
    (error) => error,
  );
  expect(error).toBeInstanceOf(MathllmError);
  expect(error.code).toBe("invalid-request");
  return error;
}

const jsonl = (...rows: unknown[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
const quoted = (text: string) => `"${text.replaceAll('"', '""')}"`;

describe("shapes", () => {
  it("reads GSM8K: the answer after ####, without commas between thousands", async () => {
    const rows = [
      { question: "Natalia sold 48 clips …", answer: "She sold 48/2 = <<48/2=24>>24.\n#### 72" },
      { question: "A house costs …", answer: "So 2*50000.\n#### 1,234,567" },
      { question: "Change?", answer: "####  -7.5 " },
    ];
    expect(await read(jsonl(...rows))).toEqual([
      { line: 1, id: "line-1", problem: rows[0]!.question, expected: "72", extra: { solution: "She sold 48/2 = <<48/2=24>>24." } },
      { line: 2, id: "line-2", problem: "A house costs …", expected: "1234567", extra: { solution: "So 2*50000." } },
      { line: 3, id: "line-3", problem: "Change?", expected: "-7.5", extra: {} },
    ]);
  });

  it("reads MATH-500, and takes the box of the solution where there is no answer", async () => {
    const row = {
      problem: "Find $x$.",
      solution: "It is $\\boxed{\\frac{1}{2}}$.",
      subject: "Algebra",
      level: 3,
      unique_id: "test/algebra/1.json",
    };
    const expected = { line: 1, id: row.unique_id, problem: row.problem, expected: "\\frac{1}{2}" };
    const extra = { solution: row.solution, subject: "Algebra", level: 3 };
    expect(await read(jsonl({ ...row, answer: "\\frac{1}{2}" }))).toEqual([{ ...expected, extra }]);
    expect(await read(jsonl(row))).toEqual([{ ...expected, extra }]);
  });

  it("reads our own, in JSONL and CSV alike", async () => {
    const rows = [
      { custom_id: "a", problem: "1 + 1", expected: "2", explain: true, model: "student", priority: "batch", metadata: { set: "x" } },
      { custom_id: "b", problem: "2 + 2", expected: "4" },
    ];
    const own = [
      {
        line: 1,
        id: "a",
        problem: "1 + 1",
        expected: "2",
        extra: { explain: true, model: "student", priority: "batch", metadata: { set: "x" } },
      },
      { line: 2, id: "b", problem: "2 + 2", expected: "4", extra: {} },
    ];
    expect(await read(jsonl(...rows))).toEqual(own);
    const csv = `custom_id,problem,expected,explain,model,priority,metadata\r\na,1 + 1,2,true,student,batch,"{""set"":""x""}"\r\nb,2 + 2,4,,,,\r\n`;
    expect(await read(csv)).toEqual(own.map((record) => ({ ...record, line: record.line + 1 })));
    expect(await read(jsonl({ id: 7, problem: "p", answer: 42 }))).toMatchObject([{ id: "7", expected: "42" }]);
    expect(await read(jsonl({ question: "q", answer: "a" }))).toMatchObject([{ problem: "q", expected: "a", extra: {} }]);
    expect(await read(jsonl({ id: null, problem: "p", answer: "1", note: null }))).toMatchObject([{ id: "line-1", extra: {} }]);
  });

  it("takes other names of fields, and a shape that is said", async () => {
    const map = { problem: "q", answer: "a", id: "nr" };
    expect(await read(jsonl({ q: "2 + 3", a: 5, nr: "x", problem: "another" }), { map })).toEqual([
      { line: 1, id: "x", problem: "2 + 3", expected: "5", extra: { problem: "another" } },
    ]);
    expect(await read("q;,a\nwhat?,#### 3\n", { map: { problem: "q;", answer: "a" } })).toMatchObject([
      { problem: "what?", expected: "3" },
    ]);
    expect(await read(jsonl({ q: "p", a: "no mark" }), { map })).toMatchObject([{ expected: "no mark" }]);
    expect((await failure(jsonl({ q: "p", a: "no mark" }), { map, shape: "gsm8k" })).message).toContain("ends in ####");
    expect(await read(jsonl({ problem: "p", answer: "#### 3" }), { shape: "own" })).toMatchObject([{ expected: "#### 3" }]);
  });

  it("does without answers when asked to", async () => {
    expect(await read(jsonl({ problem: "p" }), { answers: "optional" })).toMatchObject([{ expected: null }]);
    expect(await countBank(chunked(jsonl({ problem: "p" }, { problem: "q", answer: "1" }, {})), { answers: "optional" })).toEqual({
      records: 2,
      answered: 1,
      invalid: 1,
    });
  });

  it("reads names that objects have of themselves as any other", async () => {
    const line = '{"__proto__": {"polluted": 1}, "constructor": "c", "problem": "p", "answer": "1"}\n';
    const [record] = await read(line);
    expect(Object.keys(record!.extra).sort()).toEqual(["__proto__", "constructor"]);
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
    expect((await failure('{"a": 1}', { map: { problem: "toString" } })).message).toContain("expected a field toString");
  });
});

describe("formats", () => {
  it("come from the file's name, or from the first character", async () => {
    for (const [name, content] of [
      ["a.jsonl", '\n\n{"problem":"p","answer":"1"}'],
      ["a.CSV", "problem,answer\np,1"],
      ["a.txt", "\uFEFFproblem,answer\r\np,1\r\n"],
      ["a", '  {"problem":"p","answer":"1"}\r\n\r\n'],
    ] as const) {
      await writeFile(path.join(folder, name), content);
      expect(await all(readBank(path.join(folder, name)))).toMatchObject([{ problem: "p", expected: "1" }]);
    }
  });

  it("CSV: quotes, commas and line ends within quotes, a BOM, CRLF, no last line end; lines are counted as an editor does", async () => {
    const csv = '\uFEFF"problem","answer"\r\n"What is ""1,\r\n2""?",3\r\n\r\nplain, 4 \r\n"multi\n\nline",5';
    expect(await read(csv, { format: "csv" })).toMatchObject([
      { line: 2, problem: 'What is "1,\r\n2"?', expected: "3" },
      { line: 5, problem: "plain", expected: " 4 " },
      { line: 6, problem: "multi\n\nline", expected: "5" },
    ]);
  });

  it.each([
    ["a quote in the midst", 'a"b,1', "a field with a quote in it to be quoted"],
    ["text after a quote", '"a"b,1', "a comma or the line's end after the closing quote"],
    ["too few fields", "a", "2 fields as in the header; came 1"],
    ["too many fields", "a,1,2", "2 fields as in the header; came 3"],
  ])("CSV: %s spoils its own record only", async (_, row, message) => {
    const issues: BankIssue[] = [];
    const records = await read(`problem,answer\n${row}\nfine,1\n`, { format: "csv", onIssue: (issue) => issues.push(issue) });
    expect(records).toMatchObject([{ line: 3, problem: "fine" }]);
    expect(issues.map(({ line, expected, came }) => `${line} ${expected}; came ${came}`)).toEqual([expect.stringContaining(message)]);
    expect(issues[0]!.line).toBe(2);
  });

  it("CSV: what never closes or names a column twice is said", async () => {
    expect((await failure('problem,answer\na,1\n"b,2\nc,3\n')).message).toContain("line 3: expected a quote that closes the field");
    expect((await failure("problem,problem\na,1\n")).message).toContain('each column once; came "problem" twice');
    expect((await failure("problem,answer\n")).message).toContain("it holds none");
  });

  it("CSV round trip, however it is cut into chunks", async () => {
    const cell = fc.oneof(
      fc.string({ unit: "binary", maxLength: 12 }),
      fc.string({ unit: fc.constantFrom('"', ",", "\r", "\n", "a", "é", "𝜋", " "), maxLength: 8 }),
    );
    const filled = cell.filter((text) => text.trim() !== "" && text.isWellFormed());
    const row = fc.record({ problem: filled, answer: filled, note: cell.filter((text) => text.isWellFormed()) });
    await fc.assert(
      fc.asyncProperty(
        fc.array(row, { minLength: 1, maxLength: 6 }),
        fc.constantFrom("\n", "\r\n"),
        fc.boolean(),
        fc.integer({ min: 1, max: 40 }),
        async (rows, lineEnd, quoteAll, chunkBytes) => {
          const written = (text: string) => (quoteAll || /[",\r\n]/.test(text) ? quoted(text) : text);
          const lines = rows.map(({ problem, answer, note }) => [problem, answer, note].map(written).join(","));
          const records = await read(["problem,answer,note", ...lines].join(lineEnd), { format: "csv", shape: "own" }, chunkBytes);
          expect(records.map(({ problem, expected, extra }) => ({ problem, answer: expected, note: extra.note ?? "" }))).toEqual(rows);
        },
      ),
      { numRuns: 150 },
    );
  });

  it("JSONL round trip, however it is cut into chunks", async () => {
    const text = fc.string({ unit: "binary", minLength: 1, maxLength: 12 }).filter((made) => made.trim() !== "" && made.isWellFormed());
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ problem: text, answer: text, extra: fc.jsonValue() }), { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 40 }),
        async (rows, chunkBytes) => {
          const records = await read(jsonl(...rows), { shape: "own" }, chunkBytes);
          expect(records.map(({ problem, expected }) => ({ problem, answer: expected }))).toEqual(
            rows.map(({ problem, answer }) => ({ problem, answer })),
          );
        },
      ),
      { numRuns: 200 },
    );
  });

  it("takes any bytes without failing in another way, or reading on for ever", async () => {
    const byte = fc.oneof(fc.constantFrom(...Buffer.from('{}[]",\r\n:a1 ')), fc.nat(255));
    await fc.assert(
      fc.asyncProperty(fc.array(byte, { maxLength: 80 }), fc.constantFrom<BankOptions["format"]>("csv", "jsonl"), async (bytes, format) => {
        const records = read(Uint8Array.from(bytes), { format, maxIssues: 100 });
        await records.catch((error) => expect(error).toBeInstanceOf(MathllmError));
      }),
      { numRuns: 300 },
    );
  });
});

describe("what is wrong", () => {
  const good = { problem: "1 + 1", answer: "2" };
  it.each<[string, unknown, string]>([
    ["bad JSON", '{"problem": "1', 'line 2: expected a JSON object on a line; came "{\\"problem\\": \\"1": Unterminated string'],
    ["a list", "[1]", "line 2: expected a JSON object on a line; came [1]"],
    ["null", "null", "line 2: expected a JSON object on a line; came null"],
    ["no problem", { answer: "1" }, 'line 2: expected a field problem or question; came the fields ["answer"]'],
    ["no answer", { problem: "p", id: "x" }, 'line 2: expected a field expected or answer; came the fields ["problem","id"]'],
    ["an empty answer", { problem: "p", answer: "" }, "line 2: expected a field expected or answer; came answer empty"],
    ["a blank answer", { problem: "p", answer: " " }, 'line 2: expected answer: a text that is not blank; came " "'],
    ["an empty problem", { ...good, problem: "" }, 'line 2: expected problem: a text that is not blank; came ""'],
    ["a blank problem", { ...good, problem: " \n" }, 'line 2: expected problem: a text that is not blank; came " \\n"'],
    ["a number for a problem", { ...good, problem: 3 }, "line 2: expected problem: a text; came 3"],
    ["no problem but null", { ...good, problem: null }, "line 2: expected problem: a text; came null"],
    ["a long problem", { ...good, problem: "x".repeat(32_001) }, "line 2: expected problem: at most 32000 characters; came 32001"],
    ["half a character", '{"problem": "\\ud800", "answer": "1"}', "line 2: expected problem: characters of Unicode"],
    ["an answer that is a list", { ...good, answer: [1] }, "line 2: expected answer: a text or a number; came [1]"],
    [
      "a number that JSON rounds",
      '{"problem":"p","answer":12345678901234567890}',
      "line 2: expected answer: a text, for a number that large",
    ],
    ["an id that is an object", { ...good, id: {} }, "line 2: expected id: a text or a number; came {}"],
    ["explain as a text", { ...good, explain: "yes" }, 'line 2: expected explain: true or false; came "yes"'],
    ["metadata with numbers", { ...good, metadata: { a: 1 } }, 'line 2: expected metadata: an object of texts; came {"a":1}'],
    ["metadata as a list", { ...good, metadata: ["a"] }, 'line 2: expected metadata: an object of texts; came ["a"]'],
    ["priority as a number", { ...good, priority: 1 }, "line 2: expected priority: a text; came 1"],
  ])("%s", async (_, row, message) => {
    const bank = `${JSON.stringify(good)}\n${typeof row === "string" ? row : JSON.stringify(row)}\n${JSON.stringify(good)}\n`;
    expect((await failure(bank)).message).toContain(message);
    expect(await countBank(chunked(bank))).toEqual({ records: 2, answered: 2, invalid: 1 });
  });

  it("takes the longest problem, which is the API's", async () => {
    expect(MAX_BANK_PROBLEM_CHARS).toBe(MAX_PROBLEM_CHARS);
    expect(await read(jsonl({ ...good, problem: "é".repeat(32_000) }))).toHaveLength(1);
  });

  it("collects bad records up to a limit, or hands them over and goes on", async () => {
    const bank = jsonl(good, { a: 1 }, good, { a: 1 }, { b: 2 }, good);
    expect((await failure(bank)).extra.issues).toMatchObject([{ line: 2 }]);
    expect((await failure(bank, { maxIssues: 2 })).extra.issues).toMatchObject([{ line: 2 }, { line: 4 }]);
    const all = await failure(bank, { maxIssues: 50 });
    expect(all.extra.issues).toMatchObject([{ line: 2 }, { line: 4 }, { line: 5 }]);
    expect(all.message).toMatch(/line 2: .* \(and 1 more like it\)\nline 5: /);
    const lines: number[] = [];
    const onIssue = ({ line }: BankIssue) => lines.push(line);
    expect(await read(bank, { onIssue })).toHaveLength(3);
    expect(lines).toEqual([2, 4, 5]);
    expect((await failure(bank, { onIssue, maxIssues: 2 })).extra.issues).toHaveLength(2);
    // Records before the bad one are not held back.
    const seen: number[] = [];
    await expect(
      (async () => {
        for await (const { line } of readBank(chunked(bank))) seen.push(line);
      })(),
    ).rejects.toThrow(MathllmError);
    expect(seen).toEqual([1]);
  });

  it("says what fields it found when it knows none", async () => {
    expect((await failure(jsonl({ prompt: "p", target: "t" }))).message).toContain(
      'expected a field problem or question (fields with other names can be mapped); came the fields ["prompt","target"]',
    );
    expect((await failure(`[\n${JSON.stringify(good)}\n]`)).message).toContain("came the beginning of a JSON array");
  });

  it("malformed UTF-8 spoils its own line", async () => {
    const bank = Buffer.concat([
      Buffer.from(jsonl(good)),
      Buffer.from('{"problem":"\xff","answer":"1"}\n', "latin1"),
      Buffer.from(jsonl(good)),
    ]);
    expect((await failure(bank)).message).toContain("line 2: expected text in UTF-8");
    expect(await countBank(chunked(bank))).toEqual({ records: 2, answered: 2, invalid: 1 });
    expect((await failure(Buffer.from(`\uFEFF${jsonl(good)}`, "utf16le"))).message).toContain("came UTF-16");
  });

  it("a line of 50 MB is turned away in little memory, and the next one read", async () => {
    const megabyte = Buffer.alloc(1 << 20, "x");
    async function* bank(format: "csv" | "jsonl") {
      yield Buffer.from(format === "csv" ? 'problem,answer\n"' : '{"problem": "');
      for (let i = 0; i < 50; i++) yield megabyte;
      yield Buffer.from(format === "csv" ? '",1\nfine,1\n' : `"}\n${JSON.stringify(good)}\n`);
    }
    for (const format of ["csv", "jsonl"] as const) {
      const before = process.memoryUsage().arrayBuffers;
      expect((await failureOf(readBank(bank(format), { format }))).message).toContain(
        `expected a record of at most ${MAX_RECORD_BYTES} bytes`,
      );
      expect(await countBank(bank(format), { format })).toMatchObject({ records: 1, invalid: 1 });
      expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(20 * MAX_RECORD_BYTES);
    }
  });

  it("a folder, a missing file and an empty one", async () => {
    const emptyFile = path.join(folder, "empty.jsonl");
    await writeFile(emptyFile, "\uFEFF\n \n");
    expect((await failureOf(readBank(folder))).message).toContain("it is a folder");
    expect((await failureOf(readBank(path.join(folder, "none.csv")))).message).toContain("there is none");
    expect((await failureOf(readBank(emptyFile))).message).toContain("it holds none");
    expect((await failure("")).message).toContain("it holds none");
  });
});

describe("sampling", () => {
  const bank = jsonl(...Array.from({ length: 200 }, (_, i) => ({ id: `${i}`, problem: `${i} + 1`, answer: `${i + 1}` })));
  const ids = async (count: number, seed: number) => (await sampleBank(chunked(bank), count, seed)).records.map(({ id }) => Number(id));

  it("keeps the bank's order, is the same for the same seed, and takes all when there are fewer", async () => {
    const chosen = await ids(20, 1);
    expect(chosen).toHaveLength(20);
    expect(chosen).toEqual([...new Set(chosen)].sort((a, b) => a - b));
    expect(await ids(20, 1)).toEqual(chosen);
    expect(await ids(20, 2)).not.toEqual(chosen);
    expect(await ids(500, 1)).toHaveLength(200);
    expect((await sampleBank(chunked(bank), 0, 1)).records).toEqual([]);
    expect((await sampleBank(chunked(bank), 3, 1)).total).toBe(200);
  });

  it("gives each record the same chance", async () => {
    const small = jsonl(...Array.from({ length: 10 }, (_, i) => ({ id: `${i}`, problem: "p", answer: "a" })));
    const drawn = new Array<number>(10).fill(0);
    for (let seed = 0; seed < 1000; seed++) for (const { id } of (await sampleBank(chunked(small), 3, seed)).records) drawn[Number(id)]!++;
    // 300 each, with a standard deviation of 14.5.
    for (const count of drawn) expect(Math.abs(count - 300)).toBeLessThan(75);
  });
});

describe("mathllm problems", () => {
  const cli = path.join(import.meta.dirname, "../../mathllm.ts");
  const problems = (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> =>
    promisify(execFile)(process.execPath, [cli, "problems", ...args], { cwd: folder, timeout: 30_000 }).then(
      ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
      ({ code, stdout, stderr }) => ({ code, stdout, stderr }),
    );

  it("writes made problems and takes them back as a bank, even over itself", async () => {
    const made = await problems("--count", "30", "--seed", "3", "--families", "addition,fraction sum", "-o", "made.jsonl");
    expect(made).toEqual({ code: 0, stdout: "", stderr: "" });
    const file = path.join(folder, "made.jsonl");
    const text = await readFile(file, "utf8");
    const rows = text.trim().split("\n");
    expect(rows).toHaveLength(30);
    expect(Object.keys(JSON.parse(rows[0]!))).toEqual(["id", "problem", "expected"]);
    const sampled = new PassThrough();
    expect(await writeProblems({ count: 1, seed: 2, from: file, sample: 5 }, sampled)).toEqual({ shortage: null });
    const lines = String(sampled.read()).trim().split("\n");
    expect(lines).toHaveLength(5);
    expect(rows).toEqual(expect.arrayContaining(lines));
    const tooMany = await writeProblems({ count: 1, seed: 2, from: file, sample: 31, output: file }, sampled);
    expect(tooMany.shortage).toContain("has no more than 30");
    expect(await readFile(file, "utf8")).toBe(text);
  });

  it("passes on what a batch of ours knows, and leaves a file as it was when the bank is bad", async () => {
    const [bank, output] = [path.join(folder, "bank.csv"), path.join(folder, "kept.jsonl")];
    const options = { count: 1, seed: 1, from: bank, map: { problem: "q", answer: "a" }, output };
    await writeFile(bank, "q,a,explain,other\nfine,1,true,x\n");
    await writeProblems(options, new PassThrough());
    const kept = '{"id":"line-2","problem":"fine","expected":"1","explain":true}\n';
    expect(await readFile(output, "utf8")).toBe(kept);
    await writeFile(bank, "q,a\nfine,1\n,2\n");
    await expect(writeProblems(options, new PassThrough())).rejects.toThrow(/line 3: expected q: a text that is not blank/);
    expect(await readFile(output, "utf8")).toBe(kept);
    expect((await readdir(folder)).filter((name) => name.endsWith(".tmp"))).toEqual([]);
    await expect(writeProblems({ ...options, output: folder }, new PassThrough())).rejects.toThrow(/it is a folder/);
  });

  it("ends with 1 when there are too few, and with 2 on wrong usage", async () => {
    const [few, family] = await Promise.all([problems("--count", "50", "--families", "power"), problems("--families", "calculus")]);
    expect(few).toMatchObject({ code: 1, stderr: "Expected 50 problems; there are no more than 10: power (10).\n" });
    expect(few.stdout.trim().split("\n")).toHaveLength(10);
    expect(family).toMatchObject({ code: 2, stderr: expect.stringContaining("calculus") });
    expect(await problems("--sample", "3")).toMatchObject({ code: 2, stderr: expect.stringContaining("--from") });
  });
});
