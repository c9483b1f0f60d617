import { describe, expect, test } from "vitest";
import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";
import { effectiveDeadlineMs, quantum } from "../../workers/gpu/ge.ts";
import { POLICIES } from "../../workers/gpu/policies.ts";
import { DEFAULT_DEADLINES_MS, type Decision, EMPTY_QUEUE, type PolicySnapshot, type QueueSnapshot } from "../../workers/gpu/policy.ts";

const NOW = 1_000_000;

/** So many jobs of each class, all of which have waited for `waitedMs`. */
const queue = (waiting: Partial<Record<PriorityClass, number>>, waitedMs = 0): QueueSnapshot => {
  const of = (name: PriorityClass) => waiting[name] ?? 0;
  const byClass = <T>(value: (name: PriorityClass) => T) =>
    Object.fromEntries(PRIORITY_CLASSES.map((name) => [name, value(name)])) as Record<PriorityClass, T>;
  return {
    depth: PRIORITY_CLASSES.reduce((sum, name) => sum + of(name), 0),
    waiting: byClass(of),
    oldest: byClass((name) => (of(name) > 0 ? NOW - waitedMs : null)),
  };
};
const normal = (depth: number, waitedMs = 0) => queue({ normal: depth }, waitedMs);

/** Both models alike: 4 s a job, 10 s a swap, one slot. */
const alike = (arrivalsPerMs: number, slots = 1): PolicySnapshot["rates"] => {
  const each = { arrivalsPerMs, serviceMs: 4000, swapMs: 10_000, slots };
  return { student: each, talker: each };
};
const unmeasured = {
  student: { arrivalsPerMs: 0, serviceMs: 0, swapMs: 0, slots: 1 },
  talker: { arrivalsPerMs: 0, serviceMs: 0, swapMs: 0, slots: 1 },
};
const AT_LOAD_70 = alike(0.7 / 2 / 4000);

const seen = (over: Partial<PolicySnapshot>, student: QueueSnapshot, talker: QueueSnapshot): PolicySnapshot => ({
  now: NOW,
  resident: "student",
  running: 0,
  served: 0,
  queues: { student, talker },
  peers: { student: 0, talker: 0 },
  rates: unmeasured,
  deadlinesMs: DEFAULT_DEADLINES_MS,
  ...over,
});
const short = (decision: Decision) => (decision.action === "swap" ? `swap ${decision.to}` : decision.action);

describe.each<[string, PolicySnapshot, string, string]>([
  ["nothing anywhere", seen({ resident: null }, EMPTY_QUEUE, EMPTY_QUEUE), "idle", "idle"],
  ["nothing resident, only the talker has work", seen({ resident: null }, EMPTY_QUEUE, normal(1)), "swap talker", "swap talker"],
  ["nothing resident, the student's is older", seen({ resident: null }, normal(1, 6), normal(9, 5)), "swap student", "swap student"],
  ["nothing resident, the talker's is older", seen({ resident: null }, normal(9, 4), normal(1, 5)), "swap talker", "swap talker"],
  ["both have work, the resident's is older", seen({}, normal(1, 6), normal(9, 5)), "stay", "stay"],
  ["both have work, the other's is older", seen({}, normal(1, 4), normal(9, 5)), "stay", "swap talker"],
  ["only the other has work", seen({ resident: "talker" }, normal(1, 4), EMPTY_QUEUE), "swap student", "swap student"],
  ["only the other has work, some run", seen({ resident: "talker", running: 3 }, normal(1), EMPTY_QUEUE), "swap student", "swap student"],
  ["nothing waits, some run", seen({ resident: "talker", running: 2 }, EMPTY_QUEUE, EMPTY_QUEUE), "stay", "stay"],
  ["nothing waits, nothing runs", seen({ resident: "talker" }, EMPTY_QUEUE, EMPTY_QUEUE), "idle", "idle"],
])("%s", (_name, snapshot, exhaustive, fifo) => {
  test(`ge, nothing late: ${exhaustive}`, () => expect(short(POLICIES.ge(snapshot))).toBe(exhaustive));
  test(`exhaustive: ${exhaustive}`, () => expect(short(POLICIES.exhaustive(snapshot))).toBe(exhaustive));
  test(`fifo: ${fifo}`, () => expect(short(POLICIES.fifo(snapshot))).toBe(fifo));
});

