import { ROLES, type Role } from "../../queues/names.ts";
import type { OptimumSystem } from "./optimum.ts";

/** One model as the equations see it; rates are per millisecond. */
interface Side {
  /** Jobs that wait of this model, and of the other, at most. */
  own: number;
  others: number;
  ownArrivals: number;
  othersArrivals: number;
  /** Ends of jobs with r running. */
  ends: Float64Array;
  /** Ends of a stage of the swap to this model. */
  stageEnds: number;
  /** V of a visit, at ((i · (others + 1)) + j) · (slots + 1) + r. */
  visit: Float64Array;
  /** V of a swap to this model, at ((i · (others + 1)) + j) · (stages + 1) + stages over; the last is the visit that begins. */
  swap: Float64Array;
  /** Milliseconds of the card's time that a job takes when all slots are busy: this model's, the other's. */
  ownJobMs: number;
  othersJobMs: number;
  other: Side;
}

/** The equations of `optimum.ts` with queues up to a capacity, and the sweeps that solve them. Two models that are alike share one side. */
export class OptimumGrid {
  readonly #system: OptimumSystem;
  readonly #sides: Side[];
  /** What one running job costs a millisecond. */
  readonly #runningCost: number;
  readonly #load: number;

  /** `from`: a solution with less capacity to begin with. */
  constructor(system: OptimumSystem, capacity: Record<Role, number>, from?: OptimumGrid) {
    this.#system = system;
    this.#runningCost = system.objective === "end-to-end" ? 1 : 0;
    this.#sides = sidesOf(system, capacity);
    this.#load = this.#sides[0]!.ownArrivals * this.#sides[0]!.ownJobMs + this.#sides[0]!.othersArrivals * this.#sides[0]!.othersJobMs;
    for (const [index, side] of this.#sides.entries()) this.#begin(side, from === undefined ? undefined : from.#sides[index]);
  }

  /** Events that no state has more of. */
  get eventsPerMs(): number {
    return Math.max(...this.#sides.map((side) => side.ownArrivals + side.othersArrivals + side.ends.at(-1)! + side.stageEnds));
  }

  /** Before the first sweep: as if work were a fluid, and near a known solution as that. */
  #begin(side: Side, known?: Side): void {
    const { slots, swapStages } = this.#system;
    const meanJobMs = this.#load / (side.ownArrivals + side.othersArrivals);
    const fluid = (own: number, others: number) =>
      (own * side.ownJobMs + others * side.othersJobMs) ** 2 / (2 * meanJobMs * (1 - this.#load));
    for (let i = 0; i <= side.own; i++) {
      for (let j = 0; j <= side.others; j++) {
        const at = i * (side.others + 1) + j;
        const [ki, kj] = known === undefined ? [0, 0] : [Math.min(i, known.own), Math.min(j, known.others)];
        const beyond = fluid(i, j) - (known === undefined ? 0 : fluid(ki, kj));
        const knownAt = known === undefined ? 0 : ki * (known.others + 1) + kj;
        for (let r = 0; r <= slots; r++) side.visit[at * (slots + 1) + r] = beyond + (known?.visit[knownAt * (slots + 1) + r] ?? 0);
        for (let k = 0; k <= swapStages; k++)
          side.swap[at * (swapStages + 1) + k] = beyond + (known?.swap[knownAt * (swapStages + 1) + k] ?? 0);
      }
    }
  }

  /** Renews every V once with the gain g; afterwards V of the reference state is 0. Returns by how much that one grew. */
  sweep(g: number): number {
    for (const side of this.#sides) {
      this.#sweepVisit(side, g);
      this.#sweepSwap(side, g);
    }
    // All slots busy and nobody waiting: a state of every cycle.
    const grown = this.#sides[0]!.visit[this.#system.slots]!;
    for (const { visit, swap } of this.#sides) {
      for (let at = 0; at < visit.length; at++) visit[at]! -= grown;
      for (let at = 0; at < swap.length; at++) swap[at]! -= grown;
    }
    return grown;
  }

  #sweepVisit(side: Side, g: number): void {
    const { slots, swapStages } = this.#system;
    const { own, others, ends, visit, other } = side;
    const places = slots + 1;
    const row = (others + 1) * places;
    for (let i = 0; i <= own; i++) {
      const ownRate = i < own ? side.ownArrivals : 0;
      for (let j = others; j >= 0; j--) {
        const othersRate = j < others ? side.othersArrivals : 0;
        const base = i * row + j * places;
        for (let r = 0; r <= slots; r++) {
          const at = base + r;
          let sum = i + j + this.#runningCost * r - g;
          if (ownRate > 0) sum += ownRate * visit[at + row]!;
          if (othersRate > 0) sum += othersRate * visit[at + places]!;
          if (r > 0) sum += ends[r]! * visit[at - 1]!;
          const rate = ownRate + othersRate + ends[r]!;
          let least = rate > 0 ? sum / rate : Number.POSITIVE_INFINITY;
          if (i > 0 && r < slots) least = Math.min(least, visit[at - row + 1]!);
          if (r === 0 && side.othersArrivals > 0) least = Math.min(least, other.swap[(j * (own + 1) + i) * (swapStages + 1)]!);
          visit[at] = least;
        }
      }
    }
  }

  #sweepSwap(side: Side, g: number): void {
    const { slots, swapStages } = this.#system;
    const { own, others, stageEnds, visit, swap } = side;
    const stages = swapStages + 1;
    const row = (others + 1) * stages;
    for (let i = own; i >= 0; i--) {
      const ownRate = i < own ? side.ownArrivals : 0;
      for (let j = others; j >= 0; j--) {
        const othersRate = j < others ? side.othersArrivals : 0;
        const base = i * row + j * stages;
        swap[base + swapStages] = visit[(i * (others + 1) + j) * (slots + 1)]!;
        for (let k = swapStages - 1; k >= 0; k--) {
          const at = base + k;
          let sum = i + j - g + stageEnds * swap[at + 1]!;
          if (ownRate > 0) sum += ownRate * swap[at + row]!;
          if (othersRate > 0) sum += othersRate * swap[at + stages]!;
          swap[at] = sum / (ownRate + othersRate + stageEnds);
        }
      }
    }
  }

  /** The least and the greatest growth of V a millisecond over one step from any state: g lies between them. */
  bounds(): { low: number; high: number } {
    const all = { low: Number.POSITIVE_INFINITY, high: Number.NEGATIVE_INFINITY };
    // In so short a step the rates are probabilities.
    const stepMs = 1 / this.eventsPerMs;
    for (const side of this.#sides) {
      const { low, high } = this.#growth(side, stepMs);
      all.low = Math.min(all.low, low);
      all.high = Math.max(all.high, high);
    }
    return all;
  }

  #growth(side: Side, stepMs: number): { low: number; high: number } {
    const { slots, swapStages } = this.#system;
    const { own, others, ends, visit, other } = side;
    const places = slots + 1;
    const row = (others + 1) * places;
    /** V after one more step, of the rows i and i − 1. */
    const next = [new Float64Array(row), new Float64Array(row)] as const;
    let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (let i = 0; i <= own; i++) {
      const [here, before] = i % 2 === 0 ? next : [next[1], next[0]];
      for (let j = 0; j <= others; j++) {
        for (let k = 0; k < swapStages; k++) {
          const growth = this.#swapGrowth(side, i, j, k);
          low = Math.min(low, growth);
          high = Math.max(high, growth);
        }
        for (let r = 0; r <= slots; r++) {
          const [at, atHere] = [i * row + j * places + r, j * places + r];
          let growth = i + j + this.#runningCost * r;
          if (i < own) growth += side.ownArrivals * (visit[at + row]! - visit[at]!);
          if (j < others) growth += side.othersArrivals * (visit[at + places]! - visit[at]!);
          if (r > 0) growth += ends[r]! * (visit[at - 1]! - visit[at]!);
          let after = visit[at]! + growth * stepMs;
          if (i > 0 && r < slots) after = Math.min(after, before[atHere + 1]!);
          if (r === 0 && side.othersArrivals > 0) {
            const start = (j * (own + 1) + i) * (swapStages + 1);
            after = Math.min(after, other.swap[start]! + this.#swapGrowth(other, j, i, 0) * stepMs);
          }
          here[atHere] = after;
          low = Math.min(low, (after - visit[at]!) / stepMs);
          high = Math.max(high, (after - visit[at]!) / stepMs);
        }
      }
    }
    return { low, high };
  }

  #swapGrowth({ own, others, ownArrivals, othersArrivals, stageEnds, swap }: Side, i: number, j: number, k: number): number {
    const stages = this.#system.swapStages + 1;
    const at = (i * (others + 1) + j) * stages + k;
    let growth = i + j + stageEnds * (swap[at + 1]! - swap[at]!);
    if (i < own) growth += ownArrivals * (swap[at + (others + 1) * stages]! - swap[at]!);
    if (j < others) growth += othersArrivals * (swap[at + stages]! - swap[at]!);
    return growth;
  }
}

