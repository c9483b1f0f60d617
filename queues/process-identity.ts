import { readFileSync, readlinkSync } from "node:fs";
import os from "node:os";

/**
 * A pid alone can be another process by now: with the start time (field 22 of /proc/PID/stat, clock ticks since boot) and
 * the host's boot it names one process for good. Off Linux the start time is null and only the pid counts.
 */
export interface ProcessIdentity {
  pid: number;
  startTicks: number | null;
}

/** This boot of this host, and its pids as this process sees them: process identities can be compared only within one. */
export function hostBoot(): string {
  return `${os.hostname()}/${bootId()}${pidNamespace()}`;
}

/** Every container of a host sees the same; off Linux empty. */
export function bootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "";
  }
}

/** Containers may share host name and boot, and have pids of their own all the same. */
function pidNamespace(): string {
  try {
    return `/${readlinkSync("/proc/self/ns/pid")}`;
  } catch {
    return "";
  }
}

export function startTicksOf(pid: number): number | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The command's name, in parentheses, may itself contain spaces and parentheses.
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]);
  } catch {
    return null;
  }
}

/** Whether that very process still runs. A zombie has ended: its memory is gone. */
export function isAlive(identity: ProcessIdentity): boolean {
  try {
    process.kill(identity.pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM" && identity.startTicks === startTicksOf(identity.pid);
  }
  if (identity.startTicks === null) return true;
  return startTicksOf(identity.pid) === identity.startTicks && !isZombie(identity.pid);
}

function isZombie(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3) === "Z";
  } catch {
    return true;
  }
}

export function ownIdentity(): ProcessIdentity {
  return { pid: process.pid, startTicks: startTicksOf(process.pid) };
}
