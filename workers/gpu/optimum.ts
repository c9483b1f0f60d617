import { MathllmError } from "../../queues/errors.ts";
import { ROLES, type Role } from "../../queues/names.ts";
import { OptimumGrid } from "./optimum-grid.ts";

/**
 * The least mean wait that any policy can reach, by dynamic programming. Of each model: Poisson arrivals, exponential service, Erlang swaps.
 *
 *   state     visit of m (i of m's and j of the other's jobs wait, r of m's run), or a swap to m (i and j wait, so many stages are over)
 *   choices   in a visit at any time: pick one more (i, r → i − 1, r + 1; up to c), or nothing; with r = 0 also to swap
 *   events    an arrival of either, the end of a job (rate r^a / service), the end of a stage (rate stages / swap)
 *   cost      jobs that wait, or jobs that are there: by Little's law its long-run mean over the arrival rate is the mean wait, or time in the system
 *
 * Queues are cut at a capacity: who comes to a full one is lost. V(state) is the cost from there on beyond what is usual, g the usual cost; they solve
 * V(x) = min over choices x' of (cost(x') − g + Σ rate · V(next)) / Σ rate. The sweeps follow the course of a visit (own queue upwards from empty, the
 * other's downwards from full, as it only grows), so that one sweep carries what it finds through a whole cycle of visits and swaps; g follows the
 * drift of V. For any V at all, the least and the greatest growth over the states in one step bound the true g (Odoni, 1969): that ends the sweeps.
 * Losing jobs can only shorten the queues, so g grows with the capacity: it is enlarged until g hardly does.
 */

/** Times in milliseconds. */
export interface OptimumModel {
  arrivalsPerMs: number;
  /** Mean of a job alone. */
  serviceMs: number;
  /** a: r jobs at once are together r^a times as fast as one. */
  batchExponent: number;
  /** Mean of a swap to this model. */
  swapMs: number;
}

export interface OptimumSystem {
  slots: number;
  models: Record<Role, OptimumModel>;
  /** A swap is so many exponential stages: its coefficient of variation is 1/√stages. */
  swapStages: number;
  /** What is to be least: the mean number of jobs that wait, or that are there. */
  objective: "wait" | "end-to-end";
}

export interface Optimum {
  /** The mean wait, or time in the system. */
  meanMs: number;
  /** Of the system with this capacity; how far the sweeps got. */
  lowMs: number;
  highMs: number;
  /** Jobs that may wait of each model. */
  capacity: Record<Role, number>;
  /** By how much the last enlargement changed the mean, as a share; null when there was none. */
  enlarged: number | null;
  sweeps: number;
  /** The time was over before the bounds were close and the capacity large enough. */
  cut: boolean;
  tookMs: number;
}

export interface OptimumOptions {
  /** Bounds so close, as a share of g, end the sweeps. */
  tolerance?: number;
  /** An enlargement that changes g by no more than this share is the last. */
  capacityTolerance?: number;
  /** The capacity to begin with; default: from how much comes in a cycle of two visits. */
  capacity?: Record<Role, number>;
  /** Enlarge it at all; default true. */
  enlarge?: boolean;
  /** No sweep is begun later than this. */
  limitMs?: number;
  onProgress?: (state: OptimumProgress) => void;
}

export interface OptimumProgress extends Pick<Optimum, "meanMs" | "lowMs" | "highMs" | "capacity"> {
  elapsedMs: number;
}

const SWEEPS_A_LOOK = 10;
const GROWTH = 1.4;
/** V in memory: 400 MB. */
const MAX_VALUES = 50_000_000;

