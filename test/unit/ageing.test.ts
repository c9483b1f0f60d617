import fc from "fast-check";
import { expect, test } from "vitest";
import { PRIORITY_CLASSES, type PriorityClass } from "../../queues/names.ts";
import { AgeingTurn } from "../../workers/gpu/ageing.ts";
import { DEFAULT_DEADLINES_MS } from "../../workers/gpu/policy.ts";

const NOW = 100_000_000;

/** The oldest of each class, by how many of its deadlines it has waited. */
const waited = (deadlines: Partial<Record<PriorityClass, number>>) =>
  Object.fromEntries(
    PRIORITY_CLASSES.map((name) => [name, deadlines[name] === undefined ? null : NOW - deadlines[name] * DEFAULT_DEADLINES_MS[name]]),
  ) as Record<PriorityClass, number | null>;
const picks = (count: number, oldest: Record<PriorityClass, number | null>, turn = new AgeingTurn()) =>
  Array.from({ length: count }, () => turn.next(oldest, NOW, DEFAULT_DEADLINES_MS));
const fifth = (name: PriorityClass) => [null, null, null, null, name, null, null, null, null, name];

test.each<[string, Parameters<typeof waited>[0], (PriorityClass | null)[]]>([
  ["nobody waits", {}, Array(10).fill(null)],
  ["nobody is late", { interactive: 0.5, normal: 0.5, batch: 1 }, Array(10).fill(null)],
  ["the most urgent class needs no turn, however late", { interactive: 9, batch: 0.5 }, Array(10).fill(null)],
  ["nor does the only class", { batch: 9 }, Array(10).fill(null)],
  ["nor the most urgent of those present", { normal: 9, batch: 0.5 }, Array(10).fill(null)],
  ["a late batch job has every fifth pick", { interactive: 0.1, batch: 1.01 }, fifth("batch")],
  ["so has a late normal job", { interactive: 0.1, normal: 1.01, batch: 0.5 }, fifth("normal")],
  ["of two late classes the later by its own deadline", { interactive: 0.1, normal: 1.5, batch: 1.2 }, fifth("normal")],
  ["though the other has waited longer", { interactive: 0.1, normal: 1.1, batch: 1.2 }, fifth("batch")],
])("%s", (_name, oldest, expected) => expect(picks(10, waited(oldest))).toEqual(expected));

test("picks without a late job count: the first late one is next", () => {
  const turn = new AgeingTurn();
  picks(20, waited({ interactive: 0.1 }), turn);
  expect(picks(6, waited({ interactive: 0.1, batch: 2 }), turn)).toEqual(["batch", null, null, null, null, "batch"]);
});

test("n late jobs are all picked within 5·n picks, and four of five picks stay the most urgent class's", () => {
  fc.assert(
    fc.property(fc.nat(100), fc.integer({ min: 1, max: 50 }), (before, late) => {
      const turn = new AgeingTurn();
      picks(before, waited({ interactive: 0.1 }), turn);
      let [left, count] = [late, 0];
      for (; left > 0; count++) if (picks(1, waited({ interactive: 0.1, batch: 2 }), turn)[0] === "batch") left--;
      expect(count).toBeLessThanOrEqual(5 * late);
      expect(count).toBeGreaterThan(5 * (late - 1));
    }),
  );
});
