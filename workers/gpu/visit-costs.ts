import type { QueueGrid } from "./queue-grid.ts";
import type { PlannedModel } from "./swap-plan.ts";
import type { Way } from "./turn-costs.ts";

/** How often the two ways through a level of the other's queue are compared at most. */
const MOST_COMPARISONS = 10;
/** Likewise while drains may be given up: costs of the last round serve as well. */
const REVOKING_COMPARISONS = 2;

/** What happens next is left for the drain: when one more of its own comes, when one ends. */
const STOP_AT_NEXT = 1;
const STOP_AT_END = 2;

/**
 * The relative costs of a visit of one model, from every state in it until the swap ends it. The other's queue only grows meanwhile, so its
 * lengths are solved from the longest down. At each length there are two ways:
 *
 *   filled: as many run as can. The states are a line, (0 waiting, r running) for r = 0…c, then (i, c): a birth-death chain, solved at once
 *   (Thomas's algorithm), with the choice at each step to go over to the drain;
 *   draining: nothing is picked, (i, r) goes to (i, r − 1) as one ends, and at r = 0 comes the swap.
 */
export class VisitCosts {
  readonly #model: PlannedModel;
  readonly #othersArrivals: number;
  readonly #own: QueueGrid;
  readonly #others: QueueGrid;
  /** [others][position on the line]. */
  readonly #line: Float64Array;
  /** [others][running][own]. */
  readonly #drain: Float64Array;
  /** The better of draining and filling up again, likewise. */
  readonly #best: Float64Array;
  /** By [running][own]: where on the line a state is once its places are filled, and what the next position counts. */
  readonly #position: Int32Array;
  readonly #weight: Float64Array;
  readonly #stop: Uint8Array;
  readonly #toNext: Float64Array;
  readonly #constant: Float64Array;

  constructor(model: PlannedModel, othersArrivals: number, own: QueueGrid, others: QueueGrid) {
    this.#model = model;
    this.#othersArrivals = othersArrivals;
    this.#own = own;
    this.#others = others;
    const states = (model.slots + 1) * own.size;
    const positions = model.slots + own.size;
    this.#line = new Float64Array(others.size * positions);
    this.#drain = new Float64Array(others.size * states);
    this.#best = new Float64Array(others.size * states);
    this.#position = new Int32Array(states);
    this.#weight = new Float64Array(states);
    this.#stop = new Uint8Array(positions);
    this.#toNext = new Float64Array(positions);
    this.#constant = new Float64Array(positions);
    for (let r = 0; r <= model.slots; r++) {
      for (let i = 0; i < own.size; i++) {
        const { position, weight } = this.#filledUp(own.jobs[i]!, r);
        this.#position[r * own.size + i] = position;
        this.#weight[r * own.size + i] = weight;
      }
    }
  }

  /** One pass over all states. `leave`: the cost of the swap away from here, by points of the own and the other's grid. */
  solve(way: Way, meanJobs: number, leave: (own: number, others: number) => number): void {
    const comparisons = way === "revoke" ? REVOKING_COMPARISONS : MOST_COMPARISONS;
    for (let j = this.#others.size - 1; j >= 0; j--) {
      const top = j === this.#others.size - 1;
      // With the longest queue no visit goes on for ever: it ends when nothing runs.
      if (top) this.#stop.fill(0).fill(STOP_AT_END, 1, 2);
      for (let i = 0; i < this.#own.size; i++) {
        this.#drain[this.#state(j, 0, i)] = j === 0 ? Number.POSITIVE_INFINITY : leave(i, j);
      }
      for (let n = 0, changed = true; changed && n < comparisons; n++) {
        if (way === "revoke" || (way === "drain" && n === 0)) this.#drainLevel(j, way, meanJobs);
        this.#lineLevel(j, way, meanJobs);
        changed = this.#choose(j, way) || (way === "revoke" && j > 0);
      }
    }
  }

