import { PRIORITY_CLASSES, type PriorityClass } from "../../queues/names.ts";
import type { QueueSnapshot } from "./policy.ts";
import type { SimulatedJob } from "./simulator.ts";

/** One model's queue in the simulation: by class, then by arrival, as BullMQ picks. */
export class ClassQueue {
  depth = 0;
  readonly #jobs: SimulatedJob[];
  readonly #lines = PRIORITY_CLASSES.map((name) => ({ name, indices: [] as number[], head: 0 }));

  constructor(jobs: SimulatedJob[]) {
    this.#jobs = jobs;
  }

  add(index: number): void {
    this.#lines.find((line) => line.name === this.#jobs[index]!.class)!.indices.push(index);
    this.depth++;
  }

  /** The next job by class and arrival, or the oldest of the class whose turn it is. */
  take(late: PriorityClass | null): number {
    const line = this.#lines.find((candidate) => (late === null ? candidate.head < candidate.indices.length : candidate.name === late))!;
    this.depth--;
    return line.indices[line.head++]!;
  }

  /** Acceptance of the oldest waiting job of this class; null when none waits. */
  oldest(name: PriorityClass): number | null {
    return this.#oldestIn(this.#lines[PRIORITY_CLASSES.indexOf(name)]!);
  }

  /** Waiting jobs of this class and the more urgent ones. */
  waitingUpTo(name: PriorityClass): number {
    return this.#lines.slice(0, PRIORITY_CLASSES.indexOf(name) + 1).reduce((sum, { indices, head }) => sum + indices.length - head, 0);
  }

  snapshot(): QueueSnapshot {
    const [interactive, normal, batch] = this.#lines.map((line) => this.#oldestIn(line)) as [number | null, number | null, number | null];
    const [i, n, b] = this.#lines.map((line) => line.indices.length - line.head) as [number, number, number];
    return { depth: this.depth, waiting: { interactive: i, normal: n, batch: b }, oldest: { interactive, normal, batch } };
  }

  #oldestIn({ indices, head }: { indices: number[]; head: number }): number | null {
    return this.#jobs[indices[head] ?? -1]?.arrivalMs ?? null;
  }
}
