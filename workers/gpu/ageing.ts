import { PRIORITY_CLASSES, type PriorityClass } from "../../queues/names.ts";

/** Of this many picks of one queue, one goes to a late job of a less urgent class. */
const PICKS_PER_LATE_TURN = 5;

/**
 * Keeps `batch` (and `normal`) from starving within a queue: the more urgent class is picked first, but while the oldest job of a
 * less urgent class has waited longer than its class's deadline, one pick in five is its. So n late jobs are all picked within 5·n picks.
 */
export class AgeingTurn {
  #sinceLate = 0;

  /** The class whose oldest job is to be picked now out of turn; null: by class. `oldest`: acceptances, epoch milliseconds. */
  next(oldest: Record<PriorityClass, number | null>, now: number, deadlinesMs: Record<PriorityClass, number>): PriorityClass | null {
    const present = PRIORITY_CLASSES.filter((name) => oldest[name] !== null);
    const lateness = (name: PriorityClass) => (now - oldest[name]!) / deadlinesMs[name];
    const late = present.slice(1).filter((name) => lateness(name) > 1);
    this.#sinceLate++;
    if (late.length === 0 || this.#sinceLate < PICKS_PER_LATE_TURN) return null;
    this.#sinceLate = 0;
    return late.reduce((latest, name) => (lateness(name) > lateness(latest) ? name : latest));
  }
}
