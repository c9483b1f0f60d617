import fc from "fast-check";
import { expect, test } from "vitest";
import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../../queues/names.ts";
import { effectiveDeadlineMs, quantum } from "../../workers/gpu/ge.ts";
import { POLICIES } from "../../workers/gpu/policies.ts";
import {
  DEFAULT_DEADLINES_MS,
  type Decision,
  EMPTY_QUEUE,
  type ModelRates,
  type Policy,
  type PolicySnapshot,
  type QueueSnapshot,
} from "../../workers/gpu/policy.ts";
import { type SimulatedJob, simulate } from "../../workers/gpu/simulator.ts";

/**
 * Two kinds of snapshots: those that the simulator comes to, playing arbitrary small traffic (reachable: what is served, measured and
 * waiting fits together), and arbitrary ones that are merely consistent (depth is the sum of the classes; with peers).
 */

const NOW = 10_000_000;
const OTHER = { student: "talker", talker: "student" } as const;
const RUNS = { numRuns: 300 };

const arbitraryJob = fc.record({
  role: fc.constantFrom(...ROLES),
  class: fc.constantFrom(...PRIORITY_CLASSES),
  // Many at the same moment, some long after.
  arrivalMs: fc.oneof(fc.constant(0), fc.nat(20_000), fc.nat(2_000_000)),
  serviceMs: fc.oneof(fc.constant(4000), fc.integer({ min: 1, max: 120_000 })),
});
const arbitraryTraffic = fc.record({
  jobs: fc
    .array(arbitraryJob, { minLength: 1, maxLength: 60 })
    .map((jobs): SimulatedJob[] => jobs.toSorted((a, b) => a.arrivalMs - b.arrivalMs)),
  slots: fc.integer({ min: 1, max: 8 }),
  swapMs: fc.record({ student: fc.nat(60_000), talker: fc.nat(60_000) }),
  deadlinesMs: fc.oneof(
    fc.constant(DEFAULT_DEADLINES_MS),
    fc.record({ interactive: fc.nat(60_000), normal: fc.nat(300_000), batch: fc.nat(3_600_000) }),
  ),
});

type Traffic = typeof arbitraryTraffic extends fc.Arbitrary<infer T> ? T : never;

/** Plays the traffic and looks at every decision. */
function eachDecision(policy: Policy, traffic: Traffic, look: (snapshot: PolicySnapshot, decision: Decision) => void): void {
  const result = simulate({
    ...traffic,
    policy: (snapshot) => {
      const decision = policy(snapshot);
      look(snapshot, decision);
      return decision;
    },
  });
  expect(result.jobs).toBe(traffic.jobs.length);
}

const arbitraryRates: fc.Arbitrary<ModelRates> = fc.record({
  arrivalsPerMs: fc.oneof(fc.constant(0), fc.double({ min: 1e-9, max: 0.01, noNaN: true })),
  serviceMs: fc.oneof(fc.constant(0), fc.double({ min: 0.5, max: 100_000, noNaN: true })),
  swapMs: fc.oneof(fc.constant(0), fc.double({ min: 1, max: 120_000, noNaN: true })),
  slots: fc.integer({ min: 1, max: 64 }),
});
const arbitraryQueue: fc.Arbitrary<QueueSnapshot> = fc
  .array(fc.tuple(fc.oneof(fc.constant(0), fc.nat(20), fc.nat(10_000)), fc.nat(4_000_000)), { minLength: 3, maxLength: 3 })
  .map((classes) => {
    const byClass = <T>(value: (waiting: number, ageMs: number) => T) =>
      Object.fromEntries(PRIORITY_CLASSES.map((name, i) => [name, value(...classes[i]!)])) as Record<PriorityClass, T>;
    return {
      depth: classes.reduce((sum, [waiting]) => sum + waiting, 0),
      waiting: byClass((waiting) => waiting),
      oldest: byClass((waiting, ageMs) => (waiting > 0 ? NOW - ageMs : null)),
    };
  });
const arbitrarySnapshot: fc.Arbitrary<PolicySnapshot> = fc
  .record({
    now: fc.constant(NOW),
    resident: fc.constantFrom("student" as const, "talker" as const, null),
    running: fc.nat(8),
    served: fc.nat(500),
    queues: fc.record({ student: arbitraryQueue, talker: arbitraryQueue }),
    peers: fc.oneof(fc.constant({ student: 0, talker: 0 }), fc.record({ student: fc.nat(3), talker: fc.nat(3) })),
    rates: fc.record({ student: arbitraryRates, talker: arbitraryRates }),
    deadlinesMs: fc.record({ interactive: fc.nat(120_000), normal: fc.nat(600_000), batch: fc.nat(7_200_000) }),
  })
  .map((snapshot) => (snapshot.resident === null ? { ...snapshot, running: 0, served: 0 } : snapshot));

