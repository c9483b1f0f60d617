import type { Role } from "../../queues/names.ts";
import { ArrivalRate } from "./arrival-rate.ts";
import { BatchingCurve } from "./batching-curve.ts";
import type { ModelRates } from "./policy.ts";
import { RunningAverage } from "./running-average.ts";

const SERVICE_HALF_LIFE_JOBS = 20;
/** Times of jobs alone and of loads serve for plans, which should not follow every single one: they are averaged over more. */
const ALONE_HALF_LIFE_JOBS = 100;
const SWAP_HALF_LIFE_SWAPS = 3;
const LOAD_HALF_LIFE_SWAPS = 10;

/** Where a model comes from: started the first time by this worker, so that its files may have to come from the disk; started again; or woken. */
export type LoadState = "first" | "again" | "woken";

/** What is measured of a model and how sure it is: standard errors, null while there is nothing to tell them from. Times in milliseconds. */
export interface MeasuredModel {
  arrivalsPerMsError: number;
  serviceMsError: number | null;
  /** A job with the model to itself. */
  aloneMs: number | null;
  aloneMsError: number | null;
  /** a: r jobs at once are together r^a times as fast as one; 1 until known. */
  batchExponent: number;
  batchExponentError: number | null;
  /** From the last job's end to ready, by where the model came from; null before the first. */
  loadMs: Record<LoadState, number | null>;
  loadMsError: Record<LoadState, number | null>;
}

/** A place on a model, from `picked` to `served`. */
export interface Place {
  role: Role;
  pickedAt: number;
  /** ∫ ln(running) dt of the model when the job was picked. */
  logRunning: number;
}

/**
 * λ̂, ŝ and Ŝ of both models and how their jobs slow each other. Half-lives: arrivals five minutes, less where they change (see `ArrivalRate`);
 * services 20 jobs, times alone and the batching curve 100 jobs, swaps 3 and loads 10 swaps. No clock of its own: `picked` and `served` are told the time of one that never goes back.
 */
export class TrafficMeter {
  readonly #slots: Record<Role, number>;
  readonly #service = perRole(() => new RunningAverage(SERVICE_HALF_LIFE_JOBS));
  readonly #alone = perRole(() => new RunningAverage(ALONE_HALF_LIFE_JOBS));
  readonly #batching = perRole(() => new BatchingCurve());
  readonly #running = perRole(() => ({ jobs: 0, at: 0, logRunning: 0 }));
  readonly #swap = perRole(() => new RunningAverage(SWAP_HALF_LIFE_SWAPS));
  readonly #load = perRole(() => ({
    first: new RunningAverage(LOAD_HALF_LIFE_SWAPS),
    again: new RunningAverage(LOAD_HALF_LIFE_SWAPS),
    woken: new RunningAverage(LOAD_HALF_LIFE_SWAPS),
  }));
  /** How the next load is expected to be: as the last one, except that a first comes only once. */
  readonly #expected = perRole((): LoadState => "first");
  /** null before the first acceptance of either. */
  #arrivals: Record<Role, ArrivalRate> | null = null;

  constructor(slots: Record<Role, number>) {
    this.#slots = slots;
  }

  arrived(role: Role, count: number, now: number): void {
    this.#arrivals ??= perRole(() => new ArrivalRate(now));
    this.#arrivals[role].add(count, now);
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
  swapped(to: Role, swapMs: number, loadMs: number, state: LoadState = "again"): void {
    this.#swap[to].add(swapMs);
    this.#load[to][state].add(loadMs);
    this.#expected[to] = state;
  }

  serviceMs(role: Role): number | null {
    return this.#service[role].value;
  }

  swapMs(to: Role): number | null {
    return this.#swap[to].value;
  }

  rates(now: number): Record<Role, ModelRates> {
    return perRole((role) => ({
      arrivalsPerMs: this.#arrivals?.[role].estimate(now).perMs ?? 0,
      serviceMs: this.#service[role].value ?? 0,
      aloneMs: this.#alone[role].value ?? 0,
      batchExponent: this.#batching[role].exponent,
      swapMs: this.#swap[role].value ?? 0,
      loadMs: this.#load[role][this.#expected[role]].value ?? 0,
      slots: this.#slots[role],
    }));
  }

  measured(role: Role, now: number): MeasuredModel {
    const [alone, batching, { first, again, woken }] = [this.#alone[role], this.#batching[role], this.#load[role]];
    return {
      arrivalsPerMsError: this.#arrivals?.[role].estimate(now).error ?? 0,
      serviceMsError: this.#service[role].error,
      aloneMs: alone.value,
      aloneMsError: alone.error,
      batchExponent: batching.exponent,
      batchExponentError: batching.exponentError,
      loadMs: { first: first.value, again: again.value, woken: woken.value },
      loadMsError: { first: first.error, again: again.error, woken: woken.error },
    };
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

function perRole<T>(make: (role: Role) => T): Record<Role, T> {
  return { student: make("student"), talker: make("talker") };
}
