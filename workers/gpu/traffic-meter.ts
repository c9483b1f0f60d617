import type { Role } from "../../queues/names.ts";
import { BatchingCurve } from "./batching-curve.ts";
import type { ModelRates } from "./policy.ts";
import { RunningAverage } from "./running-average.ts";

/** After this long an acceptance counts half. */
const ARRIVAL_HALF_LIFE_MS = 300_000;
const SERVICE_HALF_LIFE_JOBS = 20;
const SWAP_HALF_LIFE_SWAPS = 3;

/** A place on a model, from `picked` to `served`. */
export interface Place {
  role: Role;
  pickedAt: number;
  /** ∫ ln(running) dt of the model when the job was picked. */
  logRunning: number;
}

/**
 * λ̂, ŝ and Ŝ of both models and how their jobs slow each other. λ̂ weighs each acceptance by 2^(−age/half-life) and divides by the weight of
 * the time since the first look, so that a young meter is not too low. No clock of its own: `picked` and `served` are told the time of one that never goes back.
 */
export class TrafficMeter {
  readonly #slots: Record<Role, number>;
  readonly #service = perRole(() => new RunningAverage(SERVICE_HALF_LIFE_JOBS));
  readonly #alone = perRole(() => new RunningAverage(SERVICE_HALF_LIFE_JOBS));
  readonly #batching = perRole(() => new BatchingCurve());
  readonly #running = perRole(() => ({ jobs: 0, at: 0, logRunning: 0 }));
  readonly #swap = perRole(() => new RunningAverage(SWAP_HALF_LIFE_SWAPS));
  readonly #load = perRole(() => new RunningAverage(SWAP_HALF_LIFE_SWAPS));
  readonly #arrivals = perRole(() => ({ weight: 0, at: 0 }));
  #startedAt: number | null = null;

  constructor(slots: Record<Role, number>) {
    this.#slots = slots;
  }

  arrived(role: Role, count: number, now: number): void {
    this.#startedAt ??= now;
    const arrivals = this.#arrivals[role];
    arrivals.weight = arrivals.weight * decay(now - arrivals.at) + count;
    arrivals.at = now;
  }

  /** A job takes a place on its model; the answer is for `served`. */
  picked(role: Role, now: number): Place {
    const logRunning = this.#changed(role, 1, now);
    return { role, pickedAt: now, logRunning };
  }

  /** The job leaves its place. `work`: see `HeldPlace`. */
  served({ role, pickedAt, logRunning }: Place, now: number, work: number | null): void {
    const heldMs = now - pickedAt;
    const loggedRunning = this.#changed(role, -1, now) - logRunning;
    const held = { heldMs, meanLogRunning: heldMs > 0 ? loggedRunning / heldMs : 0, work };
    this.#batching[role].add(held);
    this.#service[role].add(heldMs);
    this.#alone[role].add(this.#batching[role].aloneMs(held));
  }

  /** `swapMs` from the last pick of the old model to ready, `loadMs` the part of it in which nothing ran. */
  swapped(to: Role, swapMs: number, loadMs: number): void {
    this.#swap[to].add(swapMs);
    this.#load[to].add(loadMs);
  }

  serviceMs(role: Role): number | null {
    return this.#service[role].value;
  }

  swapMs(to: Role): number | null {
    return this.#swap[to].value;
  }

  rates(now: number): Record<Role, ModelRates> {
    const windowMs = (ARRIVAL_HALF_LIFE_MS / Math.LN2) * (1 - decay(now - (this.#startedAt ?? now)));
    return perRole((role) => ({
      arrivalsPerMs: windowMs > 0 ? (this.#arrivals[role].weight * decay(now - this.#arrivals[role].at)) / windowMs : 0,
      serviceMs: this.#service[role].value ?? 0,
      aloneMs: this.#alone[role].value ?? 0,
      batchExponent: this.#batching[role].exponent,
      swapMs: this.#swap[role].value ?? 0,
      loadMs: this.#load[role].value ?? 0,
      slots: this.#slots[role],
    }));
  }

  /** Counts a job in or out; returns ∫ ln(running) dt up to now. */
  #changed(role: Role, by: number, now: number): number {
    const running = this.#running[role];
    if (running.jobs > 0) running.logRunning += Math.log(running.jobs) * (now - running.at);
    running.jobs += by;
    running.at = now;
    return running.logRunning;
  }
}

const decay = (ageMs: number): number => 2 ** (-ageMs / ARRIVAL_HALF_LIFE_MS);

function perRole<T>(make: (role: Role) => T): Record<Role, T> {
  return { student: make("student"), talker: make("talker") };
}
