import { spawn } from "node:child_process";
import { once } from "node:events";
import { constants, type FileHandle, open } from "node:fs/promises";
import { MathllmError } from "./errors.ts";

/**
 * An exclusive lock that the kernel keeps on a file. It belongs to the open file: it lasts until every process that has the
 * descriptor, by inheritance too, has closed it or ended, however it ended. A child that is given the descriptor thus takes the
 * lock along and holds it for as long as it lives. The file must never be removed: a lock on its successor is another lock.
 */
export type FileLock = FileHandle;

/** BSD and macOS lock while opening; Node's constants lack their flag. */
const O_EXLOCK = 0x20;
const LOCKS_ON_OPEN = ["darwin", "freebsd", "openbsd"].includes(process.platform);
/** What the program flock exits with when another has the lock. */
const EXIT_TAKEN = 1;

/** Takes the lock, or undefined when it is taken. Throws what opening the file throws, or `redis-unavailable` where the program flock is missing. */
export async function tryLockFile(file: string): Promise<FileLock | undefined> {
  if (LOCKS_ON_OPEN) return lockedOnOpen(file);
  const handle = await open(file, "a", 0o600);
  try {
    // The descriptor that flock is given is ours: the lock stays when flock has ended.
    const child = spawn("flock", ["-n", "3"], { stdio: ["ignore", "ignore", "ignore", handle.fd] });
    const [code] = (await once(child, "exit")) as [number | null];
    if (code === 0) return handle;
    if (code !== EXIT_TAKEN) throw new Error(`flock ended with code ${code}`);
  } catch (error) {
    await handle.close();
    throw new MathllmError(
      "redis-unavailable",
      `Expected to lock ${file} with the program flock, which keeps two servers off one folder; ${(error as Error).message}. Install it (package util-linux), or set REDIS_URL to a running server.`,
    );
  }
  await handle.close();
  return undefined;
}

async function lockedOnOpen(file: string): Promise<FileLock | undefined> {
  try {
    return await open(file, constants.O_RDWR | constants.O_CREAT | constants.O_NONBLOCK | O_EXLOCK, 0o600);
  } catch (error) {
    if (["EAGAIN", "EWOULDBLOCK"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw error;
  }
}
