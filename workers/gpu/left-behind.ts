import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { MathllmError } from "../../queues/errors.ts";
import { isAlive, type ProcessIdentity, startTicksOf } from "../../queues/process-identity.ts";
import { PARENT_VARIABLE } from "../engines/engine.ts";

/**
 * What a worker that died, or was stopped, has left on this host. It may still hold the GPU's memory, so it must be seen dead
 * before anything is loaded.
 */
const KILL_TIMEOUT_MS = 10_000;
const POLL_MS = 10;

/** Kills that very process and waits until it is gone. Throws `engine-failed` when it does not go. */
export async function killForGood(identity: ProcessIdentity): Promise<void> {
  const giveUpAt = Date.now() + KILL_TIMEOUT_MS;
  while (isAlive(identity)) {
    try {
      process.kill(identity.pid, "SIGKILL");
    } catch (error) {
      throw new MathllmError(
        "engine-failed",
        `Process ${identity.pid} still holds the model's memory and can't be killed (${(error as Error).message}); stop it by hand.`,
      );
    }
    if (Date.now() > giveUpAt) {
      throw new MathllmError("engine-failed", `Process ${identity.pid} was killed and does not end; it still holds the model's memory.`);
    }
    await delay(POLL_MS);
  }
}

/**
 * Kills a model server with all that it started and waits until nothing is left: vLLM's engine core holds the memory and may outlive
 * the process that was recorded. Returns how many there were. Its group's processes are known by the variable that they inherited, so
 * that a recycled pid is nobody else's end.
 */
export async function killModelServer(identity: ProcessIdentity): Promise<number> {
  const group = groupOf(identity.pid);
  if (isAlive(identity) && !group.some(({ pid }) => pid === identity.pid)) group.push(identity);
  for (const member of group) await killForGood(member);
  return group.length;
}

/** Off Linux empty. */
function groupOf(leaderPid: number): ProcessIdentity[] {
  return readDirectory("/proc")
    .filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
    .map(Number)
    .filter((pid) => groupIdOf(pid) === leaderPid && parentOf(pid) !== null)
    .map((pid) => ({ pid, startTicks: startTicksOf(pid) }));
}

function groupIdOf(pid: number): number | null {
  const stat = readText(`/proc/${pid}/stat`);
  // State, parent and group follow the command's name, which may itself contain spaces and parentheses.
  return stat === "" ? null : Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[2]);
}

/** Stopped by SIGSTOP, a debugger or Ctrl-Z: it can neither serve nor give anything back. Off Linux never. */
export function isStopped({ pid }: ProcessIdentity): boolean {
  const stat = readText(`/proc/${pid}/stat`);
  // The state follows the command's name, which may itself contain spaces and parentheses.
  return "Tt".includes(stat.charAt(stat.lastIndexOf(")") + 2) || "-");
}

/** Who listens on a TCP port of this host, seen in /proc; null when nobody does, or it can't be seen. */
export function portOwner(port: number): (ProcessIdentity & { command: string }) | null {
  const inode = ["tcp", "tcp6"].map((table) => listeningInode(table, port)).find((found) => found !== undefined);
  if (inode === undefined) return null;
  for (const entry of readDirectory("/proc")) {
    if (!/^\d+$/.test(entry) || !holdsSocket(entry, inode)) continue;
    const pid = Number(entry);
    return { pid, startTicks: startTicksOf(pid), command: readText(`/proc/${pid}/cmdline`).replaceAll("\0", " ").trim() };
  }
  return null;
}

/**
 * Stops a model server of ours whose worker is gone and that still holds this port: one that was stopped (SIGSTOP) when its worker
 * died misses its end. Returns it, or null when the port was free. Throws `port-in-use`, naming the process, when it is anyone else's.
 */
export async function clearPort(port: number): Promise<ProcessIdentity | null> {
  const owner = port === 0 ? null : portOwner(port);
  if (owner === null) return null;
  const parent = parentOf(owner.pid);
  if (parent !== null && !isAlive(parent)) {
    await killModelServer({ ...owner, pid: groupIdOf(owner.pid) ?? owner.pid });
    await killForGood(owner);
    return owner;
  }
  throw new MathllmError(
    "port-in-use",
    `Port ${port} is taken by process ${owner.pid} (${owner.command.slice(0, 200) || "unknown"}). Stop it, or set STUDENT_PORT or TALKER_PORT to a free one (0 finds one).`,
  );
}

/** The worker that started this model server; null when it is not one of ours. */
function parentOf(pid: number): ProcessIdentity | null {
  const prefix = `${PARENT_VARIABLE}=`;
  const value = readText(`/proc/${pid}/environ`)
    .split("\0")
    .find((entry) => entry.startsWith(prefix));
  const [parent, ticks] = value?.slice(prefix.length).split(":") ?? [];
  return parent === undefined ? null : { pid: Number(parent), startTicks: Number(ticks) };
}

function listeningInode(table: string, port: number): string | undefined {
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  const LISTEN = "0A";
  return readText(`/proc/net/${table}`)
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .find((fields) => fields[1]?.endsWith(`:${hexPort}`) && fields[3] === LISTEN)?.[9];
}

function holdsSocket(pid: string, inode: string): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`;
      } catch {
        return false;
      }
    });
  } catch {
    return false;
  }
}

function readDirectory(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