/** Throws `invalid-configuration` for a system that no policy keeps up with or that is too large. */
export function solveOptimum(system: OptimumSystem, options: OptimumOptions = {}): Optimum {
  const { tolerance = 0.005, capacityTolerance = 0.002, enlarge = true, limitMs = 120_000, onProgress = () => {} } = options;
  const { models, slots } = system;
  const load = ROLES.reduce(
    (sum, role) => sum + (models[role].arrivalsPerMs * models[role].serviceMs) / slots ** models[role].batchExponent,
    0,
  );
  if (!(load > 0 && load < 1))
    throw new MathllmError(
      "invalid-configuration",
      `--optimal: expected a load above 0 and below 1, got ${load}: no policy keeps up with more.`,
    );
  const arrivals = models.student.arrivalsPerMs + models.talker.arrivalsPerMs;
  const cycleMs = ROLES.reduce((sum, role) => sum + models[role].swapMs + models[role].serviceMs, 0) / (1 - load);
  const startedAt = performance.now();
  const elapsedMs = () => performance.now() - startedAt;
  let capacity = options.capacity ?? capacityFor((role) => 10 + slots + models[role].arrivalsPerMs * cycleMs, models);
  let g = (arrivals * cycleMs) / 3;
  let grid = gridOf(system, capacity);
  for (let [sweeps, last] = [0, null as number | null]; ; ) {
    const solved = settle(grid, g, cycleMs, tolerance, (state) => {
      onProgress({
        meanMs: state.g / arrivals,
        lowMs: state.low / arrivals,
        highMs: state.high / arrivals,
        capacity,
        elapsedMs: elapsedMs(),
      });
      return elapsedMs() < limitMs;
    });
    sweeps += solved.sweeps;
    const enlarged = last === null ? null : Math.abs(solved.g / last - 1);
    const isEnough = !enlarge || (enlarged !== null && enlarged <= capacityTolerance);
    if (isEnough || solved.cut) {
      const [meanMs, lowMs, highMs] = [solved.g, solved.low, solved.high].map((value) => value / arrivals) as [number, number, number];
      return { meanMs, lowMs, highMs, capacity, enlarged, sweeps, cut: !isEnough || solved.cut, tookMs: elapsedMs() };
    }
    [last, g] = [solved.g, solved.g];
    const before = capacity;
    capacity = capacityFor((role) => GROWTH * before[role], models);
    grid = gridOf(system, capacity, grid);
  }
}

/** Sweeps until the bounds of g are within the tolerance, or `goOn` says no. */
function settle(
  grid: OptimumGrid,
  start: number,
  cycleMs: number,
  tolerance: number,
  goOn: (state: { g: number; low: number; high: number }) => boolean,
): { g: number; low: number; high: number; sweeps: number; cut: boolean } {
  let g = start;
  let drift = 0;
  let [low, high] = [0, Number.POSITIVE_INFINITY];
  // V drifts by the error of g times the time that a sweep stands for, which isn't known, only that it is at least a single event's and at most
  // about a cycle: steps grow while they prove too short.
  let step = 1 / cycleMs;
  grid.sweep(g);
  for (let sweeps = 1; ; sweeps++) {
    const grown = grid.sweep(g);
    step = Math.min(Math.max(grown * drift >= 0 ? step * 1.15 : step / 2, 1 / cycleMs), grid.eventsPerMs);
    drift = grown;
    g += step * grown;
    if (sweeps % SWEEPS_A_LOOK > 0) continue;
    // Each pair of bounds holds whatever the steps came to, so the narrowest do.
    const bounds = grid.bounds();
    low = Math.max(low, bounds.low);
    high = Math.min(high, bounds.high);
    g = Math.min(Math.max(g, low), high);
    const close = high - low <= tolerance * high;
    if (close || !goOn({ g, low, high })) return { g, low, high, sweeps, cut: !close };
  }
}

function gridOf(system: OptimumSystem, capacity: Record<Role, number>, from?: OptimumGrid): OptimumGrid {
  const values = (capacity.student + 1) * (capacity.talker + 1) * (system.slots + system.swapStages + 2) * 2;
  if (values > MAX_VALUES)
    throw new MathllmError(
      "invalid-configuration",
      `--optimal: expected a small system; queues of ${capacity.student} and ${capacity.talker} jobs with ${system.slots} slots are too many states. Take fewer slots, less load or shorter swaps.`,
    );
  return new OptimumGrid(system, capacity, from);
}

/** A model without jobs has no queue. */
function capacityFor(jobs: (role: Role) => number, models: OptimumSystem["models"]): Record<Role, number> {
  const of = (role: Role) => (models[role].arrivalsPerMs > 0 ? Math.ceil(jobs(role)) : 0);
  return { student: of("student"), talker: of("talker") };
}
