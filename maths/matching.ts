import type { Judgement } from "./judgement.ts";
import type { WorkBudget } from "./work-budget.ts";

/** Comparing things of several parts by their parts. */

type Compare<T> = (a: T, b: T) => Judgement;

/** Equal if all are, different if one is. */
export function allOf(judgements: readonly Judgement[]): Judgement {
  return (
    judgements.find(({ verdict }) => verdict === "different") ??
    judgements.find(({ verdict }) => verdict === "undecided") ?? { verdict: "equal", reason: "All parts are the same." }
  );
}

export function matchInOrder<T>(a: readonly T[], b: readonly T[], compare: Compare<T>): Judgement {
  if (a.length !== b.length) return { verdict: "different", reason: "They have different numbers of parts." };
  const judgements: Judgement[] = [];
  for (const [place, item] of a.entries()) {
    const judgement = compare(item, b[place]!);
    if (judgement.verdict === "different") return judgement;
    judgements.push(judgement);
  }
  return allOf(judgements);
}

/**
 * Whether every part of each has its own partner in the other, or, of sets, any partner. The partners are found by augmenting paths: equality
 * with a tolerance is not transitive, so that the first partner found need not be the right one.
 */
export function matchInAnyOrder<T>(
  a: readonly T[],
  b: readonly T[],
  compare: Compare<T>,
  work: WorkBudget,
  { asSets = false } = {},
): Judgement {
  if (a.length !== b.length && !asSets) return { verdict: "different", reason: "They have different numbers of parts." };
  const known = new Map<number, Judgement["verdict"]>();
  const verdict = (i: number, j: number) => {
    work.spend(0.1);
    const key = i * b.length + j;
    const found = known.get(key) ?? compare(a[i]!, b[j]!).verdict;
    known.set(key, found);
    return found;
  };
  const isMatched = (fits: (i: number, j: number) => boolean) =>
    asSets
      ? a.every((_, i) => b.some((_, j) => fits(i, j))) && b.every((_, j) => a.some((_, i) => fits(i, j)))
      : hasPerfectMatching(a.length, fits);
  if (isMatched((i, j) => verdict(i, j) === "equal")) return { verdict: "equal", reason: "They have the same parts." };
  if (isMatched((i, j) => verdict(i, j) !== "different")) return { verdict: "undecided", reason: "Some parts could not be compared." };
  return { verdict: "different", reason: "Their parts differ." };
}

function hasPerfectMatching(size: number, fits: (i: number, j: number) => boolean): boolean {
  const partnerOf = new Array<number>(size).fill(-1);
  const find = (i: number, tried: Set<number>): boolean => {
    // The same place first: most lists are in the same order.
    for (let step = 0; step < size; step++) {
      const j = (i + step) % size;
      if (tried.has(j) || !fits(i, j)) continue;
      tried.add(j);
      if (partnerOf[j] === -1 || find(partnerOf[j]!, tried)) {
        partnerOf[j] = i;
        return true;
      }
    }
    return false;
  };
  for (let i = 0; i < size; i++) if (!find(i, new Set())) return false;
  return true;
}
