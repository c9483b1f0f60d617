/** How many jobs count half of what a new one does. */
const HALF_LIFE_JOBS = 100;
/** What "jobs don't disturb each other" is believed like before anything is measured, in units of the sum of squares of ln r. */
const PRIOR_WEIGHT = 0.05;

/** A job that held a place on its model. */
export interface HeldPlace {
  heldMs: number;
  /** The mean over that time of ln r, r being the jobs on the model, this one included. */
  meanLogRunning: number;
  /** What it did, in any unit that is the same for all of the model's jobs, such as tokens written; null: unknown. */
  work: number | null;
}

/**
 * How jobs of one model slow each other, measured: r jobs at once are together r^a times as fast as one. A job's speed is work / heldMs,
 * so ln(speed) falls on a line over the mean of ln r, with slope a − 1: the line is fitted by least squares, and jobs are forgotten with a
 * half-life of 100 jobs. Without jobs that had different company the slope can't be told, and a stays near 1.
 */
export class BatchingCurve {
  readonly #keep = 2 ** (-1 / HALF_LIFE_JOBS);
  #weight = 0;
  #x = 0;
  #y = 0;
  #xx = 0;
  #xy = 0;
  #yy = 0;

  add({ heldMs, meanLogRunning: x, work }: HeldPlace): void {
    if (work === null || !(work > 0) || !(heldMs > 0)) return;
    const y = Math.log(work / heldMs);
    this.#weight = this.#keep * this.#weight + 1;
    // Means and sums of squares about them, each job moving the mean by its share.
    const share = 1 / this.#weight;
    const [dx, dy] = [x - this.#x, y - this.#y];
    this.#x += share * dx;
    this.#y += share * dy;
    this.#xx = this.#keep * this.#xx + dx * (x - this.#x);
    this.#xy = this.#keep * this.#xy + dx * (y - this.#y);
    this.#yy = this.#keep * this.#yy + dy * (y - this.#y);
  }

  /** a, from 0 to 1; 1 until known. */
  get exponent(): number {
    return Math.min(Math.max(1 + this.#xy / (this.#xx + PRIOR_WEIGHT), 0), 1);
  }

  /** The standard error of a; null while there is nothing to tell it from. */
  get exponentError(): number | null {
    if (this.#weight < 3 || this.#xx < PRIOR_WEIGHT) return null;
    const residual = Math.max(this.#yy - this.#xy ** 2 / this.#xx, 0);
    return Math.sqrt(residual / (this.#weight - 2) / this.#xx);
  }

  /** What the job would have taken with the model to itself. */
  aloneMs({ heldMs, meanLogRunning }: Omit<HeldPlace, "work">): number {
    return heldMs * Math.exp((this.exponent - 1) * meanLogRunning);
  }
}