describe("a deadline shorter than swaps allow is raised to Ŝ(2 + 1/ε)", () => {
  test.each([
    [60_000, 70_000],
    [70_000, 70_000],
    [300_000, 300_000],
  ])("%i ms is held as %i ms", (asked, held) => expect(effectiveDeadlineMs(asked, AT_LOAD_70)).toBe(held));
  test("by the mean of both directions", () => {
    const rates = { student: { ...AT_LOAD_70.student, swapMs: 30_000 }, talker: AT_LOAD_70.talker };
    expect(effectiveDeadlineMs(60_000, rates)).toBe(140_000);
  });
});

describe("the quantum", () => {
  const K = (
    rates: PolicySnapshot["rates"],
    student: QueueSnapshot,
    talker: QueueSnapshot,
    name: PriorityClass = "normal",
    deadlineMs?: number,
  ) =>
    quantum(
      seen(
        { rates, deadlinesMs: { ...DEFAULT_DEADLINES_MS, ...(deadlineMs === undefined ? {} : { [name]: deadlineMs }) } },
        student,
        talker,
      ),
      name,
    );
  const [few, one] = [normal(50), normal(1)];
  const overload = alike(1 / 4000);
  const quiet = alike(0);

  test.each<[string, number, number]>([
    ["nothing measured", K(unmeasured, few, one), 1],
    ["at ρ = 0.7: ⌈4·λ·S/(1−ρ)⌉", K(AT_LOAD_70, few, one), 12],
    [
      "at ρ = 0.85 with a shorter deadline: K_hi, which is no less than K_lo",
      K(alike(0.425 / 4000), normal(5), one, "normal", 120_000),
      24,
    ],
    ["at ρ = 0.7 with a short deadline: never below K_lo", K(AT_LOAD_70, normal(2), one, "normal", 30_000), 11],
    ["no arrivals at all: K_lo", K(quiet, few, one), 1],
    ["overload: K_hi", K(overload, EMPTY_QUEUE, EMPTY_QUEUE), 69],
    ["overload with a short deadline: what keeps swaps at ε", K(overload, EMPTY_QUEUE, EMPTY_QUEUE, "normal", 30_000), 13],
    ["more waits than can be served within D counts as overload", K(quiet, normal(70), normal(5)), 69],
    ["K_even: as long as the other's backlog takes", K(quiet, normal(300), normal(200)), 200],
    [
      "K_even: twice that when what is left of the resident's is late too and done sooner",
      K(quiet, normal(200, 300_000), normal(200)),
      400,
    ],
    ["K_even: not twice when it isn't late", K(quiet, normal(200, 299_999), normal(200)), 200],
    ["K_even: not twice when it isn't done sooner", K(quiet, normal(201, 300_000), normal(200)), 200],
    ["K_even: late by the class that asks", K(quiet, normal(200, 70_000), queue({ interactive: 200 }), "interactive"), 200],
    ["K_even: no visit goes beyond batch's D", K(quiet, normal(10, 300_000), normal(2000)), 900],
    [
      "K_even counts the class's jobs and the more urgent ones only",
      K(quiet, normal(300), queue({ interactive: 50, normal: 100, batch: 5000 })),
      150,
    ],
    ["K_even for interactive jobs", K(quiet, normal(300), queue({ interactive: 50, normal: 100 }), "interactive"), 50],
    ["K_even for batch jobs", K(quiet, normal(300), queue({ interactive: 50, normal: 100, batch: 1 }), "batch"), 151],
    ["eight slots: eight times K_hi", K(alike(0, 8), normal(1000), one), 552],
    ["an unmeasured model is taken to be like the other", K({ student: unmeasured.student, talker: overload.talker }, normal(80), one), 69],
    [
      "it counts a job at least, however short D and swaps are",
      K(
        { student: { ...overload.student, swapMs: 0 }, talker: { ...overload.talker, swapMs: 0, serviceMs: 1 } },
        normal(9),
        one,
        "normal",
        0,
      ),
      1,
    ],
  ])("%s", (_name, actual, expected) => expect(actual).toBe(expected));
});