function expectSound(snapshot: PolicySnapshot, decision: Decision): void {
  const { queues, resident, peers } = snapshot;
  expect(decision.reason).not.toBe("");
  if (decision.action === "swap") {
    expect(decision.to).not.toBe(resident);
    expect(queues[decision.to].depth).toBeGreaterThan(0);
  }
  // All that waits may be left to another GPU that has its model.
  const own = ROLES.filter((role) => queues[role].depth > 0 && (role === resident || peers[role] === 0));
  if (own.length > 0) expect(decision.action).not.toBe("idle");
  if (decision.action === "hold") {
    // Nothing is there to pick, and it asks again by itself.
    expect(snapshot.running).toBe(0);
    expect(queues[resident!].depth).toBe(0);
    expect(queues[OTHER[resident!]].depth).toBeGreaterThan(0);
    expect(queues[OTHER[resident!]].waiting.interactive).toBe(0);
    expect(decision.reason).toContain("holding on");
    expect(decision.askAgainMs).toBeGreaterThan(0);
  }
  // Nothing can stay that is not there.
  if (resident === null) expect(decision.action).not.toBe("stay");
}

test.each(Object.entries(POLICIES))(
  "%s swaps only to the other model and only for work, and never idles while there is any",
  (name, policy) => {
    // A plan takes its time: fewer of them.
    const scale = name === "least-wait" ? 0.2 : 1;
    fc.assert(
      fc.property(arbitrarySnapshot, (snapshot) => expectSound(snapshot, policy(snapshot))),
      { numRuns: scale * RUNS.numRuns },
    );
    fc.assert(
      fc.property(arbitraryTraffic, (traffic) => eachDecision(policy, traffic, expectSound)),
      { numRuns: scale * 100 },
    );
  },
);

test("a policy doesn't change its snapshot, and decides the same each time", () => {
  fc.assert(
    fc.property(arbitrarySnapshot, fc.constantFrom(...Object.values(POLICIES)), (snapshot, policy) => {
      const before = structuredClone(snapshot);
      const decision = policy(snapshot);
      expect(snapshot).toEqual(before);
      expect(policy(snapshot)).toEqual(decision);
    }),
    RUNS,
  );
});

test("the quantum is a whole number of at least 1", () => {
  const check = (snapshot: PolicySnapshot) => {
    for (const name of PRIORITY_CLASSES) {
      const K = quantum(snapshot, name);
      expect(Number.isSafeInteger(K), `K = ${K}`).toBe(true);
      expect(K).toBeGreaterThanOrEqual(1);
    }
  };
  fc.assert(fc.property(arbitrarySnapshot, check), RUNS);
  fc.assert(
    fc.property(arbitraryTraffic, (traffic) => eachDecision(POLICIES.ge, traffic, check)),
    { numRuns: 100 },
  );
});

/** In overload whatever else, so that a change of one figure doesn't change the branch of the formula. */
const arbitraryOverload = fc
  .tuple(arbitrarySnapshot, fc.constantFrom(...PRIORITY_CLASSES))
  .filter(([{ rates }]) => rates.student.serviceMs > 0 && rates.talker.serviceMs > 0)
  .map(([snapshot, name]): [PolicySnapshot, PriorityClass] => [
    {
      ...snapshot,
      rates: {
        ...snapshot.rates,
        student: { ...snapshot.rates.student, arrivalsPerMs: (2 * snapshot.rates.student.slots) / snapshot.rates.student.serviceMs },
      },
    },
    name,
  ]);

test("in overload the quantum never falls as D grows, nor as more jobs of the other model wait", () => {
  fc.assert(
    fc.property(arbitraryOverload, fc.nat(1_000_000), ([given, name], moreMs) => {
      // Whether what waits at the resident model is late depends on D as well: with nothing there it doesn't matter.
      const snapshot = { ...given, queues: { ...given.queues, [given.resident ?? "student"]: EMPTY_QUEUE } };
      const deadlinesMs = { ...snapshot.deadlinesMs, [name]: snapshot.deadlinesMs[name] + moreMs };
      expect(quantum({ ...snapshot, deadlinesMs }, name)).toBeGreaterThanOrEqual(quantum(snapshot, name));
    }),
    RUNS,
  );
  fc.assert(
    fc.property(arbitraryOverload, fc.nat(10_000), ([snapshot, name], more) => {
      const other = OTHER[snapshot.resident ?? "student"];
      const { depth, waiting, oldest } = snapshot.queues[other];
      const longer = { depth: depth + more, waiting: { ...waiting, [name]: waiting[name] + more }, oldest };
      expect(quantum({ ...snapshot, queues: { ...snapshot.queues, [other]: longer } }, name)).toBeGreaterThanOrEqual(
        quantum(snapshot, name),
      );
    }),
    RUNS,
  );
});

