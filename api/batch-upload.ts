import type { Readable } from "node:stream";
import { beginning, splitRecords } from "../maths/bank-formats.ts";
import { MathllmError } from "../queues/errors.ts";
import type { UploadLine } from "./batch-ingest.ts";

export const JSONL_TYPES = ["application/jsonl", "application/x-ndjson", "application/x-jsonlines"];

const UTF8 = new TextDecoder("utf-8", { fatal: true });
const SHOWN_CHARS = 80;

/** The lines of JSONL as it comes, blank ones left out. A line longer than `maxBytes` can't be read; the others can. */
export async function* jsonLines(source: Readable, maxBytes: number): AsyncGenerator<UploadLine> {
  // A reader that stops early must still be able to answer.
  const body = source.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>;
  const { head, rest } = await beginning(body);
  try {
    for await (const { line, tooLong, bytes } of splitRecords(head, rest, "jsonl", maxBytes)) {
      yield {
        line,
        bytes,
        read: () => {
          if (tooLong) throw new MathllmError("body-too-large", `Expected a line of at most ${maxBytes} bytes; got a longer one.`);
          return parseLine(bytes);
        },
      };
    }
  } finally {
    await rest.return?.();
  }
}

/** The requests of a JSON body as lines. */
export async function* requestLines(requests: unknown[]): AsyncGenerator<UploadLine> {
  for (const [i, value] of requests.entries()) yield { line: i + 1, bytes: JSON.stringify(value), read: () => value };
}

function parseLine(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = UTF8.decode(bytes);
  } catch {
    throw new MathllmError("malformed-json", "Expected a line of JSON in UTF-8; got other bytes.");
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    // V8 says what is wrong first and then quotes the text.
    const reason = (error as Error).message.replace(/,? *("|\.\.\.).*$/s, "");
    const shown = text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}…` : text;
    throw new MathllmError("malformed-json", `Expected a JSON object on a line; got ${JSON.stringify(shown)}: ${reason}.`);
  }
}
