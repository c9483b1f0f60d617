/**
 * How much work one comparison may do, so that no text can hang it. A unit is about a microsecond of an ordinary core; it is counted, not
 * timed, so that a verdict doesn't depend on the machine.
 */
export class WorkBudget {
  #left: number;

  constructor(units: number) {
    this.#left = units;
  }

  get left(): number {
    return this.#left;
  }

  /** @throws OutOfWork when it is used up. */
  spend(units: number): void {
    this.#left -= units;
    if (this.#left < 0) throw new OutOfWork("It would take too much work.");
  }
}

/** Why there is no verdict; thrown inside, it becomes `undecided` at the border. */
export class NotJudged extends Error {}

/** There is no such value, like 1/0; two of them are not the same for that. */
export class Undefined extends NotJudged {}

/** Whatever comes next would throw it as well. */
export class OutOfWork extends NotJudged {}
