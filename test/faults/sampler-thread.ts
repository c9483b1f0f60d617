import { parentPort, workerData } from "node:worker_threads";
import { type LiveProcess, stillLive } from "./live-process.ts";
import { ModelServerFinder } from "./model-servers.ts";
import { RedisServerFinder } from "./redis-servers.ts";

/** Looks at /proc every few milliseconds, in a thread of its own so that nothing the storm does delays a look. */

const LOOK_MS = 15;
/** More of the same would only fill the report. */
const KEPT_OVERLAPS = 20;

export interface SamplerReport {
  samples: number;
  /** Samples with a server in them. */
  occupied: number;
  maxLive: number;
  longestGapMs: number;
  /** Moments at which two lived at once, each pair once; `at` is epoch milliseconds. */
  overlaps: { at: number; servers: LiveProcess[] }[];
}

/** What is looked for: `mark`: the model servers of a storm; `dataDir`: the Redis servers of a data directory. */
export type Sampled = { mark: string } | { dataDir: string };

const sampled = workerData as Sampled;
const finder = "dataDir" in sampled ? new RedisServerFinder(sampled.dataDir) : new ModelServerFinder(sampled.mark);
const report: SamplerReport = { samples: 0, occupied: 0, maxLive: 0, longestGapMs: 0, overlaps: [] };
const seenPairs = new Set<string>();
let lastLookAt = performance.now();

const timer = setInterval(() => {
  const startedAt = performance.now();
  report.longestGapMs = Math.max(report.longestGapMs, startedAt - lastLookAt);
  lastLookAt = startedAt;
  let live = finder.look();
  // A look is not one moment: only those alive before and after the others were seen have lived at the same time.
  if (live.length > 1) live = stillLive(live);
  report.samples++;
  if (live.length > 0) report.occupied++;
  report.maxLive = Math.max(report.maxLive, live.length);
  if (live.length < 2) return;
  const pair = live.map(({ pid, startTicks }) => `${pid}/${startTicks}`).join(" ");
  if (seenPairs.has(pair) || report.overlaps.length >= KEPT_OVERLAPS) return;
  seenPairs.add(pair);
  report.overlaps.push({ at: Date.now(), servers: live });
}, LOOK_MS);

parentPort!.once("message", () => {
  clearInterval(timer);
  parentPort!.postMessage(report);
});
