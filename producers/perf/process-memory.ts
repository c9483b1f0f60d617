import { readFile } from "node:fs/promises";

const SAMPLE_MS = 1000;

export interface ProcessMemory {
  /** Epoch milliseconds. */
  ts: number;
  rssBytes: number;
}

/** Watches a process's resident memory once a second, where there is a /proc; `stop` hands over what was seen. */
export function watchMemory(pid: number): { stop: () => ProcessMemory[] } {
  const seen: ProcessMemory[] = [];
  const look = async () => {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
    const kilobytes = /^VmRSS:\s+(\d+) kB/m.exec(status)?.[1];
    if (kilobytes !== undefined) seen.push({ ts: Date.now(), rssBytes: Number(kilobytes) * 1024 });
  };
  void look();
  const timer = setInterval(() => void look(), SAMPLE_MS);
  return {
    stop: () => {
      clearInterval(timer);
      return seen;
    },
  };
}

/**
 * How a series of bytes moved over its second half: the mean of its last tenth against that of the tenth after the middle; null for fewer than
 * 20 values. The first half is left out: a runtime's heap grows to its working size at first, which is no leak.
 */
export function growthBytes(values: readonly number[]): number | null {
  const tenth = Math.floor(values.length / 10);
  if (tenth < 2) return null;
  const middle = Math.floor(values.length / 2);
  const mean = (part: readonly number[]) => part.reduce((sum, value) => sum + value, 0) / part.length;
  return mean(values.slice(-tenth)) - mean(values.slice(middle, middle + tenth));
}
