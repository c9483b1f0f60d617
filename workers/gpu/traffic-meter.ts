import { ROLES, type Role } from "../../queues/names.ts";
import type { ModelRates } from "./policy.ts";
import { RunningAverage } from "./running-average.ts";

/** After this long an acceptance counts half. */
const ARRIVAL_HALF_LIFE_MS = 300_000;
const SERVICE_HALF_LIFE_JOBS = 20;
const SWAP_HALF_LIFE_SWAPS = 3;

/**
 * λ̂, ŝ and Ŝ of both models. λ̂ weighs each acceptance by 2^(−age/half-life) and divides by the weight of the time since the
 * first look, so that a young meter is not too low.
 */
export class TrafficMeter {
  readonly #slots: Record<Role, number>;
  readonly #service = perRole(() => new RunningAverage(SERVICE_HALF_LIFE_JOBS));
  readonly #swap = perRole(() => new RunningAverage(SWAP_HALF_LIFE_SWAPS));
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

  served(role: Role, serviceMs: number): void {
    this.#service[role].add(serviceMs);
  }

  swapped(to: Role, swapMs: number): void {
    this.#swap[to].add(swapMs);
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
      swapMs: this.#swap[role].value ?? 0,
      slots: this.#slots[role],
    }));
  }
}

const decay = (ageMs: number): number => 2 ** (-ageMs / ARRIVAL_HALF_LIFE_MS);

function perRole<T>(make: (role: Role) => T): Record<Role, T> {
  return Object.fromEntries(ROLES.map((role) => [role, make(role)])) as Record<Role, T>;
}
