/** A job on the card; `endWork` is the work that each job on the card will have got when this one ends. */
interface Running<T> {
  endWork: number;
  job: T;
}

/**
 * The jobs that share a card. Work is in milliseconds of a job that has the card to itself. r jobs together get r^a milliseconds of work a
 * millisecond (a = 1: they don't disturb each other; a = 0: they share what one had), and each gets the same: r^(a − 1).
 * So all that has to be kept is the work that a job would have got that was there from the beginning.
 * A job ends when this has grown by its own work since it came.
 */
export class SharedCard<T> {
  readonly #running: Running<T>[] = [];
  #exponent: number;
  #speed = 1;
  #work = 0;
  #at = 0;

  /** @param exponent a, from 0 to 1. */
  constructor(exponent: number) {
    this.#exponent = exponent;
  }

  get running(): number {
    return this.#running.length;
  }

  /** When the next job ends if nobody comes before; infinite with nothing on the card. */
  get nextEndMs(): number {
    const next = this.#running[0];
    return next === undefined ? Number.POSITIVE_INFINITY : this.#at + (next.endWork - this.#work) / this.#speed;
  }

  /** Another model's batching: only while nothing runs. */
  use(exponent: number): void {
    this.#exponent = exponent;
  }

  add(job: T, serviceMs: number, now: number): void {
    this.#work += (now - this.#at) * this.#speed;
    this.#at = now;
    const endWork = this.#work + serviceMs;
    // There are as many as slots, so a linear search is the quickest.
    const at = this.#running.findIndex((other) => other.endWork > endWork);
    this.#running.splice(at < 0 ? this.#running.length : at, 0, { endWork, job });
    this.#changed();
  }

  /** Takes the job off that ends at `nextEndMs`. */
  end(): T {
    const now = this.nextEndMs;
    const { endWork, job } = this.#running.shift()!;
    this.#work = endWork;
    this.#at = now;
    this.#changed();
    return job;
  }

  #changed(): void {
    this.#speed = Math.max(this.#running.length, 1) ** (this.#exponent - 1);
  }
}
