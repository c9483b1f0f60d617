import type { JobView } from "../queues/contracts.ts";
import { END_ID, type TextEvent } from "../queues/job-events.ts";
import type { Role } from "../queues/names.ts";
import type { TokenChunk } from "../queues/token-stream.ts";
import { isAfter } from "./gpu-event-feed.ts";

/** The id of what comes before any chunk. */
const FIRST_ID = "0-1";

/** A job's text as events, in order: from its chunks as they come and, at the end, from its result. The same for every reader of the same job. */
export class JobText {
  readonly events: TextEvent[] = [];
  /** The latest attempt told of each text. */
  readonly #attempts = new Map<string, number>();

  /** `solved`: the Student's text, where it comes from the cache. */
  constructor(solved?: string) {
    if (solved !== undefined) this.#add({ id: FIRST_ID, role: "student", attempt: 0, sample: null, text: solved });
  }

  add(chunks: TokenChunk[]): void {
    for (const chunk of chunks) this.#add(chunk);
  }

  #add({ id, role, attempt, sample, text }: TokenChunk): void {
    const latest = this.#attempts.get(keyOf(role, sample));
    // A worker that was taken for dead may write on for a while.
    if (latest !== undefined && attempt < latest) return;
    if (attempt !== latest) this.#begin(role, attempt, sample);
    this.events.push({ event: "token", id, data: { model: role, attempt, sample, text } });
  }

  #begin(role: Role, attempt: number, sample: number | null): void {
    this.#attempts.set(keyOf(role, sample), attempt);
    this.events.push({ event: "model", data: { model: role, attempt, sample } });
  }

  /** No chunk will come any more: adds what no stream held (a cached or voted text, a chunk lost with a connection). */
  complete({ result, stages }: JobView): void {
    const texts: Record<Role, string | null> = { student: result?.solution ?? null, talker: result?.explanation ?? null };
    for (const role of ["student", "talker"] as const) {
      const text = texts[role];
      const told = this.#textOf(role);
      if (text === null || text === told) continue;
      const isWhole = told === "" || !text.startsWith(told);
      const attempt = stages.find(({ model }) => model === role)?.attempts ?? this.#attempts.get(keyOf(role, null)) ?? 0;
      if (isWhole) this.#begin(role, attempt, null);
      const rest = { model: role, attempt, sample: null, text: isWhole ? text : text.slice(told.length) };
      this.events.push({ event: "token", id: `rest-${role}`, data: rest });
    }
  }

  #textOf(role: Role): string {
    const attempt = this.#attempts.get(keyOf(role, null));
    return this.events
      .map(({ event, data }) =>
        event === "token" && data.model === role && data.sample === null && data.attempt === attempt ? data.text : "",
      )
      .join("");
  }
}

const keyOf = (role: Role, sample: number | null) => `${role} ${sample}`;

/** Whether an event comes after another of the same job, by their ids. */
export function comesAfter(id: string, other: string): boolean {
  const [rank, otherRank] = [rankOf(id), rankOf(other)];
  return rank === 0 && otherRank === 0 ? isAfter(id, other) : rank > otherRank;
}

function rankOf(id: string): number {
  return Math.max(["rest-student", "rest-talker", END_ID].indexOf(id) + 1, 0);
}
