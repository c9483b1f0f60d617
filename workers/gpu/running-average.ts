/**
 * An exponential moving average that forgets half within `halfLife` observations: `a ← a + (x − a)·w`, w = 1 − 2^(−1/halfLife); null before
 * the first. The variance of the observations is averaged likewise.
 */
export class RunningAverage {
  readonly #weight: number;
  #value: number | null = null;
  #variance = 0;
  /** Σ of the squared weights that the observations so far have in the average. */
  #squares = 1;

  constructor(halfLife: number) {
    this.#weight = 1 - 2 ** (-1 / halfLife);
  }

  get value(): number | null {
    return this.#value;
  }

  /** The average's own standard error, if observations don't depend on each other; null before the second. */
  get error(): number | null {
    // The average follows what it is compared with, so the deviations seen are too small by this.
    return this.#value === null || this.#squares === 1 ? null : Math.sqrt((this.#variance * this.#squares) / (1 - this.#squares));
  }

  add(observation: number): void {
    if (this.#value === null) {
      this.#value = observation;
      return;
    }
    const deviation = observation - this.#value;
    this.#value += deviation * this.#weight;
    this.#variance = (1 - this.#weight) * (this.#variance + this.#weight * deviation ** 2);
    this.#squares = (1 - this.#weight) ** 2 * this.#squares + this.#weight ** 2;
  }
}
