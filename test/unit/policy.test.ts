import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  DEFAULT_DEADLINES_MS,
  type Decision,
  effectiveDeadlineMs,
  POLICIES,
  type PolicySnapshot,
  type QueueSnapshot,
  quantum,
} from "../../workers/gpu/policy.ts";

const queue = (depth: number, arrival: number | null = null): QueueSnapshot => ({
  depth,
  oldest: { interactive: null, normal: arrival, batch: null },
});
const empty = queue(0);
const measured = { arrivalsPerMs: 0, serviceMs: 0, swapMs: 0, slots: 1 };
const seen = (resident: PolicySnapshot["resident"], student: QueueSnapshot, talker: QueueSnapshot, running = 0): PolicySnapshot => ({
  now: 1000,
  resident,
  running,
  served: 0,
  queues: { student, talker },
  rates: { student: measured, talker: measured },
  deadlinesMs: DEFAULT_DEADLINES_MS,
});
const short = (decision: Decision) => (decision.action === "swap" ? `swap ${decision.to}` : decision.action);

const table: [string, PolicySnapshot, string, string][] = [
  ["nothing anywhere", seen(null, empty, empty), "idle", "idle"],
  ["nothing resident, only the talker has work", seen(null, empty, queue(1, 5)), "swap talker", "swap talker"],
  ["nothing resident, the student's is older", seen(null, queue(1, 4), queue(9, 5)), "swap student", "swap student"],
  ["nothing resident, the talker's is older", seen(null, queue(9, 6), queue(1, 5)), "swap talker", "swap talker"],
  ["both have work, the resident's is older", seen("student", queue(1, 4), queue(9, 5)), "stay", "stay"],
  ["both have work, the other's is older", seen("student", queue(1, 6), queue(9, 5)), "stay", "swap talker"],
  ["only the other has work", seen("talker", queue(1, 6), empty), "swap student", "swap student"],
  ["only the other has work, some still run", seen("talker", queue(1, 6), empty, 3), "swap student", "swap student"],
  ["nothing waits, some run", seen("talker", empty, empty, 2), "stay", "stay"],
  ["nothing waits, nothing runs", seen("talker", empty, empty), "idle", "idle"],
];

describe.each(table)("%s", (_name, snapshot, exhaustive, fifo) => {
  test(`ge, nothing late: ${exhaustive}`, () => expect(short(POLICIES.ge(snapshot))).toBe(exhaustive));
  test(`exhaustive: ${exhaustive}`, () => expect(short(POLICIES.exhaustive(snapshot))).toBe(exhaustive));
  test(`fifo: ${fifo}`, () => expect(short(POLICIES.fifo(snapshot))).toBe(fifo));
});

const arbitraryQueue = fc
  .tuple(fc.nat(5), fc.nat(100), fc.constantFrom("interactive", "normal", "batch"))
  .map(([depth, arrival, name]): QueueSnapshot => ({ depth, oldest: { ...empty.oldest, ...(depth > 0 ? { [name]: arrival } : {}) } }));
const arbitrarySnapshot = fc
  .tuple(fc.constantFrom("student", "talker", null), arbitraryQueue, arbitraryQueue, fc.nat(3))
  .map(([resident, student, talker, running]) => seen(resident, student, talker, resident === null ? 0 : running));

test.each(Object.entries(POLICIES))(
  "%s: swaps only to the other model and only for work, and never idles while there is any",
  (_name, policy) => {
    fc.assert(
      fc.property(arbitrarySnapshot, (snapshot) => {
        const decision = policy(snapshot);
        const work = snapshot.queues.student.depth + snapshot.queues.talker.depth;
        if (decision.action === "swap") {
          expect(decision.to).not.toBe(snapshot.resident);
          expect(snapshot.queues[decision.to].depth).toBeGreaterThan(0);
        }
        if (work > 0) expect(decision.action).not.toBe("idle");
        expect(decision.reason).not.toBe("");
      }),
    );
  },
);

describe("ge when a job of the other model is late", () => {
  const rates = (arrivalsPerMs: number) => {
    const each = { arrivalsPerMs, serviceMs: 4000, swapMs: 10_000, slots: 1 };
    return { student: each, talker: each };
  };
  const late = (served: number, waitedMs: number, name: "interactive" | "normal" | "batch" = "normal") => {
    const oldest = { interactive: null, normal: null, batch: null, [name]: 1_000_000 - waitedMs };
    const snapshot = seen("student", queue(50, 999_000), { depth: 1, oldest });
    return POLICIES.ge({ ...snapshot, now: 1_000_000, served, rates: rates(0.7 / 2 / 4000) });
  };

  test("the quantum at ρ = 0.7 is ⌈4·λ·S/(1−ρ)⌉", () =>
    expect(quantum({ resident: "student", rates: rates(0.7 / 2 / 4000), queues: { student: queue(50), talker: queue(1) } }, 300_000)).toBe(
      12,
    ));
  test("in overload it is what the deadline allows, or what keeps swaps at 20 %", () => {
    const none = { student: empty, talker: empty };
    expect(quantum({ resident: "student", rates: rates(1 / 4000), queues: none }, 300_000)).toBe(69);
    expect(quantum({ resident: "student", rates: rates(0), queues: { student: queue(70), talker: queue(5) } }, 300_000)).toBe(69);
    expect(quantum({ resident: "student", rates: rates(1 / 4000), queues: none }, 30_000)).toBe(13);
  });
  test("a deadline shorter than swaps allow is raised", () => {
    expect(effectiveDeadlineMs(60_000, rates(0))).toBe(70_000);
    expect(effectiveDeadlineMs(300_000, rates(0))).toBe(300_000);
  });
  test("it swaps once the quantum is served, and says why", () => {
    expect(short(late(11, 290_000))).toBe("stay");
    expect(late(12, 290_000)).toMatchObject({
      action: "swap",
      to: "talker",
      reason: expect.stringMatching(/oldest normal job would wait 304.0 s of at most 300.0 s.*served 12/),
    });
    expect(short(late(12, 285_000))).toBe("stay");
  });
  test("each class has its own deadline", () => {
    expect(short(late(13, 60_000, "interactive"))).toBe("swap talker");
    expect(short(late(13, 60_000, "normal"))).toBe("stay");
    expect(short(late(13, 400_000, "batch"))).toBe("stay");
  });
});
