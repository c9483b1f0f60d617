import { once } from "node:events";
import { createReadStream, createWriteStream, type WriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { createInterface } from "node:readline";
import { finished } from "node:stream/promises";
import { z } from "zod";
import { batchResultSchema } from "../queues/batch-contracts.ts";
import { MathllmError } from "../queues/errors.ts";

/** A line of the output file: what became of line `line` of the input, from 1. */
export const outputLineSchema = batchResultSchema
  .omit({ index: true })
  .extend({ line: z.number(), custom_id: z.string().nullable(), jobId: z.string().nullable() });
export type OutputLine = z.infer<typeof outputLineSchema>;

const BUFFER_BYTES = 1 << 16;

/** The whole lines of an output file, in order; none when there is no file. */
export async function* outputLines(file: string): AsyncGenerator<OutputLine> {
  const input = createReadStream(file);
  let line = 0;
  try {
    for await (const text of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
      line++;
      if (text.trim() === "") continue;
      const parsed = outputLineSchema.safeParse(jsonOf(text));
      if (!parsed.success) {
        throw new MathllmError(
          "invalid-request",
          `Expected ${file} to hold results of an earlier run; its line ${line} is none. Name another output, or remove it.`,
        );
      }
      yield parsed.data;
    }
  } catch (error) {
    if (error instanceof MathllmError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== "ENOENT") throw new MathllmError("invalid-request", `Expected ${file} to be a file that can be read; ${message}.`);
  } finally {
    input.destroy();
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** A file that is written as `….part` beside and takes its place when it is whole; before that, what was there stays. */
export class OutputFile {
  readonly #file: string;
  readonly #stream: WriteStream;
  #count = 0;

  private constructor(file: string, stream: WriteStream) {
    this.#file = file;
    this.#stream = stream;
  }

  /** Throws `invalid-request` when it can't be written. */
  static async open(file: string): Promise<OutputFile> {
    const stream = createWriteStream(partOf(file), { highWaterMark: BUFFER_BYTES });
    try {
      await once(stream, "open");
    } catch (error) {
      stream.destroy();
      throw writeFailure(file, error);
    }
    return new OutputFile(file, stream);
  }

  /** Lines written. */
  get count(): number {
    return this.#count;
  }

  async write(line: OutputLine): Promise<void> {
    this.#count++;
    if (this.#stream.write(`${JSON.stringify(line)}\n`)) return;
    await once(this.#stream, "drain").catch((error) => {
      throw writeFailure(this.#file, error);
    });
  }

  /** Puts it in its place; an empty one `removed` leaves no file there. */
  async finish({ removed = false } = {}): Promise<void> {
    try {
      this.#stream.end();
      await finished(this.#stream);
      if (removed && this.#count === 0) await Promise.all([rm(partOf(this.#file)), rm(this.#file, { force: true })]);
      else await rename(partOf(this.#file), this.#file);
    } catch (error) {
      throw writeFailure(this.#file, error);
    }
  }

  /** What is not finished stays as a `….part` that the next run writes anew. */
  close(): void {
    this.#stream.destroy();
  }
}

const partOf = (file: string) => `${file}.part`;

function writeFailure(file: string, error: unknown): MathllmError {
  return new MathllmError("invalid-request", `Expected ${file} to be a file that can be written; ${(error as Error).message}.`);
}
