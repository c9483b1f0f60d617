import { randomUUID } from "node:crypto";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { z } from "zod";

/**
 * Under which key a run hands its lines in, kept beside its output until that is whole. A run that is broken off goes on with its batch that way;
 * every other one, be it of the same lines, is a batch of its own.
 *
 *   nothing ──new run──► kept ──same lines and options again──► kept, the same key
 *                         ├──other lines or options, or `renew`──► kept, another key
 *                         └──the output is whole──► nothing
 */
const attemptSchema = z.object({
  /** Of the lines that are missing, and of all that they depend on. */
  digest: z.string(),
  key: z.string(),
});

export class BatchAttempt {
  readonly #file: string;
  readonly #digest: string;
  #key: string;
  /** An earlier run had begun it. */
  readonly isEarlier: boolean;

  private constructor(file: string, digest: string, key: string | undefined) {
    this.#file = file;
    this.#digest = digest;
    this.#key = key ?? newKey();
    this.isEarlier = key !== undefined;
  }

  static async open(output: string, digest: string): Promise<BatchAttempt> {
    const file = `${output}.batch.json`;
    const text = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return "null";
      throw error;
    });
    const earlier = attemptSchema.safeParse(jsonOf(text)).data;
    const attempt = new BatchAttempt(file, digest, earlier?.digest === digest ? earlier.key : undefined);
    await attempt.#keep();
    return attempt;
  }

  get key(): string {
    return this.#key;
  }

  /** What is handed in from now on is another batch. */
  async renew(): Promise<void> {
    this.#key = newKey();
    await this.#keep();
  }

  async end(): Promise<void> {
    await rm(this.#file, { force: true });
  }

  async #keep(): Promise<void> {
    const part = `${this.#file}.part`;
    await writeFile(part, JSON.stringify({ digest: this.#digest, key: this.#key }));
    await rename(part, this.#file);
  }
}

function newKey(): string {
  return `mathllm-batch-${randomUUID()}`;
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
