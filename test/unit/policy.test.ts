import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Decision, POLICIES, type PolicySnapshot, type QueueSnapshot } from "../../workers/gpu/policy.ts";

const queue = (depth: number, arrival: number | null = null): QueueSnapshot => ({
  depth,
  oldest: { interactive: null, normal: arrival, batch: null },
});
const empty = queue(0);
const seen = (resident: PolicySnapshot["resident"], student: QueueSnapshot, talker: QueueSnapshot, running = 0): PolicySnapshot => ({
  now: 1000,
  resident,
  running,
  queues: { student, talker },
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