describe("ge when a job of the other model is late", () => {
  const late = (served: number, waitedMs: number, name: PriorityClass = "normal", others = 1) =>
    POLICIES.ge(seen({ served, rates: AT_LOAD_70 }, normal(50), queue({ [name]: others }, waitedMs)));

  test("it swaps once the quantum is served, and says why", () => {
    expect(short(late(11, 290_000))).toBe("stay");
    expect(late(12, 290_000)).toMatchObject({
      action: "swap",
      to: "talker",
      reason: expect.stringMatching(/oldest normal job would wait 304.0 s of at most 300.0 s.*served 12/),
    });
  });

  // Picked now it would have waited for the swap and a job's time besides: 10 s + 4 s.
  test.each<[PriorityClass, number, string]>([
    ["interactive", 55_999, "stay"],
    ["interactive", 56_000, "swap talker"],
    ["normal", 285_999, "stay"],
    ["normal", 286_000, "swap talker"],
    ["batch", 3_585_999, "stay"],
    ["batch", 3_586_000, "swap talker"],
  ])("each class has its own deadline: %s after %i ms: %s", (name, waitedMs, expected) =>
    expect(short(late(50, waitedMs, name))).toBe(expected),
  );

  test("a model that was never loaded is taken to load and serve like the other", () => {
    const at = (waitedMs: number) =>
      short(
        POLICIES.ge(
          seen({ served: 50, rates: { student: AT_LOAD_70.student, talker: unmeasured.talker } }, normal(50), normal(1, waitedMs)),
        ),
      );
    expect(at(286_000)).toBe("swap talker");
    expect(at(285_000)).toBe("stay");
  });

  test("any late class is enough", () => {
    const talker: QueueSnapshot = {
      depth: 3,
      waiting: { interactive: 1, normal: 1, batch: 1 },
      oldest: { interactive: NOW - 1000, normal: NOW - 290_000, batch: NOW - 1000 },
    };
    expect(short(POLICIES.ge(seen({ served: 20, rates: AT_LOAD_70 }, normal(10), talker)))).toBe("swap talker");
  });

  test("an interactive job swaps in at its own D although 10,000 batch jobs wait at the resident model", () => {
    const at = (served: number, waitedMs: number, batch = 0) =>
      short(POLICIES.ge(seen({ served, rates: AT_LOAD_70 }, queue({ batch: 10_000 }), queue({ interactive: 1, batch }, waitedMs))));
    expect(at(13, 56_000)).toBe("swap talker");
    expect(at(13, 55_000)).toBe("stay");
    expect(at(12, 56_000)).toBe("stay");
    // Batch jobs behind it in its queue neither bring it forward nor put it off.
    expect(at(13, 56_000, 10_000)).toBe("swap talker");
    expect(at(12, 56_000, 10_000)).toBe("stay");
  });

  test("two late backlogs are served model by model", () => {
    const at = (served: number, own: number, others: number) =>
      short(POLICIES.ge(seen({ served, rates: alike(0) }, normal(own, 900_000), normal(others, 900_000))));
    expect(at(200, 200, 400)).toBe("stay");
    expect(at(600, 1, 400)).toBe("stay");
    expect(at(600, 0, 400)).toBe("swap talker");
    // What arrives meanwhile doesn't keep the model for more than twice the other's time.
    expect(at(800, 1, 400)).toBe("swap talker");
    // The resident's queue is much the longer: it has had as long as the other needs.
    expect(at(400, 1200, 400)).toBe("swap talker");
    expect(at(399, 1200, 400)).toBe("stay");
    // Batch's D ends the visit, 900 jobs of 4 s.
    expect(at(900, 3000, 5000)).toBe("swap talker");
  });

  test("jobs that have only just come hold no late ones up", () => {
    const at = (served: number, ownMs: number) =>
      short(POLICIES.ge(seen({ served, rates: alike(0) }, normal(10, ownMs), normal(400, 900_000))));
    expect(at(400, 20_000)).toBe("swap talker");
    expect(at(399, 20_000)).toBe("stay");
    expect(at(400, 300_000)).toBe("stay");
  });

  test("max-wait swaps after one job, fifo at once", () => {
    const snapshot = (served: number) => seen({ served, rates: AT_LOAD_70 }, normal(50, 400_000), normal(1, 290_000));
    expect(short(POLICIES["max-wait"](snapshot(1)))).toBe("swap talker");
    expect(short(POLICIES["max-wait"](snapshot(0)))).toBe("stay");
    expect(short(POLICIES.fifo(snapshot(50)))).toBe("stay");
  });
});