test("below overload the quantum never falls as the resident model's jobs come faster, nor below K_lo", () => {
  const few: fc.Arbitrary<QueueSnapshot> = fc.nat(3).map((depth) => ({
    depth,
    waiting: { interactive: 0, normal: depth, batch: 0 },
    oldest: { interactive: null, normal: depth > 0 ? NOW - 5000 : null, batch: null },
  }));
  const load = fc.double({ min: 0, max: 0.94, noNaN: true });
  fc.assert(
    fc.property(
      few,
      few,
      fc.integer({ min: 1, max: 16 }),
      fc.integer({ min: 1, max: 10_000 }),
      fc.nat(20_000),
      load,
      load,
      (student, talker, slots, serviceMs, swapMs, a, b) => {
        const K = (rho: number) => {
          const each = { serviceMs, swapMs, slots };
          const rates = { student: { ...each, arrivalsPerMs: (rho * slots) / serviceMs }, talker: { ...each, arrivalsPerMs: 0 } };
          return quantum(
            { now: NOW, resident: "student", rates, queues: { student, talker }, deadlinesMs: DEFAULT_DEADLINES_MS },
            "normal",
          );
        };
        const [low, high] = [Math.min(a, b), Math.max(a, b)];
        expect(K(high)).toBeGreaterThanOrEqual(K(low));
        const arriving = (low * slots * swapMs) / serviceMs / (1 - low);
        expect(K(low)).toBeGreaterThan(2 * arriving - 0.001);
      },
    ),
    RUNS,
  );
});

test("D is held at no less than Ŝ(2 + 1/ε), ε = 0.2, and never shortened", () => {
  fc.assert(
    fc.property(fc.nat(7_200_000), arbitraryRates, arbitraryRates, (deadlineMs, student, talker) => {
      const held = effectiveDeadlineMs(deadlineMs, { student, talker });
      const least = ((student.swapMs + talker.swapMs) / 2) * 7;
      expect(held).toBe(Math.max(deadlineMs, least));
    }),
    RUNS,
  );
});

/** No job of the other model would come later than its class's D if it were swapped in now; unmeasured, a model is taken to be like the other. */
function nobodyLate({ now, resident, queues, rates, deadlinesMs }: PolicySnapshot): boolean {
  if (resident === null) return true;
  const [own, other] = [rates[resident], rates[OTHER[resident]]];
  const { oldest } = queues[OTHER[resident]];
  const swapMs = other.swapMs || own.swapMs;
  const comesMs = now + swapMs + (other.serviceMs || own.serviceMs);
  const held = (name: PriorityClass) => Math.max(deadlinesMs[name], ((swapMs + (own.swapMs || swapMs)) / 2) * 7);
  return PRIORITY_CLASSES.every((name) => oldest[name] === null || comesMs - oldest[name] < held(name));
}

test("ge is exhaustive while nobody is late, and only a swap away from work tells them apart", () => {
  let late = 0;
  const check = (snapshot: PolicySnapshot, decision: Decision) => {
    const exhaustive = POLICIES.exhaustive(snapshot);
    if (nobodyLate(snapshot)) return expect(decision).toEqual(exhaustive);
    late++;
    if (decision.action !== exhaustive.action) expect([decision.action, exhaustive.action]).toEqual(["swap", "stay"]);
  };
  const alone = arbitrarySnapshot.map((snapshot) => ({ ...snapshot, peers: { student: 0, talker: 0 } }));
  fc.assert(
    fc.property(alone, (snapshot) => void check(snapshot, POLICIES.ge(snapshot))),
    RUNS,
  );
  fc.assert(
    fc.property(arbitraryTraffic, (traffic) => eachDecision(POLICIES.ge, traffic, check)),
    { numRuns: 100 },
  );
  expect(late).toBeGreaterThan(0);
});

