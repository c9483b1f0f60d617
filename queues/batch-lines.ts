import type { Grade } from "../maths/grading.ts";
import type { BatchLineError } from "./batch-contracts.ts";
import type { JobError, JobView } from "./contracts.ts";
import { type JobKind, type Role, rolesOfKind } from "./names.ts";

/** The lines of a batch have one character each: a line is open until its end is settled, once. */
export const LINE = { invalid: "-", open: "o", completed: "c", failed: "f", cancelled: "x" } as const;
export type LineState = (typeof LINE)[keyof typeof LINE];

/** What a line asks for; with a capital letter by a vote. */
const KIND_LETTERS: Record<string, { kind: JobKind; isVote: boolean }> = {
  s: { kind: "solve", isVote: false },
  S: { kind: "solve", isVote: true },
  e: { kind: "explain", isVote: false },
  E: { kind: "explain", isVote: true },
  t: { kind: "talk", isVote: false },
};
export const NO_KIND = "-";

export function kindLetter(kind: JobKind, isVote: boolean): string {
  return Object.keys(KIND_LETTERS).find((letter) => KIND_LETTERS[letter]!.kind === kind && KIND_LETTERS[letter]!.isVote === isVote)!;
}

/** How many of the lines with these letters need the model. */
export function linesNeeding(role: Role, kinds: string): number {
  return [...kinds].filter((letter) => letter !== NO_KIND && rolesOfKind(KIND_LETTERS[letter]!.kind).includes(role)).length;
}

/** How a line ended whose job does not tell: an answer from the cache, a follower, one that was removed. */
export interface LineRecord {
  jobId: string;
  status: "completed" | "failed" | "cancelled";
  /** Names the result, which many lines may share. */
  answer?: string;
  grade?: Grade;
  error?: JobError;
}

export type SharedResult = NonNullable<JobView["result"]>;

/** What is recorded of some lines when they are taken. */
export interface Chunk {
  digest: string;
  states: string;
  kinds: string;
  customIds: (string | null)[];
  errors: BatchLineError[];
  /** Of lines that are known already, by index. */
  records: Map<number, LineRecord>;
  answers: Map<string, SharedResult>;
  cached: number;
  coalesced: number;
}

/** How a line has ended. */
export interface Settled {
  index: number;
  state: "c" | "f" | "x";
  verdict?: Grade["verdict"];
  /** A job's own result stays with it, and the job stays as long as the batch. */
  job?: { jobId: string; finishedAt: number };
  record?: LineRecord;
}

/** Some lines of a batch, `from` the first. */
export class BatchLines {
  readonly from: number;
  readonly states: string;
  readonly #kinds: string;

  constructor(from: number, states: string, kinds: string) {
    this.from = from;
    this.states = states;
    this.#kinds = kinds;
  }

  get to(): number {
    return this.from + this.states.length;
  }

  stateOf(index: number): LineState {
    return this.states[index - this.from] as LineState;
  }

  /** Not of an invalid line. */
  kindOf(index: number): { kind: JobKind; isVote: boolean } {
    return KIND_LETTERS[this.#kinds[index - this.from] ?? NO_KIND]!;
  }

  /** The indexes of the open lines. */
  *open(): Generator<number> {
    for (let at = this.states.indexOf(LINE.open); at >= 0; at = this.states.indexOf(LINE.open, at + 1)) yield this.from + at;
  }
}
