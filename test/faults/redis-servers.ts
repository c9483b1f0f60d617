import { readdirSync, readlinkSync } from "node:fs";
import path from "node:path";
import { type LiveProcess, liveProcess, readProc } from "./live-process.ts";

/** A process just forked still shows its parent's command line and folder, and on a busy machine for a while: only one seen this long is settled. */
const SETTLED_AFTER_MS = 20_000;

/**
 * Finds the live Redis servers of a data directory as /proc shows them, without asking the product: a process whose program is a
 * Redis and that works in the directory's folder or has a file of its data open. A fork of a server, which writes its file anew, is
 * not one.
 */
export class RedisServerFinder {
  readonly #folder: string;
  /** When processes that are no Redis were first seen; after `SETTLED_AFTER_MS` they are no longer read. */
  readonly #strangers = new Map<string, number>();

  constructor(dataDir: string) {
    this.#folder = path.join(dataDir, "redis");
  }

  look(): LiveProcess[] {
    const pids = readdirSync("/proc").filter((name) => name.charCodeAt(0) <= 57);
    const present = new Set(pids);
    for (const pid of this.#strangers.keys()) if (!present.has(pid)) this.#strangers.delete(pid);
    const found: LiveProcess[] = [];
    const now = performance.now();
    for (const pid of pids) {
      const since = this.#strangers.get(pid);
      if (since !== undefined && now - since > SETTLED_AFTER_MS) continue;
      if (!/^[^\0]*(redis|valkey)-(server|aof|rdb)/.test(readProc(pid, "cmdline"))) {
        this.#strangers.set(pid, since ?? now);
      } else if (this.#isOfFolder(pid)) {
        const server = liveProcess(pid);
        if (server !== null) found.push(server);
      }
    }
    return found.filter(({ parentPid }) => !found.some(({ pid }) => pid === parentPid));
  }

  #isOfFolder(pid: string): boolean {
    const data = path.join(this.#folder, "appendonlydir");
    return target(pid, "cwd") === this.#folder || openFiles(pid).some((file) => file.startsWith(data));
  }
}

/** One look. */
export const redisServersOf = (dataDir: string): LiveProcess[] => new RedisServerFinder(dataDir).look();

function openFiles(pid: string): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map((fd) => target(pid, `fd/${fd}`));
  } catch {
    return [];
  }
}

/** Where a link of /proc points to; empty when the process is gone, or another user's. */
function target(pid: string, link: string): string {
  try {
    return readlinkSync(`/proc/${pid}/${link}`);
  } catch {
    return "";
  }
}
