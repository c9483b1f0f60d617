/** @import { KeptSample } from "../../../queues/gpu-samples.ts" */
/** @import { GpuEventKind } from "../../../queues/gpu-events.ts" */

/**
 * One thing that happened, as `/gpu/history` and `/gpu/events` tell it.
 * @typedef {{ id: string, kind: GpuEventKind, ts: number, gpuId: string, [field: string]: any }} Happening
 */

const KEPT_MS = 15 * 60_000;
const KEPT_HAPPENINGS = 1000;

/** The last minutes, put together from what was read and what is told live; what comes twice counts once. */
export class GpuHistory {
  /** @type {Map<string, KeptSample>} */
  #samples = new Map();
  /** @type {Map<string, Happening>} */
  #happenings = new Map();

  /** @param {KeptSample[]} samples */
  addSamples(samples) {
    this.#samples = merged(this.#samples, samples);
    const newest = [...this.#samples.values()].at(-1)?.ts ?? 0;
    for (const [id, { ts }] of this.#samples) {
      if (ts >= newest - KEPT_MS) break;
      this.#samples.delete(id);
    }
  }

  /** @param {Happening[]} happenings */
  addHappenings(happenings) {
    this.#happenings = merged(this.#happenings, happenings);
    for (const id of [...this.#happenings.keys()].slice(0, -KEPT_HAPPENINGS)) this.#happenings.delete(id);
  }

  /**
   * Oldest first.
   * @param {number} sinceMs
   */
  samplesSince(sinceMs) {
    return [...this.#samples.values()].filter(({ ts }) => ts >= sinceMs);
  }

  /** Oldest first. */
  get happenings() {
    return [...this.#happenings.values()];
  }
}

/**
 * @template {{ id: string }} T
 * @param {Map<string, T>} known
 * @param {T[]} added
 */
function merged(known, added) {
  const isInOrder = added.length === 1 && !known.has(/** @type {T} */ (added[0]).id);
  for (const each of added) known.set(each.id, each);
  return isInOrder ? known : new Map([...known].sort(([a], [b]) => compareIds(a, b)));
}

/**
 * Ids are a time and a count.
 * @param {string} a
 * @param {string} b
 */
function compareIds(a, b) {
  const [time = 0, nth = 0] = a.split("-").map(Number);
  const [otherTime = 0, otherNth = 0] = b.split("-").map(Number);
  return time - otherTime || nth - otherNth;
}

/**
 * The wait that this share of the jobs did not exceed; null without a job.
 * @param {Record<string, number>[]} waits milliseconds, and how many jobs waited so long
 * @param {number} share 0 to 1
 * @returns {number | null}
 */
export function waitQuantile(waits, share) {
  /** @type {Map<number, number>} */
  const jobs = new Map();
  let total = 0;
  for (const each of waits) {
    for (const [waitMs, number] of Object.entries(each)) {
      jobs.set(Number(waitMs), (jobs.get(Number(waitMs)) ?? 0) + number);
      total += number;
    }
  }
  let left = Math.max(share * total, 1);
  for (const [waitMs, number] of [...jobs].sort(([a], [b]) => a - b)) {
    left -= number;
    if (left <= 0) return waitMs;
  }
  return null;
}