describe("beside other GPUs", () => {
  const beside = (over: Partial<PolicySnapshot>, student: QueueSnapshot, talker: QueueSnapshot) =>
    short(POLICIES.ge(seen({ rates: AT_LOAD_70, served: 50, ...over }, student, talker)));

  // Two swaps take 20 s: five jobs of 4 s.
  test.each<[string, string, string]>([
    ["a peer's small work is left to it", beside({ peers: { student: 0, talker: 1 } }, EMPTY_QUEUE, normal(5)), "idle"],
    ["a large backlog is shared", beside({ peers: { student: 0, talker: 1 } }, EMPTY_QUEUE, normal(6)), "swap talker"],
    ["the more peers have the model, the larger", beside({ peers: { student: 0, talker: 2 } }, EMPTY_QUEUE, normal(10)), "idle"],
    ["and larger still", beside({ peers: { student: 0, talker: 2 } }, EMPTY_QUEUE, normal(11)), "swap talker"],
    [
      "late jobs of a peer's model are the peer's, if few",
      beside({ peers: { student: 0, talker: 1 } }, normal(9), normal(5, 400_000)),
      "stay",
    ],
    ["running jobs go on", beside({ peers: { student: 0, talker: 1 }, running: 2 }, EMPTY_QUEUE, normal(1)), "stay"],
    [
      "an empty GPU loads what nobody has",
      beside({ resident: null, peers: { student: 1, talker: 0 } }, normal(3, 9), normal(1)),
      "swap talker",
    ],
    [
      "a large backlog of a model that was never measured here is shared",
      beside(
        { peers: { student: 0, talker: 1 }, rates: { student: AT_LOAD_70.student, talker: unmeasured.talker } },
        EMPTY_QUEUE,
        normal(6),
      ),
      "swap talker",
    ],
    [
      "so is one that the peers' slots don't hold while nothing was ever measured",
      beside({ resident: null, peers: { student: 2, talker: 0 }, rates: unmeasured }, normal(3), EMPTY_QUEUE),
      "swap student",
    ],
    [
      "but not what they hold",
      beside({ resident: null, peers: { student: 2, talker: 0 }, rates: unmeasured }, normal(2), EMPTY_QUEUE),
      "idle",
    ],
    ["an empty GPU leaves small work alone", beside({ resident: null, peers: { student: 1, talker: 0 } }, normal(5), EMPTY_QUEUE), "idle"],
    [
      "an empty GPU helps with a backlog",
      beside({ resident: null, peers: { student: 1, talker: 0 } }, normal(60), EMPTY_QUEUE),
      "swap student",
    ],
    ["of two with the same model one leaves", beside({ peers: { student: 1, talker: 0 } }, normal(60), normal(1)), "swap talker"],
    ["but only after its quantum", beside({ peers: { student: 1, talker: 0 }, served: 11 }, normal(20), normal(1)), "stay"],
    ["or with nothing left to do", beside({ peers: { student: 1, talker: 0 }, served: 0 }, EMPTY_QUEUE, normal(1)), "swap talker"],
    ["nobody leaves when a third has the other model", beside({ peers: { student: 1, talker: 1 } }, normal(20), normal(5)), "stay"],
    ["nor when that one has more than it can do soon", beside({ peers: { student: 1, talker: 1 } }, normal(20), normal(50)), "stay"],
  ])("%s", (_name, actual, expected) => expect(actual).toBe(expected));

  /** Two GPUs decide in turn, each knowing what the other has resident or is loading, until both stay. */
  const settle = (residents: [Role | null, Role | null], student: QueueSnapshot, talker: QueueSnapshot, first: 0 | 1) => {
    const now = [...residents];
    for (let turn = 0; turn < 8; turn++) {
      const who = (first + turn) % 2;
      const peer = now[1 - who];
      const decision = POLICIES.ge(
        seen(
          {
            resident: now[who] ?? null,
            served: 50,
            rates: AT_LOAD_70,
            peers: { student: peer === "student" ? 1 : 0, talker: peer === "talker" ? 1 : 0 },
          },
          student,
          talker,
        ),
      );
      if (decision.action === "swap") now[who] = decision.to;
    }
    return now.toSorted();
  };
  test.each<[string, [Role | null, Role | null], number, number]>([
    ["both with the student", ["student", "student"], 60, 3],
    ["both with the talker", ["talker", "talker"], 3, 60],
    ["both empty", [null, null], 3, 3],
    ["one each already", ["student", "talker"], 60, 60],
    ["one each already, little work", ["talker", "student"], 1, 1],
    ["one each already, both late", ["student", "talker"], 4, 4],
    ["one empty", ["talker", null], 2, 40],
  ])("two GPUs never both leave a model that has work: %s", (_name, residents, student, talker) => {
    for (const first of [0, 1] as const) {
      for (const waitedMs of [0, 400_000]) {
        expect(settle(residents, normal(student, waitedMs), normal(talker, waitedMs), first)).toEqual(["student", "talker"]);
      }
    }
  });

  test("the reason names whose jobs they are", () => {
    const decision = POLICIES.ge(seen({ rates: AT_LOAD_70, peers: { student: 0, talker: 1 } }, EMPTY_QUEUE, normal(5)));
    expect(decision.reason).toBe("both queues are empty; the talker's jobs are another GPU's");
  });
});
