import { describe, expect, test } from "vitest";
import { PRIORITY_CLASSES, type PriorityClass } from "../../queues/names.ts";
import { POLICIES } from "../../workers/gpu/policies.ts";
import { DEFAULT_DEADLINES_MS, EMPTY_QUEUE, type PolicySnapshot, type QueueSnapshot } from "../../workers/gpu/policy.ts";
import { simulate } from "../../workers/gpu/simulator.ts";
import { swapDraw, syntheticTraffic } from "../../workers/gpu/synthetic-traffic.ts";

const NOW = 1_000_000;

const queue = (waiting: Partial<Record<PriorityClass, number>>): QueueSnapshot => {
  const of = (name: PriorityClass) => waiting[name] ?? 0;
  const byClass = <T>(value: (name: PriorityClass) => T) =>
    Object.fromEntries(PRIORITY_CLASSES.map((name) => [name, value(name)])) as Record<PriorityClass, T>;
  return {
    depth: PRIORITY_CLASSES.reduce((sum, name) => sum + of(name), 0),
    waiting: byClass(of),
    oldest: byClass((name) => (of(name) > 0 ? NOW : null)),
  };
};
const normal = (depth: number) => queue({ normal: depth });

/** Eight places, jobs of 4 s, swaps of 10 s, 70 % load, half for each model. */
const EACH = {
  arrivalsPerMs: (0.35 * 8) / 4000,
  serviceMs: 4000,
  aloneMs: 4000,
  batchExponent: 1,
  swapMs: 12_000,
  loadMs: 10_000,
  slots: 8,
};
const decide = (own: QueueSnapshot, others: QueueSnapshot, over: Partial<PolicySnapshot> = {}) =>
  POLICIES["least-wait"]({
    now: NOW,
    resident: "student",
    running: 0,
    served: 8,
    queues: { student: own, talker: others },
    peers: { student: 0, talker: 0 },
    rates: { student: EACH, talker: EACH },
    deadlinesMs: DEFAULT_DEADLINES_MS,
    ...over,
  });

describe("eight places at 70 % load", () => {
  test("with few running it stops picking once enough of the other model's jobs wait, and says so", () => {
    expect(decide(normal(1), normal(2), { running: 1 }).action).toBe("stay");
    expect(decide(normal(1), normal(30), { running: 1 })).toEqual({
      action: "swap",
      to: "talker",
      reason: "leaving the student for the talker: it uses 1 of its 8 places, 1 waits for its next turn, at the talker 30 wait",
    });
  });

  test("a model that has only just come is not left before it has served a job", () => {
    expect(decide(normal(1), normal(300)).action).toBe("swap");
    expect(decide(normal(1), normal(300), { served: 0 }).action).toBe("stay");
  });

  test("with many running, or many of its own waiting, it goes on", () => {
    expect(decide(normal(1), normal(30), { running: 7 }).action).toBe("stay");
    expect(decide(normal(40), normal(30), { running: 1 }).action).toBe("stay");
  });

  test("with nothing to do it holds on while few of the other's wait, and asks again", () => {
    const swap = decide(EMPTY_QUEUE, normal(20));
    expect(swap).toMatchObject({ action: "swap", to: "talker" });
    // Where swaps take long the first job is worth none yet.
    const slow = { ...EACH, swapMs: 32_000, loadMs: 30_000 };
    expect(decide(EMPTY_QUEUE, normal(1), { rates: { student: slow, talker: slow } })).toEqual({
      action: "hold",
      reason: "holding on for more of the talker's jobs: 1 waits, a swap would cost 30.0 s",
      askAgainMs: 60_000,
    });
  });

  test("nobody is held who has waited for two swaps: what was expected didn't come", () => {
    const slow = { ...EACH, swapMs: 32_000, loadMs: 30_000 };
    const at = (waitedMs: number) => decide(EMPTY_QUEUE, normal(1), { now: NOW + waitedMs, rates: { student: slow, talker: slow } });
    expect(at(59_000)).toMatchObject({ action: "swap" });
    expect(at(30_000)).toMatchObject({ action: "hold", askAgainMs: 30_000 });
    expect(at(60_000)).toMatchObject({ action: "swap" });
  });

  test("an interactive job is neither held nor left behind for less urgent ones", () => {
    const slow = { ...EACH, swapMs: 32_000, loadMs: 30_000 };
    expect(decide(EMPTY_QUEUE, queue({ interactive: 1 }), { rates: { student: slow, talker: slow } }).action).toBe("swap");
    expect(decide(queue({ interactive: 1 }), queue({ normal: 30, batch: 30 }), { running: 1 }).action).toBe("stay");
    // Nor for others as urgent if he would be late when his model is back.
    expect(decide(queue({ interactive: 1 }), queue({ interactive: 300 }), { running: 1 }).action).toBe("stay");
    expect(decide(queue({ batch: 1 }), queue({ normal: 30 }), { running: 1 }).action).toBe("swap");
  });

  test("before anything is measured it is exhaustive", () => {
    const unmeasured = { arrivalsPerMs: 0, serviceMs: 0, swapMs: 0, slots: 8 };
    const rates = { student: unmeasured, talker: unmeasured };
    expect(decide(normal(1), normal(30), { running: 1, rates }).action).toBe("stay");
    expect(decide(EMPTY_QUEUE, normal(1), { rates }).action).toBe("swap");
  });
});

const play = (policy: keyof typeof POLICIES, slots: number, load: number, mix: number, exponent: number, swapMs: number, seed = 1) => {
  const traffic = {
    jobs: 8000,
    serviceMs: 4000,
    serviceCv: 1,
    slots,
    batchExponent: exponent,
    mix,
    load,
    burst: 1,
    classes: { normal: 1 },
    seed,
  };
  return simulate({
    jobs: syntheticTraffic(traffic),
    policy: POLICIES[policy],
    slots,
    batchExponent: { student: exponent, talker: exponent },
    swapMs: { student: swapMs, talker: swapMs },
    drawSwapMs: swapDraw(0.408, seed),
    deadlinesMs: DEFAULT_DEADLINES_MS,
  });
};

test.each([
  { slots: 8, load: 0.7, mix: 0.5, exponent: 1, swapMs: 10_000, most: 0.8 },
  { slots: 8, load: 0.7, mix: 0.8, exponent: 1, swapMs: 10_000, most: 0.85 },
  { slots: 16, load: 0.7, mix: 0.8, exponent: 0.5, swapMs: 5000, most: 0.9 },
  { slots: 40, load: 0.6, mix: 0.5, exponent: 1, swapMs: 10_000, most: 0.8 },
  { slots: 1, load: 0.7, mix: 0.5, exponent: 1, swapMs: 10_000, most: 1.02 },
])("the mean time in the system is at most $most of ge's: %o", ({ slots, load, mix, exponent, swapMs, most }) => {
  const [least, ge] = [play("least-wait", slots, load, mix, exponent, swapMs), play("ge", slots, load, mix, exponent, swapMs)];
  expect(least.meanEndToEndMs / ge.meanEndToEndMs).toBeLessThan(most);
});

test.each([0.9, 1.2])("a sparse model's longest wait is no worse than ge's (load %f)", (load) => {
  for (const seed of [1, 2]) {
    const [least, ge] = (["least-wait", "ge"] as const).map((policy) => play(policy, 1, load, 0.97, 1, 10_000, seed));
    expect(least!.models.talker.maxWaitMs).toBeLessThanOrEqual(1.02 * ge!.models.talker.maxWaitMs);
  }
});
