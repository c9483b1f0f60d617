import { constants } from "node:fs";
import { type FileHandle, mkdir, open, rename, stat } from "node:fs/promises";
import path from "node:path";
import type { Logger } from "pino";

const ROTATE_BYTES = 50 * 1024 * 1024;
const KEPT_FILES = 2;

export type TelemetryKind = "sample" | "job" | "decision" | "swap" | "oom" | "guardrail";

/**
 * The telemetry file: one JSON object a line, `{ts, kind, …}`; times in milliseconds, memory in bytes.
 * Mode 0600, in a folder that is made if need be; what is no regular file of ours under one name is refused, and at 50 MB it is rotated to
 * `.1` and `.2`. Only the worker writes it. Telemetry never stops a job: an error is logged once and the rest is dropped.
 */
export class Telemetry {
  readonly #path: string;
  readonly #log: Logger;
  #file: FileHandle | undefined;
  #sizeBytes = 0;
  #pending: string[] = [];
  #writing: Promise<void> | undefined;
  #broken = false;

  constructor(path: string, log: Logger) {
    this.#path = path;
    this.#log = log;
  }

  write(kind: TelemetryKind, record: object): void {
    if (this.#broken) return;
    this.#pending.push(`${JSON.stringify({ ts: Date.now(), kind, ...record })}\n`);
    this.#writing ??= this.#drain();
  }

  async close(): Promise<void> {
    await this.#writing;
    await this.#file?.close();
    this.#file = undefined;
  }

  async #drain(): Promise<void> {
    try {
      while (this.#pending.length > 0) {
        const lines = this.#pending.join("");
        this.#pending = [];
        const file = await this.#opened();
        const { bytesWritten } = await file.write(lines);
        this.#sizeBytes += bytesWritten;
        if (this.#sizeBytes >= ROTATE_BYTES) await this.#rotate();
      }
    } catch (error) {
      this.#broken = true;
      this.#pending = [];
      this.#log.warn(
        { path: this.#path, reason: (error as Error).message },
        "telemetry is off: expected a file that is ours, or a place where one can be made; set TELEMETRY_LOG to another path",
      );
    } finally {
      this.#writing = undefined;
    }
  }

  async #opened(): Promise<FileHandle> {
    if (this.#file === undefined) {
      await mkdir(path.dirname(this.#path), { recursive: true, mode: 0o700 });
      // O_NONBLOCK: to open a FIFO would otherwise wait for its reader.
      const flags = constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_NONBLOCK;
      this.#file = await open(this.#path, flags, 0o600);
      const stats = await this.#file.stat();
      const uid = process.getuid?.();
      if (!stats.isFile()) throw new Error("it is no regular file");
      if (uid !== undefined && stats.uid !== uid) throw new Error(`it belongs to another user (uid ${stats.uid}, not ${uid})`);
      if (stats.nlink > 1) throw new Error("it is another name of a file that has several");
      await this.#file.chmod(0o600);
      this.#sizeBytes = stats.size;
    }
    return this.#file;
  }

  async #rotate(): Promise<void> {
    await this.#file?.close();
    this.#file = undefined;
    for (let n = KEPT_FILES; n > 0; n--) {
      const from = n === 1 ? this.#path : `${this.#path}.${n - 1}`;
      if (await exists(from)) await rename(from, `${this.#path}.${n}`);
    }
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch {
    return false;
  }
}
