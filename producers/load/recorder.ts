import { createHash, randomUUID } from "node:crypto";
import { createReadStream, createWriteStream, type WriteStream } from "node:fs";
import { access, mkdir, open, readFile, rename, writeFile } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { z } from "zod";
import { MathllmError } from "../../queues/errors.ts";
import type { SessionTimes } from "./generator.ts";
import { type LoadPlan, loadPlanSchema } from "./load-options.ts";
import { type LoadRecord, loadRecordSchema } from "./record.ts";
import type { LoadSummary } from "./summary.ts";

const sessionSchema = z.object({
  startedAt: z.number(),
  baseAt: z.number(),
  fromMs: z.number(),
  /** null: it crashed. */
  toMs: z.number().nullable(),
});
export type Session = z.infer<typeof sessionSchema>;

/** `run.json`: what `--resume` needs. */
const runSchema = z.object({
  schemaVersion: z.literal(1),
  runId: z.string(),
  fingerprint: z.string(),
  url: z.string(),
  plan: loadPlanSchema,
  promptScale: z.object({ baseTokens: z.number(), charsPerToken: z.number() }).nullable(),
  sessions: z.array(sessionSchema),
});
type Run = z.infer<typeof runSchema>;

export const FILES = { run: "run.json", requests: "requests.jsonl", server: "server.jsonl", summary: "summary.json" } as const;

/** What only judges a run does not define it. */
const JUDGING = ["slo", "allowTruncated", "toleratedDelayMs"];

/** Digest of a plan and of the files that it reads. */
export async function fingerprintOf(plan: LoadPlan): Promise<string> {
  const hash = createHash("sha256");
  const sorted = (_key: string, value: unknown) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value;
  hash.update(JSON.stringify(Object.fromEntries(Object.entries(plan).filter(([name]) => !JUDGING.includes(name))), sorted));
  const files = [
    plan.problems.source === "bank" ? plan.problems.file : null,
    plan.arrivals.pattern === "replay" ? plan.arrivals.file : null,
  ];
  for (const file of files) {
    if (file === null) continue;
    try {
      for await (const bytes of createReadStream(file)) hash.update(bytes as Buffer);
    } catch (error) {
      throw new MathllmError("invalid-request", `Expected a file at ${file}; ${(error as Error).message}.`, { cause: error });
    }
  }
  return hash.digest("hex").slice(0, 16);
}

/** The plan and address recorded in a folder. */
export async function recordedRun(outDir: string): Promise<Run> {
  const file = path.join(outDir, FILES.run);
  try {
    return runSchema.parse(JSON.parse(await readFile(file, "utf8")));
  } catch (error) {
    throw new MathllmError("invalid-configuration", `Expected a recorded run in ${outDir} to go on with; ${file}: ${reasonOf(error)}.`, {
      cause: error,
    });
  }
}

const reasonOf = (error: unknown) => (error instanceof z.ZodError ? z.prettifyError(error) : (error as Error).message);

/** Keeps the records of a run, in memory for the figures and, with a folder, on disk as they happen. */
export class Recorder {
  readonly run: Run;
  /** All sessions'. */
  readonly records: LoadRecord[];
  readonly #dir: string | null;
  readonly #recorded: Set<number>;
  #requests: WriteStream | null = null;
  #server: WriteStream | null = null;
  #error: Error | undefined;

  private constructor(dir: string | null, run: Run, records: LoadRecord[]) {
    this.#dir = dir;
    this.run = run;
    this.records = records;
    this.#recorded = new Set(records.map(({ index }) => index));
  }

  /**
   * @throws MathllmError `invalid-configuration`: the folder holds a run and `resume` isn't set, or holds none or another one and it is.
   */
  static async open(options: { outDir: string | null; resume: boolean; plan: LoadPlan; url: string }): Promise<Recorder> {
    const { outDir, resume, plan, url } = options;
    const fingerprint = await fingerprintOf(plan);
    if (resume) {
      if (outDir === null) throw new MathllmError("invalid-configuration", "Expected a folder to resume a run from; came none.");
      const run = await recordedRun(outDir);
      if (run.fingerprint !== fingerprint) {
        throw new MathllmError("invalid-configuration", `Expected the plan that ${outDir} has recorded; ${differences(run.plan, plan)}.`);
      }
      return new Recorder(outDir, run, await readRecords(path.join(outDir, FILES.requests)));
    }
    if (outDir !== null && (await exists(path.join(outDir, FILES.run)))) {
      throw new MathllmError(
        "invalid-configuration",
        `Expected an empty folder; ${outDir} holds a run. Go on with it by --resume, or name another.`,
      );
    }
    const run: Run = { schemaVersion: 1, runId: randomUUID(), fingerprint, url, plan, promptScale: null, sessions: [] };
    return new Recorder(outDir, run, []);
  }

