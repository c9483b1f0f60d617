import { setTimeout as delay } from "node:timers/promises";
import { lock } from "proper-lockfile";

const STALE_MS = 5000;
const RENEWED_EVERY_MS = 1000;
const POLL_MS = 250;

/**
 * Runs `work` while no other process that sees the same folder (another worker, a container with the same volume) runs it for this `file`.
 * The lock is a folder beside the file whose time of change is renewed, so one left behind by a `kill -9` is free again after five seconds.
 * `onWaiting` is told when another has it. `work`'s signal aborts with `signal`, and when the lock is lost because this process stood still.
 */
export async function withFileLock<T>(
  file: string,
  { signal, onWaiting }: { signal: AbortSignal; onWaiting?: () => void },
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const lost = new AbortController();
  const release = await acquire(file, (error) => lost.abort(error), signal, onWaiting);
  try {
    return await work(AbortSignal.any([signal, lost.signal]));
  } finally {
    // A lock that was lost is another's by now.
    await release().catch(() => {});
  }
}

async function acquire(
  file: string,
  onLost: (error: Error) => void,
  signal: AbortSignal,
  onWaiting?: () => void,
): Promise<() => Promise<void>> {
  for (;;) {
    signal.throwIfAborted();
    try {
      return await lock(file, { stale: STALE_MS, update: RENEWED_EVERY_MS, realpath: false, onCompromised: onLost });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ELOCKED") throw error;
    }
    onWaiting?.();
    await delay(POLL_MS, undefined, { signal }).catch(() => {});
  }
}
