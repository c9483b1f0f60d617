import { readFileSync } from "node:fs";
import { open, stat } from "node:fs/promises";

const CHUNK_BYTES = 4 * 1_048_576;
/** Left to the rest of the system. */
const MARGIN_BYTES = 1_073_741_824;

/**
 * Reads files once, so that the kernel has them in its page cache when the next model is loaded from them. Does nothing when they
 * would not fit into the memory that is available. Ends early, without an error, when `signal` aborts. Returns the bytes read.
 */
export async function readIntoPageCache(files: string[], signal: AbortSignal): Promise<number> {
  const sizes = await Promise.all(files.map(async (file) => (await stat(file)).size));
  const neededBytes = sizes.reduce((sum, size) => sum + size, 0);
  if (neededBytes + MARGIN_BYTES > availableMemoryBytes()) return 0;
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  let totalBytes = 0;
  for (const file of files) {
    const handle = await open(file, "r");
    try {
      while (!signal.aborted) {
        const { bytesRead } = await handle.read(chunk, 0, CHUNK_BYTES, null);
        if (bytesRead === 0) break;
        totalBytes += bytesRead;
      }
    } finally {
      await handle.close();
    }
  }
  return totalBytes;
}

/** MemAvailable of /proc/meminfo; 0 where there is none, so that nothing is read ahead. */
function availableMemoryBytes(): number {
  try {
    return Number(/^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}
