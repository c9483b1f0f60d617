import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import path from "node:path";
import type { ProcessIdentity } from "../../queues/process-identity.ts";

/**
 * The live Redis servers of a data directory as /proc shows them, without asking the product: a process whose program is a Redis
 * and that works in the directory's folder or has a file of its data open. A fork of a server, which writes its file anew, is not one.
 */
export function redisServersOf(dataDir: string): ProcessIdentity[] {
  const folder = path.join(dataDir, "redis");
  const found: (ProcessIdentity & { parentPid: number })[] = [];
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    if (!/^[^\0]*(redis|valkey)-(server|aof|rdb)/.test(read(pid, "cmdline"))) continue;
    if (target(pid, "cwd") !== folder && !openFiles(pid).some((file) => file.startsWith(path.join(folder, "appendonlydir")))) continue;
    const stat = read(pid, "stat");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (stat !== "" && !/[ZXx]/.test(fields[0]!))
      found.push({ pid: Number(pid), parentPid: Number(fields[1]), startTicks: Number(fields[19]) });
  }
  return found.filter(({ parentPid }) => !found.some(({ pid }) => pid === parentPid)).map(({ pid, startTicks }) => ({ pid, startTicks }));
}

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

function read(pid: string, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "latin1");
  } catch {
    return "";
  }
}
