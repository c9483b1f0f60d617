/** An exponential moving average that forgets half within `halfLife` observations: `a ← a + (x − a)·(1 − 2^(−1/halfLife))`; null before the first. */
export class RunningAverage {
  readonly #weight: number;
  #value: number | null = null;

  constructor(halfLife: number) {
    this.#weight = 1 - 2 ** (-1 / halfLife);
  }

  get value(): number | null {
    return this.#value;
  }

  add(observation: number): void {
    this.#value = this.#value === null ? observation : this.#value + (observation - this.#value) * this.#weight;
  }
}
