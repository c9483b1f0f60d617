import { type ChildProcess, spawn } from "node:child_process";
import type net from "node:net";

/**
 * Ends a process's whole group when this process ends, however it ends: a shell waits for its end of a pipe to close, which the kernel
 * does even after a kill -9. For children that don't notice that their parent is gone. Kill what is returned when the group has ended:
 * its id may be another's later.
 */
export function endWithUs(groupLeaderPid: number): ChildProcess {
  const watcher = spawn("/bin/sh", ["-c", 'read -r _; kill -s KILL -- "-$0"', String(groupLeaderPid)], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true,
  });
  // Without a shell nothing watches; the group then outlives only a kill -9.
  watcher.on("error", () => {});
  watcher.unref();
  const stdin = watcher.stdin as net.Socket | undefined;
  stdin?.on("error", () => {});
  stdin?.unref();
  return watcher;
}
