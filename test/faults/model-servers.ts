import { readdirSync } from "node:fs";
import { type LiveProcess, liveProcess, readProc } from "./live-process.ts";

/** A model server's command line names this file. */
const COMMAND_PART = "embedded-server";
/** A process just forked still shows its parent's command line and environment, so a first look settles nothing. */
const LOOKS_TO_SETTLE = 5;

/**
 * Finds the live model servers whose environment carries the storm's mark, without asking the product for anything.
 */
export class ModelServerFinder {
  readonly #mark: string;
  /** Looks at processes that are not ours; at `LOOKS_TO_SETTLE` they are no longer read. */
  readonly #strangers = new Map<string, number>();

  /** `mark`: `NAME=value`, as it stands in the environment of everything the storm started. */
  constructor(mark: string) {
    this.#mark = mark;
  }

  look(): LiveProcess[] {
    const pids = readdirSync("/proc").filter((name) => name.charCodeAt(0) <= 57);
    const present = new Set(pids);
    for (const pid of this.#strangers.keys()) if (!present.has(pid)) this.#strangers.delete(pid);
    const found: LiveProcess[] = [];
    for (const pid of pids) {
      const looks = this.#strangers.get(pid) ?? 0;
      if (looks >= LOOKS_TO_SETTLE) continue;
      if (!readProc(pid, "environ").split("\0").includes(this.#mark)) {
        this.#strangers.set(pid, looks + 1);
      } else if (readProc(pid, "cmdline").includes(COMMAND_PART)) {
        const server = liveProcess(pid);
        if (server !== null) found.push(server);
      }
    }
    // A helper that a model server is just starting looks like it until it has become its own program.
    return found.filter(({ parentPid }) => !found.some(({ pid }) => pid === parentPid));
  }
}
