import type { Redis } from "ioredis";
import { KEY_PREFIX, ROLES, type Role } from "../../queues/names.ts";

export interface StageEnd {
  role: Role;
  event: "completed" | "failed";
  /** When Redis wrote it, epoch milliseconds. */
  at: number;
  returnValue: string | null;
}

const READ_COUNT = 1000;
const BLOCK_MS = 500;

/**
 * BullMQ's event streams, read from their first entry on by concrete ids: a restart of Redis or a trimmed stream can't hide an
 * event. `missed` compares with the number of entries that Redis says were ever added.
 */
export class StageEvents {
  /** Every end of every stage, by stage id, in order. */
  readonly ends = new Map<string, StageEnd[]>();
  readonly completedAt: number[] = [];
  readonly #redis: Redis;
  readonly #lastIds = ROLES.map(() => "0-0");
  readonly #counts = ROLES.map(() => 0);
  #closed = false;
  readonly #reading: Promise<void>;

  /** `redis`: a connection of its own, since it blocks. */
  constructor(redis: Redis) {
    this.#redis = redis;
    this.#reading = this.#read();
  }

  /** Also closes its connection: a read that waits for a Redis that is away ends with it. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#redis.disconnect();
    await this.#reading;
  }

  /** Entries that were never seen, summed over both streams; null where Redis is too old to tell. */
  async missed(redis: Redis): Promise<number | null> {
    let missed = 0;
    for (const [i, role] of ROLES.entries()) {
      const info = (await redis.xinfo("STREAM", streamKey(role)).catch(() => null)) as unknown[] | null;
      if (info === null) continue;
      const at = info.indexOf("entries-added");
      if (at < 0) return null;
      missed += Number(info[at + 1]) - this.#counts[i]!;
    }
    return missed;
  }

  async #read(): Promise<void> {
    while (!this.#closed) {
      const streams = await this.#redis
        .xread("COUNT", READ_COUNT, "BLOCK", BLOCK_MS, "STREAMS", ...ROLES.map(streamKey), ...this.#lastIds)
        .catch(() => null);
      for (const [key, entries] of streams ?? []) {
        const i = ROLES.findIndex((role) => streamKey(role) === key);
        for (const [id, fields] of entries) {
          this.#lastIds[i] = id;
          this.#counts[i]!++;
          this.#record(ROLES[i]!, id, fields);
        }
      }
    }
  }

  #record(role: Role, id: string, fields: string[]): void {
    const field = (name: string): string | null => {
      for (let i = 0; i < fields.length; i += 2) if (fields[i] === name) return fields[i + 1]!;
      return null;
    };
    const event = field("event");
    const stageId = field("jobId");
    if (stageId === null || (event !== "completed" && event !== "failed")) return;
    const at = Number(id.split("-")[0]);
    if (event === "completed") this.completedAt.push(at);
    const ends = this.ends.get(stageId) ?? [];
    ends.push({ role, event, at, returnValue: field("returnvalue") });
    this.ends.set(stageId, ends);
  }
}

function streamKey(role: Role): string {
  return `${KEY_PREFIX}:${role}:events`;
}