test("scaling all times by a factor changes no decision", () => {
  // A power of two, so that no rounding decides.
  fc.assert(
    fc.property(
      arbitrarySnapshot,
      fc.integer({ min: -10, max: 10 }),
      fc.constantFrom(...Object.values(POLICIES)),
      (snapshot, exponent, policy) => {
        const factor = 2 ** exponent;
        const perRole = <T>(value: (role: Role) => T) => ({ student: value("student"), talker: value("talker") });
        const perClass = <T>(value: (name: PriorityClass) => T) => ({
          interactive: value("interactive"),
          normal: value("normal"),
          batch: value("batch"),
        });
        const scaled: PolicySnapshot = {
          ...snapshot,
          now: snapshot.now * factor,
          rates: perRole((role) => {
            const { arrivalsPerMs, serviceMs, swapMs, slots } = snapshot.rates[role];
            return { arrivalsPerMs: arrivalsPerMs / factor, serviceMs: serviceMs * factor, swapMs: swapMs * factor, slots };
          }),
          queues: perRole((role) => {
            const { oldest } = snapshot.queues[role];
            return { ...snapshot.queues[role], oldest: perClass((name) => (oldest[name] === null ? null : oldest[name] * factor)) };
          }),
          deadlinesMs: perClass((name) => snapshot.deadlinesMs[name] * factor),
        };
        const [one, other] = [policy(snapshot), policy(scaled)];
        expect({ ...other, reason: "", askAgainMs: 0 }).toEqual({ ...one, reason: "", askAgainMs: 0 });
        for (const name of PRIORITY_CLASSES) expect(quantum(scaled, name)).toBe(quantum(snapshot, name));
      },
    ),
    RUNS,
  );
});

const patient = arbitrarySnapshot.map((snapshot) => ({ ...snapshot, peers: { student: 0, talker: 0 } }));
const FEW_PLANS = { numRuns: 60 };

test("least-wait keeps ge's bound: whatever is late swaps in as under ge", () => {
  let late = 0;
  const check = (snapshot: PolicySnapshot, decision: Decision) => {
    if (nobodyLate(snapshot)) return;
    const ge = POLICIES.ge(snapshot);
    if (ge.action !== "swap") return;
    late++;
    expect(decision).toMatchObject({ action: "swap", to: ge.to });
  };
  // Who is late is looked at before any plan, so there may be many.
  fc.assert(
    fc.property(patient, (snapshot) => {
      if (!nobodyLate(snapshot)) check(snapshot, POLICIES["least-wait"](snapshot));
    }),
    RUNS,
  );
  fc.assert(
    fc.property(arbitraryTraffic, (traffic) => eachDecision(POLICIES["least-wait"], traffic, check)),
    { numRuns: 20 },
  );
  expect(late).toBeGreaterThan(20);
});

test("least-wait never drains for less urgent jobs, nor swaps away from work without a place to fill", () => {
  fc.assert(
    fc.property(patient, (snapshot) => {
      const { resident, queues, running, rates } = snapshot;
      if (resident === null || !nobodyLate(snapshot)) return;
      const [own, other] = [queues[resident], queues[OTHER[resident]]];
      const decision = POLICIES["least-wait"](snapshot);
      const next = PRIORITY_CLASSES.find((name) => own.waiting[name] > 0);
      const asUrgent = PRIORITY_CLASSES.slice(0, PRIORITY_CLASSES.indexOf(next ?? "batch") + 1).some((name) => other.waiting[name] > 0);
      if (own.depth > 0 && (!asUrgent || (running > 0 && running >= rates[resident].slots))) expect(decision.action).toBe("stay");
    }),
    FEW_PLANS,
  );
});

test("least-wait holds on for fewer of the other's jobs only: with more of them waiting a swap stays a swap", () => {
  fc.assert(
    fc.property(patient, fc.integer({ min: 1, max: 30 }), fc.integer({ min: 1, max: 30 }), (given, few, more) => {
      if (given.resident === null) return;
      const at = (depth: number) => {
        const waiting: QueueSnapshot = {
          depth,
          waiting: { interactive: 0, normal: depth, batch: 0 },
          oldest: { interactive: null, normal: NOW, batch: null },
        };
        const queues = { ...given.queues, [given.resident!]: EMPTY_QUEUE, [OTHER[given.resident!]]: waiting };
        return POLICIES["least-wait"]({ ...given, running: 0, queues }).action;
      };
      if (at(few) === "swap") expect(at(few + more)).toBe("swap");
    }),
    FEW_PLANS,
  );
});