  /** The cost at points of both grids once the places are filled. */
  filled(own: number, others: number, running: number): number {
    const at = running * this.#own.size + own;
    const position = others * this.#positions + this.#position[at]!;
    const weight = this.#weight[at]!;
    const cost = this.#line[position]!;
    return weight > 0 ? cost + weight * (this.#line[position + 1]! - cost) : cost;
  }

  lower(by: number): void {
    for (const costs of [this.#line, this.#drain, this.#best]) for (let k = 0; k < costs.length; k++) costs[k]! -= by;
  }

  /** See `SwapPlan.excess`. */
  excess(own: number, others: number, running: number): number {
    const point = this.#others.below(others);
    const share = this.#others.weight(point, others);
    const { position, weight } = this.#filledUp(own, running);
    const i = this.#own.below(own);
    const between = this.#own.weight(i, own);
    const at = (j: number): number => {
      const line = j * this.#positions + position;
      const drain = this.#state(j, running, i);
      return mixed(this.#line, line, weight) - mixed(this.#drain, drain, between);
    };
    // With nothing of the other's there is nowhere to go.
    if (point === 0) return others >= 1 ? at(1) : Number.NEGATIVE_INFINITY;
    return share > 0 ? at(point) + share * (at(point + 1) - at(point)) : at(point);
  }

  get #positions(): number {
    return this.#model.slots + this.#own.size;
  }

  #state(others: number, running: number, own: number): number {
    return (others * (this.#model.slots + 1) + running) * this.#own.size + own;
  }

  #filledUp(own: number, running: number): { position: number; weight: number } {
    const { slots } = this.#model;
    const left = own - (slots - running);
    if (left <= 0) return { position: running + own, weight: 0 };
    const point = this.#own.below(left);
    return { position: slots + point, weight: this.#own.weight(point, left) };
  }

  /** What draining costs at this length of the other's queue; at r = 0 stands the swap. */
  #drainLevel(j: number, way: Way, meanJobs: number): void {
    const { arrivals, ends, slots } = this.#model;
    const [drain, best, line, place, share] = [this.#drain, this.#best, this.#line, this.#position, this.#weight];
    const { jobs, density, size } = this.#own;
    const othersMore = this.#othersArrivals * this.#others.density[j]!;
    const first = this.#state(j, 0, 0);
    const states = (slots + 1) * size;
    const row = j * this.#positions;
    const revoke = way === "revoke" || j === 0;
    for (let r = 0; r <= slots; r++) {
      const end = ends[r]!;
      const constant = r + this.#others.jobs[j]! - meanJobs;
      for (let i = size - 1; i >= 0; i--) {
        const state = r * size + i;
        const at = first + state;
        let cost = j === 0 ? Number.POSITIVE_INFINITY : drain[at]!;
        if (r > 0 && j > 0) {
          const more = i < size - 1 ? arrivals * density[i]! : 0;
          cost = jobs[i]! + constant + end * best[at - size]!;
          if (more > 0) cost += more * best[at + 1]!;
          if (othersMore > 0) cost += othersMore * best[at + states]!;
          cost /= end + more + othersMore;
        }
        drain[at] = cost;
        if (revoke) {
          const weight = share[state]!;
          const k = row + place[state]!;
          const filled = weight > 0 ? line[k]! + weight * (line[k + 1]! - line[k]!) : line[k]!;
          if (filled < cost) cost = filled;
        }
        best[at] = cost;
      }
    }
  }

  /** The line by Thomas's algorithm: from its lower end each position is told by the next, then back from the upper end. */
  #lineLevel(j: number, way: Way, meanJobs: number): void {
    const { arrivals, ends, slots } = this.#model;
    const { jobs, density } = this.#own;
    const [line, drain, toNext, constant] = [this.#line, this.#drain, this.#toNext, this.#constant];
    const positions = this.#positions;
    const othersMore = this.#othersArrivals * this.#others.density[j]!;
    for (let k = 0; k < positions; k++) {
      const i = Math.max(k - slots, 0);
      const r = Math.min(k, slots);
      let sum = jobs[i]! + r + this.#others.jobs[j]! - meanJobs;
      let out = 0;
      if (othersMore > 0) {
        const filled = line[(j + 1) * positions + k]!;
        out += othersMore;
        sum += othersMore * (way === "exhaustive" && k > 0 ? filled : Math.min(filled, drain[this.#state(j + 1, r, i)]!));
      }
      let next = k < slots ? arrivals : arrivals * density[i]!;
      out += next;
      if (this.#stop[k]! & STOP_AT_NEXT) {
        sum += next * drain[this.#state(j, r, i + 1)]!;
        next = 0;
      }
      if (k > 0) {
        const stops = this.#stop[k]! & STOP_AT_END;
        // From beyond the slots the next waiting job takes the place: one position down, or part of one where the points lie apart.
        const previous = stops || k <= slots ? ends[r]! : ends[r]! * density[i - 1]!;
        out += previous;
        if (stops) sum += previous * drain[this.#state(j, r - 1, i)]!;
        else {
          out -= previous * toNext[k - 1]!;
          sum += previous * constant[k - 1]!;
        }
      }
      toNext[k] = next / out;
      constant[k] = sum / out;
    }
    for (let k = positions - 1, cost = 0; k >= 0; k--) {
      cost = constant[k]! + toNext[k]! * cost;
      line[j * positions + k] = cost;
    }
  }

  /** Where the drain is better than the line. Returns whether that has changed. */
  #choose(j: number, way: Way): boolean {
    const { slots } = this.#model;
    const [line, drain, stop] = [this.#line, this.#drain, this.#stop];
    const positions = this.#positions;
    let changed = false;
    for (let k = 0; k < positions; k++) {
      const i = Math.max(k - slots, 0);
      const r = Math.min(k, slots);
      const at = j * positions + k;
      let choice = 0;
      if (way === "exhaustive") choice = k === 1 && j > 0 ? STOP_AT_END : 0;
      else {
        if (k < positions - 1 && drain[this.#state(j, r, i + 1)]! < line[at + 1]!) choice |= STOP_AT_NEXT;
        if (k > 0) {
          const filled = k <= slots ? line[at - 1]! : line[at]! - (line[at]! - line[at - 1]!) * this.#own.density[i - 1]!;
          if (drain[this.#state(j, r - 1, i)]! < filled) choice |= STOP_AT_END;
        }
        if (k === 1 && j === this.#others.size - 1) choice |= STOP_AT_END;
      }
      changed ||= choice !== stop[k];
      stop[k] = choice;
    }
    return changed;
  }
}

function mixed(costs: Float64Array, at: number, weight: number): number {
  return weight > 0 ? costs[at]! + weight * (costs[at + 1]! - costs[at]!) : costs[at]!;
}
