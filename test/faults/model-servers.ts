import { readdirSync, readFileSync } from "node:fs";
import type { ProcessIdentity } from "../../queues/process-identity.ts";

/** A model server of this storm, as /proc shows it. */
export interface ModelServer extends ProcessIdentity {
  parentPid: number;
  /** The state letter of /proc/PID/stat; `T` is stopped. */
  state: string;
}

/** A model server's command line names this file. */
const COMMAND_PART = "embedded-server";
/** A process just forked still shows its parent's command line and environment, so a first look settles nothing. */
const LOOKS_TO_SETTLE = 5;

/**
 * Finds the live model servers whose environment carries the storm's mark, without asking the product for anything. A process
 * counts until all its threads have ended: a leader that is a zombie beside a running thread still holds the memory.
 */
export class ModelServerFinder {
  readonly #mark: string;
  /** Looks at processes that are not ours; at `LOOKS_TO_SETTLE` they are no longer read. */
  readonly #strangers = new Map<string, number>();

  /** `mark`: `NAME=value`, as it stands in the environment of everything the storm started. */
  constructor(mark: string) {
    this.#mark = mark;
  }

  look(): ModelServer[] {
    const pids = readdirSync("/proc").filter((name) => name.charCodeAt(0) <= 57);
    const present = new Set(pids);
    for (const pid of this.#strangers.keys()) if (!present.has(pid)) this.#strangers.delete(pid);
    const found: ModelServer[] = [];
    for (const pid of pids) {
      const looks = this.#strangers.get(pid) ?? 0;
      if (looks >= LOOKS_TO_SETTLE) continue;
      if (!read(pid, "environ").split("\0").includes(this.#mark)) {
        this.#strangers.set(pid, looks + 1);
      } else if (read(pid, "cmdline").includes(COMMAND_PART)) {
        const server = liveServer(pid);
        if (server !== null) found.push(server);
      }
    }
    // A helper that a model server is just starting looks like it until it has become its own program.
    return found.filter(({ parentPid }) => !found.some(({ pid }) => pid === parentPid));
  }

  /** Those of `servers` that still live, in the same order. */
  stillLive(servers: ModelServer[]): ModelServer[] {
    return servers.filter((server) => liveServer(String(server.pid))?.startTicks === server.startTicks);
  }
}

function liveServer(pid: string): ModelServer | null {
  const stat = read(pid, "stat");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const state = fields[0] ?? "";
  const threads = Number(fields[17]);
  if (stat === "" || (/[ZXx]/.test(state) && !(threads > 1))) return null;
  return { pid: Number(pid), parentPid: Number(fields[1]), startTicks: Number(fields[19]), state };
}

/** Empty when the process is gone, or another user's. */
function read(pid: string, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8");
  } catch {
    return "";
  }
}
