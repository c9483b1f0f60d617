import { readdirSync, readlinkSync } from "node:fs";
import path from "node:path";
import { type LiveProcess, liveProcess, readProc } from "./live-process.ts";

/** A process just forked still shows its parent's command line and folder, so a first look settles nothing. */
const LOOKS_TO_SETTLE = 5;

/**
 * Finds the live Redis servers of a data directory as /proc shows them, without asking the product: a process whose program is a
 * Redis and that works in the directory's folder or has a file of its data open. A fork of a server, which writes its file anew, is
 * not one.
 */
export class RedisServerFinder {
  readonly #folder: string;
  /** Looks at processes that are no Redis; at `LOOKS_TO_SETTLE` they are no longer read. */
  readonly #strangers = new Map<string, number>();

  constructor(dataDir: string) {
    this.#folder = path.join(dataDir, "redis");
  }

  look(): LiveProcess[] {
    const pids = readdirSync("/proc").filter((name) => name.charCodeAt(0) <= 57);
    const present = new Set(pids);
    for (const pid of this.#strangers.keys()) if (!present.has(pid)) this.#strangers.delete(pid);
    const found: LiveProcess[] = [];
    for (const pid of pids) {
      const looks = this.#strangers.get(pid) ?? 0;
      if (looks >= LOOKS_TO_SETTLE) continue;
      if (!/^[^\0]*(redis|valkey)-(server|aof|rdb)/.test(readProc(pid, "cmdline"))) {
        this.#strangers.set(pid, looks + 1);
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
