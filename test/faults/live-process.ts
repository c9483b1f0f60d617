import { readFileSync } from "node:fs";
import type { ProcessIdentity } from "../../queues/process-identity.ts";

/** A process that has not ended, as /proc shows it. */
export interface LiveProcess extends ProcessIdentity {
  parentPid: number;
  /** The state letter of /proc/PID/stat; `T` is stopped. */
  state: string;
}

/** Null when it has ended. It counts until all its threads have: a leader that is a zombie beside a running thread still holds the memory. */
export function liveProcess(pid: string): LiveProcess | null {
  const stat = readProc(pid, "stat");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const state = fields[0] ?? "";
  const threads = Number(fields[17]);
  if (stat === "" || (/[ZXx]/.test(state) && !(threads > 1))) return null;
  return { pid: Number(pid), parentPid: Number(fields[1]), startTicks: Number(fields[19]), state };
}

/** Those of `processes` that still live, in the same order. */
export function stillLive<T extends LiveProcess>(processes: T[]): T[] {
  return processes.filter(({ pid, startTicks }) => liveProcess(String(pid))?.startTicks === startTicks);
}

/** Empty when the process is gone, or another user's. */
export function readProc(pid: string, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "latin1");
  } catch {
    return "";
  }
}
