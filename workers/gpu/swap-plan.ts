import { QueueGrid } from "./queue-grid.ts";
import { TurnCosts } from "./turn-costs.ts";

/** Each model's rates as a plan takes them, in any unit of time that is the same for all. */
export interface PlannedModel {
  /** Poisson arrivals a unit of time, above 0. */
  arrivals: number;
  /** Jobs that end a unit of time while r run, for r = 0…slots. */
  ends: Float64Array;
  /** Time of a swap to the model once nothing runs, above 0. */
  swapTime: number;
  slots: number;
}

/** Queue lengths are told one by one up to the number of slots, then with steps of 30 %. */
const GRID_GROWTH = 1.3;
/** Grids reach beyond what is there at a swap by this factor. */
const GRID_REACH = 2.5;
/** Rounds in which a visit lasts until its queue is empty: they give the costs from which improving starts. */
const EXHAUSTIVE_ROUNDS = 4;
/** Rounds in which a drain, once begun, goes on to the swap. */
const DRAINING_ROUNDS = 60;
/** Rounds in which a drain may be given up. */
const REVOKING_ROUNDS = 4;
/** How long a cycle is, is measured every so many rounds. */
const MEASURE_EVERY = 4;
/** The costs are taken to be found when two rounds change the mean by less than this share. */
const TOLERANCE = 3e-3;
/** The mean may move by so much a round while drains may be given up. */
const REVOKING_STEP = 0.02;

/**
 * When to leave a model for the other so that the mean number of jobs in the system is least: the average-cost optimal control of two
 * queues with one server that takes time to change over, solved by improving a policy from round to round (see docs/policy.md).
 * A plan depends on its rates alone. 8 slots take some 15 ms and 300 kB, the largest allowed some 150 ms and 1.5 MB.
 */
export class SwapPlan {
  /** The mean number of jobs in the system; on these grids some per cent too high. */
  meanJobs: number;
  /** False: the costs were not found, don't go by them. */
  readonly found: boolean;
  readonly #costs: TurnCosts;

  constructor(models: readonly [PlannedModel, PlannedModel]) {
    const full = models.map(({ ends, slots }) => ends[slots]!) as [number, number];
    const load = models.reduce((sum, { arrivals }, m) => sum + arrivals / full[m]!, 0);
    const idle = Math.max(1 - load, 0.05);
    const cycleTime = models.reduce((sum, { swapTime, slots }, m) => sum + swapTime + slots / full[m]!, 0) / idle;
    const grids = models.map(
      ({ arrivals, slots }) => new QueueGrid(slots, GRID_GROWTH, 2 * slots + 6 + GRID_REACH * arrivals * cycleTime),
    ) as [QueueGrid, QueueGrid];
    this.#costs = new TurnCosts(models, grids);
    // To begin with, what waits costs half of what it takes to work it off.
    this.#costs.startFrom((a, b) => ((a / full[0] + b / full[1]) * (a + b)) / 2 / idle);
    this.meanJobs = load * 2 + ((models[0].arrivals + models[1].arrivals) * cycleTime) / 3;
    const usual = [(models[0].arrivals * models[1].swapTime) / 2, (models[1].arrivals * cycleTime) / 2] as const;
    this.found = this.#improve(this.#costs.pointOf(...usual), cycleTime);
  }

  /**
   * What going on costs more than leaving for the other model, with `own` and `others` waiting and `running` on model m; below 0: go on.
   * Going on is to pick what there is, or with nothing to do to hold on; leaving is to pick nothing, drain and swap.
   */
  excess(m: 0 | 1, own: number, others: number, running: number): number {
    return this.#costs.excess(m, own, others, running);
  }

  /** Rounds until the mean stands still; whether it does. `point`: where it is watched. */
  #improve(point: number, cycleTime: number): boolean {
    let calm = 0;
    let length = cycleTime;
    for (let round = 0; round < DRAINING_ROUNDS && calm < 2; round++) {
      const exhaustive = round < EXHAUSTIVE_ROUNDS;
      const way = exhaustive ? "exhaustive" : "drain";
      const sinceImproving = round - EXHAUSTIVE_ROUNDS;
      if (round === 0 || (!exhaustive && sinceImproving % MEASURE_EVERY === 0)) length = this.#cycleLength(point, way) ?? length;
      const step = this.#costs.round(way, this.meanJobs, point) / length;
      this.meanJobs += step;
      calm = !exhaustive && Math.abs(step) < TOLERANCE * this.meanJobs ? calm + 1 : 0;
    }
    for (let round = 0; round < REVOKING_ROUNDS && calm >= 2; round++) {
      const step = this.#costs.round("revoke", this.meanJobs, point) / length;
      const most = REVOKING_STEP * this.meanJobs;
      this.meanJobs += Math.min(Math.max(step, -most), most);
    }
    return calm >= 2 && Number.isFinite(this.meanJobs) && this.meanJobs > 0;
  }

  /** The time from one swap to the next to the same model: costs are counted less the mean, so they fall by it as the mean rises. */
  #cycleLength(point: number, way: "exhaustive" | "drain"): number | null {
    const step = 1e-3 * this.meanJobs;
    const length = this.#costs.fallOver(way, this.meanJobs, step, point) / step;
    return length > 0 && Number.isFinite(length) ? length : null;
  }
}
