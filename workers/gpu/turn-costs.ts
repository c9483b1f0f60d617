import type { QueueGrid } from "./queue-grid.ts";
import type { PlannedModel } from "./swap-plan.ts";
import { VisitCosts } from "./visit-costs.ts";

/** Stages of a swap: its time is Erlang distributed, with a coefficient of variation of 0.58. */
const SWAP_STAGES = 3;

/**
 * How a visit may end. `exhaustive`: when its queue is empty and nothing runs. `drain`: when nothing more is picked, and then it does.
 * `revoke`: likewise, but the places may be filled again while the others still run.
 */
export type Way = "exhaustive" | "drain" | "revoke";

/**
 * The relative costs of a cycle: a visit of model 0, a swap to 1's, a visit of 1, a swap back. Costs are jobs in the system times time, less
 * the mean number of jobs times time. Those from the start of a swap are kept by both queues; a round takes them once through the cycle.
 */
export class TurnCosts {
  readonly #models: readonly [PlannedModel, PlannedModel];
  readonly #grids: readonly [QueueGrid, QueueGrid];
  readonly #visits: readonly [VisitCosts, VisitCosts];
  /** From the start of a swap to this model, by [jobs of model 0][jobs of model 1]. */
  readonly #swaps: readonly [Float64Array, Float64Array];

  constructor(models: readonly [PlannedModel, PlannedModel], grids: readonly [QueueGrid, QueueGrid]) {
    this.#models = models;
    this.#grids = grids;
    const size = grids[0].size * grids[1].size;
    this.#swaps = [new Float64Array(size), new Float64Array(size)];
    const visit = (m: 0 | 1) => new VisitCosts(models[m], models[1 - m]!.arrivals, grids[m], grids[1 - m]!);
    this.#visits = [visit(0), visit(1)];
  }

  startFrom(guess: (first: number, second: number) => number): void {
    const [first, second] = this.#grids;
    for (let a = 0; a < first.size; a++) {
      for (let b = 0; b < second.size; b++) {
        const cost = guess(first.jobs[a]!, second.jobs[b]!);
        for (const swap of this.#swaps) swap[a * second.size + b] = cost;
      }
    }
  }

  /** The place of so many jobs of either model in the costs of a swap. */
  pointOf(first: number, second: number): number {
    return this.#grids[0].below(first) * this.#grids[1].size + this.#grids[1].below(second);
  }

  /** One round; returns how the cost at this point of a swap to model 1 has risen. All costs are relative to it afterwards. */
  round(way: Way, meanJobs: number, point: number): number {
    const before = this.#swaps[1][point]!;
    this.#cycle(way, meanJobs);
    const now = this.#swaps[1][point]!;
    for (const swap of this.#swaps) for (let k = 0; k < swap.length; k++) swap[k]! -= now;
    for (const visit of this.#visits) visit.lower(now);
    return now - before;
  }

  /** How the cost at this point falls over one round when the mean is taken to be higher by `step`. Nothing is changed. */
  fallOver(way: Way, meanJobs: number, step: number, point: number): number {
    const kept = this.#swaps[1].slice();
    const [low, high] = [meanJobs, meanJobs + step].map((mean) => {
      this.#swaps[1].set(kept);
      this.#cycle(way, mean);
      return this.#swaps[1][point]!;
    }) as [number, number];
    this.#swaps[1].set(kept);
    return low - high;
  }

  excess(m: 0 | 1, own: number, others: number, running: number): number {
    return this.#visits[m].excess(own, others, running);
  }

  #cycle(way: Way, meanJobs: number): void {
    for (const m of [0, 1] as const) {
      const { size } = this.#grids[1];
      const leave = this.#swaps[1 - m]!;
      this.#visits[m].solve(
        way,
        meanJobs,
        m === 0 ? (own, others) => leave[own * size + others]! : (own, others) => leave[others * size + own]!,
      );
      this.#swap(m, way, meanJobs);
    }
  }

  /** What stands at the end of a swap to m is carried back through its stages; meanwhile both queues grow. */
  #swap(m: 0 | 1, way: Way, meanJobs: number): void {
    const [first, second] = this.#grids;
    const costs = this.#swaps[m];
    const back = this.#swaps[1 - m]!;
    const rate = SWAP_STAGES / this.#models[m].swapTime;
    const [arrivals0, arrivals1] = [this.#models[0].arrivals, this.#models[1].arrivals];
    const { size } = second;
    for (let a = 0; a < first.size; a++) {
      for (let b = 0; b < size; b++) {
        const at = a * size + b;
        const [own, others] = m === 0 ? [a, b] : [b, a];
        const filled = this.#visits[m].filled(own, others, 0);
        costs[at] = way === "exhaustive" || others === 0 ? filled : Math.min(filled, back[at]!);
      }
    }
    for (let stage = 0; stage < SWAP_STAGES; stage++) {
      for (let a = first.size - 1; a >= 0; a--) {
        const more0 = arrivals0 * first.density[a]!;
        for (let b = size - 1; b >= 0; b--) {
          const more1 = arrivals1 * second.density[b]!;
          const at = a * size + b;
          let sum = first.jobs[a]! + second.jobs[b]! - meanJobs + rate * costs[at]!;
          if (more0 > 0) sum += more0 * costs[at + size]!;
          if (more1 > 0) sum += more1 * costs[at + 1]!;
          costs[at] = sum / (rate + more0 + more1);
        }
      }
    }
  }
}