/** Only models that have jobs are ever visited. */
function sidesOf({ slots, swapStages, models }: OptimumSystem, capacity: Record<Role, number>): Side[] {
  const side = (role: Role, otherRole: Role): Side => {
    const [model, other] = [models[role], models[otherRole]];
    const [own, others] = [capacity[role], capacity[otherRole]];
    return {
      own,
      others,
      ownArrivals: model.arrivalsPerMs,
      othersArrivals: other.arrivalsPerMs,
      ends: Float64Array.from({ length: slots + 1 }, (_, r) => (r === 0 ? 0 : r ** model.batchExponent / model.serviceMs)),
      stageEnds: swapStages / model.swapMs,
      visit: new Float64Array((own + 1) * (others + 1) * (slots + 1)),
      swap: new Float64Array((own + 1) * (others + 1) * (swapStages + 1)),
      ownJobMs: model.serviceMs / slots ** model.batchExponent,
      othersJobMs: other.serviceMs / slots ** other.batchExponent,
      other: undefined as unknown as Side,
    };
  };
  const alike = (["arrivalsPerMs", "serviceMs", "batchExponent", "swapMs"] as const).every(
    (key) => models.student[key] === models.talker[key],
  );
  const student = side("student", "talker");
  student.other = alike && capacity.student === capacity.talker ? student : side("talker", "student");
  student.other.other = student;
  return ROLES.filter((role) => models[role].arrivalsPerMs > 0)
    .map((role) => (role === "student" ? student : student.other))
    .filter((each, index, all) => all.indexOf(each) === index);
}
