import type { Judgement } from "./equivalence.ts";

/** The two-sided 95 % quantile of the normal distribution. */
const Z_95 = 1.96;

export interface Interval {
  low: number;
  high: number;
}

/**
 * Wilson's score interval for the share of `right` among `total` trials: where the true share lies with the confidence that `z`
 * stands for. Unlike the simple ± it stays within 0 and 1 and says something at 0 or `total` right. Without trials: 0 to 1.
 *
 * E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927):
 * (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).
 *
 * @throws RangeError unless 0 ≤ right ≤ total are whole numbers and z > 0.
 */
export function wilson(right: number, total: number, z = Z_95): Interval {
  if (!(Number.isSafeInteger(right) && Number.isSafeInteger(total) && right >= 0 && right <= total)) {
    throw new RangeError(`Expected whole numbers 0 ≤ right ≤ total; came ${right} and ${total}.`);
  }
  if (!(z > 0 && Number.isFinite(z))) throw new RangeError(`Expected a finite z > 0; came ${z}.`);
  if (total === 0) return { low: 0, high: 1 };
  const share = right / total;
  const z2 = z * z;
  const middle = share + z2 / (2 * total);
  const spread = z * Math.sqrt((share * (1 - share)) / total + z2 / (4 * total * total));
  const scale = 1 + z2 / total;
  return {
    // At the ends the formula gives 0 and 1 exactly; floating point does not.
    low: right === 0 ? 0 : Math.max(0, (middle - spread) / scale),
    high: right === total ? 1 : Math.min(1, (middle + spread) / scale),
  };
}

/** `low` and `high` are Wilson's 95 % interval around `accuracy`; that is `equal / graded`, null when nothing was graded. */
export interface Accuracy extends Interval {
  graded: number;
  equal: number;
  different: number;
  undecided: number;
  accuracy: number | null;
}

/** Counts verdicts. What is undecided is graded, and not right. */
export class AccuracyCount {
  readonly #counts: Record<Judgement["verdict"], number> = { equal: 0, different: 0, undecided: 0 };

  add(verdict: Judgement["verdict"]): void {
    this.#counts[verdict]++;
  }

  summary(): Accuracy {
    const { equal, different, undecided } = this.#counts;
    const graded = equal + different + undecided;
    return { graded, equal, different, undecided, accuracy: graded === 0 ? null : equal / graded, ...wilson(equal, graded) };
  }
}

export function accuracyOf(verdicts: Iterable<Judgement["verdict"]>): Accuracy {
  const count = new AccuracyCount();
  for (const verdict of verdicts) count.add(verdict);
  return count.summary();
}
