import { randomBytes } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { type Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import { MathllmError } from "../../queues/errors.ts";

const storedFileSchema = z.object({
  id: z.string(),
  filename: z.string(),
  bytes: z.number(),
  /** Epoch milliseconds. */
  createdAt: z.number(),
  expiresAt: z.number(),
  /** The API key that brought it. */
  owner: z.string().nullable(),
});
export type StoredFile = z.infer<typeof storedFileSchema>;

const ID = /^file-[0-9a-f]{24}$/;
/** What has no record by then was left by a process that died. */
const UNFINISHED_MS = 3_600_000;

export interface FileLimits {
  fileLimitBytes: number;
  filesMaxBytes: number;
  retentionSeconds: number;
}

/**
 * Uploaded files in a folder, for as long as finished jobs are kept:
 *
 *   NAME.part (being written) ──► NAME.jsonl ──► NAME.json (its record: from now on the file is there) ──expired, deleted──► nothing
 */
export class FileStore {
  readonly #folder: string;
  readonly #limits: FileLimits;
  /** Bytes of the uploads under way. */
  #arriving = 0;

  constructor(folder: string, limits: FileLimits) {
    this.#folder = folder;
    this.#limits = limits;
  }

  /** Throws `body-too-large`, or `files-full` when all files together would take more than they may; then nothing of it stays. */
  async store(source: Readable, { filename, owner }: Pick<StoredFile, "filename" | "owner">, now = Date.now()): Promise<StoredFile> {
    const { fileLimitBytes, filesMaxBytes, retentionSeconds } = this.#limits;
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    await this.#sweep(now);
    const used = (await this.list()).reduce((sum, { bytes }) => sum + bytes, 0);
    const id = `file-${randomBytes(12).toString("hex")}`;
    const part = this.#path(id, "part");
    let bytes = 0;
    const count = new Transform({
      transform: (chunk: Buffer, _encoding, done) => {
        bytes += chunk.length;
        this.#arriving += chunk.length;
        if (bytes > fileLimitBytes) {
          done(new MathllmError("body-too-large", `Expected a file of at most ${fileLimitBytes} bytes (FILE_LIMIT_BYTES).`));
        } else if (used + this.#arriving > filesMaxBytes) {
          done(new MathllmError("files-full", `All files together may take ${filesMaxBytes} bytes (FILES_MAX_BYTES). Delete some.`));
        } else done(null, chunk);
      },
    });
    try {
      await pipeline(source, count, createWriteStream(part, { mode: 0o600, flags: "wx" }));
      await rename(part, this.#path(id, "jsonl"));
      const file = { id, filename, bytes, createdAt: now, expiresAt: now + retentionSeconds * 1000, owner };
      await writeFile(part, JSON.stringify(file), { mode: 0o600, flag: "wx" });
      await rename(part, this.#path(id, "json"));
      return file;
    } catch (error) {
      await this.delete(id);
      throw error;
    } finally {
      this.#arriving -= bytes;
    }
  }

  /** undefined: unknown or expired, or its record can't be read (the disk was full, the power went). */
  async read(id: string, now = Date.now()): Promise<StoredFile | undefined> {
    if (!ID.test(id)) return undefined;
    const text = await readFile(this.#path(id, "json"), "utf8").catch(ifMissing(undefined));
    const file = text === undefined ? undefined : parse(text);
    return file !== undefined && file.expiresAt > now ? file : undefined;
  }

  content({ id }: StoredFile): Readable {
    return createReadStream(this.#path(id, "jsonl"));
  }

  /** The latest first. */
  async list(): Promise<StoredFile[]> {
    const names = await readdir(this.#folder).catch(ifMissing([]));
    const ids = names.filter((name) => name.endsWith(".json")).map((name) => path.parse(name).name);
    const files = await Promise.all(ids.map((id) => this.read(id)));
    return files.filter((file) => file !== undefined).sort((a, b) => b.createdAt - a.createdAt || (a.id < b.id ? 1 : -1));
  }

  async delete(id: string): Promise<void> {
    for (const ending of ["json", "jsonl", "part"]) await rm(this.#path(id, ending), { force: true });
  }

  async #sweep(now: number): Promise<void> {
    const ids = new Set((await readdir(this.#folder)).map((name) => path.parse(name).name).filter((id) => ID.test(id)));
    for (const id of ids) {
      if ((await this.read(id, now)) !== undefined) continue;
      const touchedAt = await Promise.all(["part", "jsonl"].map((ending) => stat(this.#path(id, ending)).catch(ifMissing(undefined))));
      const isArriving = touchedAt.some((stats) => stats !== undefined && stats.mtimeMs > now - UNFINISHED_MS);
      const isExpired = (await stat(this.#path(id, "json")).catch(ifMissing(undefined))) !== undefined;
      if (isExpired || !isArriving) await this.delete(id);
    }
  }

  #path(id: string, ending: string): string {
    return path.join(this.#folder, `${id}.${ending}`);
  }
}

function parse(text: string): StoredFile | undefined {
  try {
    return storedFileSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}

function ifMissing<T>(value: T): (error: NodeJS.ErrnoException) => T {
  return (error) => {
    if (error.code === "ENOENT") return value;
    throw error;
  };
}
