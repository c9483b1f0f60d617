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
 * How much a series of bytes grew for good; null for fewer than 20 values. It is the smaller of two figures, which a leak raises both: the mean of
 * the last tenth above that of the tenth after the middle, and the second half's peak above the first half's. The former alone would take a
 * garbage collection in the middle for growth, the latter a runtime's heap on the way to its working size.
 */
export function growthBytes(values: readonly number[]): number | null {
  const tenth = Math.floor(values.length / 10);
  if (tenth < 2) return null;
  const middle = Math.floor(values.length / 2);
  const mean = (part: readonly number[]) => part.reduce((sum, value) => sum + value, 0) / part.length;
  const peak = (part: readonly number[]) => part.reduce((a, b) => Math.max(a, b), 0);
  const late = mean(values.slice(-tenth)) - mean(values.slice(middle, middle + tenth));
  return Math.min(late, peak(values.slice(middle)) - peak(values.slice(0, middle)));
}
