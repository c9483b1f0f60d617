/** Queue lengths from 0 on: one by one as far as decisions hang on single jobs, then ever wider apart. */
export class QueueGrid {
  /** Jobs at each point. */
  readonly jobs: Float64Array;
  /** 1 / jobs to the next point; 0 at the last. */
  readonly density: Float64Array;

  /** Steps of one job up to `unit`, then of `growth` − 1 of what is reached, until `max` is covered. */
  constructor(unit: number, growth: number, max: number) {
    const points = [0];
    for (let n = 0; n < max || points.length < 3; ) {
      n += n < unit ? 1 : Math.max(1, Math.floor(n * (growth - 1)));
      points.push(n);
    }
    this.jobs = Float64Array.from(points);
    this.density = Float64Array.from(points, (n, k) => (k + 1 < points.length ? 1 / (points[k + 1]! - n) : 0));
  }

  get size(): number {
    return this.jobs.length;
  }

  /** The point at or below so many jobs, never the last: with `weight`, where between two points they lie. */
  below(jobs: number): number {
    let low = 0;
    let high = this.size - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.jobs[middle]! <= jobs) low = middle;
      else high = middle;
    }
    return low;
  }

  /** What the next point counts beside this one, from 0 to 1; more jobs than the grid holds count as its last point. */
  weight(point: number, jobs: number): number {
    return Math.min(Math.max((jobs - this.jobs[point]!) * this.density[point]!, 0), 1);
  }
}