  get session(): number {
    return Math.max(this.run.sessions.length - 1, 0);
  }

  get files(): string[] {
    return this.#dir === null ? [] : Object.values(FILES);
  }

  isRecorded(index: number): boolean {
    return this.#recorded.has(index);
  }

  /** Makes the folder and its files; before it nothing is written, so that a run that can't begin leaves nothing behind. */
  async openFiles(): Promise<void> {
    if (this.#dir === null) return;
    try {
      await mkdir(this.#dir, { recursive: true });
    } catch (error) {
      throw new MathllmError("invalid-request", `Expected ${this.#dir} to be a folder that can be written; ${(error as Error).message}.`);
    }
    this.#requests = this.#append(path.join(this.#dir, FILES.requests));
    this.#server = this.#append(path.join(this.#dir, FILES.server));
  }

  async beginSession(times: Omit<SessionTimes, "toMs">): Promise<void> {
    this.run.sessions.push({ startedAt: Date.now(), ...times, toMs: null });
    await this.#writeRun();
  }

  async endSession(toMs: number): Promise<void> {
    this.run.sessions.at(-1)!.toMs = toMs;
    await this.#writeRun();
  }

  /** Throws when the disk didn't take an earlier one. */
  record(record: LoadRecord): void {
    if (this.#error !== undefined) throw this.#error;
    this.records.push(record);
    this.#recorded.add(record.index);
    this.#requests?.write(`${JSON.stringify(record)}\n`);
  }

  server(line: object): void {
    this.#server?.write(`${JSON.stringify(line)}\n`);
  }

  async close(): Promise<void> {
    await Promise.all(
      [this.#requests, this.#server].map((stream) => stream && new Promise<void>((resolve) => stream.end(() => resolve()))),
    );
    if (this.#error !== undefined) throw this.#error;
  }

  async writeSummary(summary: LoadSummary): Promise<void> {
    if (this.#dir !== null) await replace(path.join(this.#dir, FILES.summary), summary);
  }

  async #writeRun(): Promise<void> {
    if (this.#dir !== null) await replace(path.join(this.#dir, FILES.run), this.run);
  }

  #append(file: string): WriteStream {
    return createWriteStream(file, { flags: "a" }).on("error", (error) => {
      this.#error ??= new MathllmError("invalid-request", `Expected ${file} to be a file that can be written; ${error.message}.`);
    });
  }
}

/** Whole or not at all. */
async function replace(file: string, value: object): Promise<void> {
  await writeFile(`${file}.tmp`, `${JSON.stringify(value, null, 2)}\n`);
  await rename(`${file}.tmp`, file);
}

const exists = (file: string) =>
  access(file).then(
    () => true,
    () => false,
  );

/** A last line that a crash cut short is taken off the file, so that the next one doesn't run on from it. */
async function readRecords(file: string): Promise<LoadRecord[]> {
  await dropTornLine(file);
  const records = new Map<number, LoadRecord>();
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Number.POSITIVE_INFINITY })) {
    const record = loadRecordSchema.parse(JSON.parse(line));
    records.set(record.index, record);
  }
  return [...records.values()];
}

async function dropTornLine(file: string): Promise<void> {
  const handle = await open(file, "a+");
  try {
    const { size } = await handle.stat();
    const block = Buffer.alloc(64 * 1024);
    let end = size;
    while (end > 0) {
      const from = Math.max(end - block.length, 0);
      const { bytesRead } = await handle.read(block, 0, end - from, from);
      const newline = block.subarray(0, bytesRead).lastIndexOf(10);
      if (newline >= 0) {
        end = from + newline + 1;
        break;
      }
      end = from;
    }
    if (end < size) await handle.truncate(end);
  } finally {
    await handle.close();
  }
}

function differences(recorded: LoadPlan, given: LoadPlan): string {
  const names = [...new Set([...Object.keys(recorded), ...Object.keys(given)])] as (keyof LoadPlan)[];
  const text = (value: unknown) => JSON.stringify(value) ?? "nothing";
  const differing = names.filter((name) => !JUDGING.includes(name) && text(recorded[name]) !== text(given[name]));
  if (differing.length === 0) return "a file that it reads has changed";
  return differing.map((name) => `${name} was ${text(recorded[name])} and came as ${text(given[name])}`).join(", ");
}
