import { type BankRecord, type FieldMap, readBank } from "../maths/banks.ts";
import { MathllmError } from "../queues/errors.ts";
import { type OutputLine, outputLines } from "./batch-output.ts";

/** Fields of a request that a line may bring beside its problem and answer; a bank's others mean nothing here. */
const REQUEST_FIELDS = ["explain", "model", "priority", "sampling", "samples", "cache", "timeoutMs", "metadata"];

/** A line of the input file, in its order. */
export type InputLine =
  /** It can't be sent. */
  | { kind: "bad"; line: number; detail: string }
  /** An earlier run has its result. */
  | { kind: "done"; line: number; done: OutputLine }
  /** `text`: the line of the upload, without its end. */
  | { kind: "open"; line: number; customId: string; text: string };

export interface InputFiles {
  file: string;
  map?: FieldMap;
  /** What earlier runs have written; it need not be there. */
  output: string;
}

/**
 * Reads input and output side by side: what stands in both is done. Memory is bounded by one line of each. Throws `invalid-request` when the
 * input can't be read, or the output is of another one.
 */
export async function* inputLines({ file, map, output }: InputFiles): AsyncGenerator<InputLine> {
  const earlier = outputLines(output);
  let next = await earlier.next();
  const bad: InputLine[] = [];
  const onIssue = (issue: { line: number; expected: string; came: string }) => {
    bad.push({ kind: "bad", line: issue.line, detail: `Expected ${issue.expected}; came ${issue.came}.` });
  };
  try {
    for await (const record of readBank(file, { map, answers: "optional", onIssue })) {
      yield* bad.splice(0);
      if (next.done !== true && next.value.line < record.line) throw otherInput(file, output, next.value);
      if (next.done !== true && next.value.line === record.line) {
        if (next.value.custom_id !== record.id) throw otherInput(file, output, next.value);
        yield { kind: "done", line: record.line, done: next.value };
        next = await earlier.next();
      } else yield { kind: "open", line: record.line, customId: record.id, text: requestText(record) };
    }
    yield* bad;
    if (next.done !== true) throw otherInput(file, output, next.value);
  } finally {
    await earlier.return(undefined);
  }
}

function requestText({ id, problem, expected, extra }: BankRecord): string {
  const fields = Object.fromEntries(REQUEST_FIELDS.flatMap((name) => (Object.hasOwn(extra, name) ? [[name, extra[name]]] : [])));
  return JSON.stringify({ custom_id: id, problem, ...(expected === null ? {} : { expected }), ...fields });
}

function otherInput(file: string, output: string, line: OutputLine): MathllmError {
  return new MathllmError(
    "invalid-request",
    `Expected ${output} to hold results of ${file}; its line with custom_id ${JSON.stringify(line.custom_id)} is not line ${line.line} there. Name another output, or remove it.`,
  );
}
