import { PRIORITY_CLASSES } from "../../queues/names.ts";
import { type Decision, otherOf, type PolicySnapshot, type QueueSnapshot } from "./policy.ts";

function oldestOf(queue: QueueSnapshot): number {
  return Math.min(...PRIORITY_CLASSES.map((name) => queue.oldest[name] ?? Number.POSITIVE_INFINITY));
}

/** Both queues' work is considered only when no model is resident: the model of the oldest job is loaded. */
export function firstLoad({ queues }: PolicySnapshot): Decision {
  const { student, talker } = queues;
  if (student.depth === 0 && talker.depth === 0) return { action: "idle", reason: "both queues are empty" };
  const studentFirst = student.depth > 0 && (talker.depth === 0 || oldestOf(student) <= oldestOf(talker));
  const to = studentFirst ? "student" : "talker";
  return { action: "swap", to, reason: `no model is resident and the oldest job is the ${to}'s` };
}

/** Serves the resident model until its queue is empty: the fewest swaps for a backlog, but the other queue may wait without a bound. */
export function exhaustive(snapshot: PolicySnapshot): Decision {
  const { resident, queues, running } = snapshot;
  if (resident === null) return firstLoad(snapshot);
  const other = otherOf(resident);
  if (queues[resident].depth > 0) return { action: "stay", reason: `the ${resident} is resident and has work` };
  if (queues[other].depth > 0) return { action: "swap", to: other, reason: `the ${resident}'s queue is empty and the ${other} has work` };
  return running > 0
    ? { action: "stay", reason: `the ${resident}'s jobs run, nothing waits` }
    : { action: "idle", reason: "both queues are empty" };
}

/** Strict arrival order over both queues: fair, and a swap at nearly every job of a mixed stream. */
export function fifo(snapshot: PolicySnapshot): Decision {
  const { resident, queues } = snapshot;
  if (resident === null) return firstLoad(snapshot);
  const other = otherOf(resident);
  const own = queues[resident].depth > 0 ? oldestOf(queues[resident]) : Number.POSITIVE_INFINITY;
  const others = queues[other].depth > 0 ? oldestOf(queues[other]) : Number.POSITIVE_INFINITY;
  return others < own ? { action: "swap", to: other, reason: `the oldest job is the ${other}'s` } : exhaustive(snapshot);
}
