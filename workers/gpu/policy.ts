import type { PriorityClass, Role } from "../../queues/names.ts";

/** What could start now of one model's queue: waiting, prioritised and due jobs; none while the queue is paused or the model can't be loaded. */
export interface QueueSnapshot {
  depth: number;
  /** Acceptance of the job that would be picked next in each class, epoch milliseconds; null when the class is empty. */
  oldest: Record<PriorityClass, number | null>;
}

export interface PolicySnapshot {
  now: number;
  resident: Role | null;
  /** Requests on the resident model. */
  running: number;
  queues: Record<Role, QueueSnapshot>;
}

/**
 * `stay`: pick the resident model's next job if there is one, else let the running ones go on.
 * `swap`: pick nothing more, let the running ones end, then load `to`. Asked again at every job boundary, so it may be withdrawn.
 * `idle`: nothing to do.
 */
export type Decision = { action: "stay" | "idle"; reason: string } | { action: "swap"; to: Role; reason: string };

/** A pure function of the snapshot. */
export type Policy = (snapshot: PolicySnapshot) => Decision;

export const POLICIES = { exhaustive, fifo } as const satisfies Record<string, Policy>;

const otherOf = (role: Role): Role => (role === "student" ? "talker" : "student");

function oldestOf(queue: QueueSnapshot): number {
  return Math.min(...Object.values(queue.oldest).map((arrival) => arrival ?? Number.POSITIVE_INFINITY));
}

/** Both queues' work is considered only when no model is resident: the model of the oldest job is loaded. */
function firstLoad({ queues }: PolicySnapshot): Decision {
  const { student, talker } = queues;
  if (student.depth === 0 && talker.depth === 0) return { action: "idle", reason: "both queues are empty" };
  const studentFirst = student.depth > 0 && (talker.depth === 0 || oldestOf(student) <= oldestOf(talker));
  const to = studentFirst ? "student" : "talker";
  return { action: "swap", to, reason: `no model is resident and the oldest job is the ${to}'s` };
}

/** Serves the resident model until its queue is empty: the fewest swaps for a backlog, but the other queue may wait without a bound. */
function exhaustive(snapshot: PolicySnapshot): Decision {
  const { resident, queues, running } = snapshot;
  if (resident === null) return firstLoad(snapshot);
  const other = otherOf(resident);
  if (queues[resident].depth > 0)
    return { action: "stay", reason: `the ${resident} is resident and has ${queues[resident].depth} waiting` };
  if (queues[other].depth > 0) {
    return { action: "swap", to: other, reason: `the ${resident}'s queue is empty and the ${other} has ${queues[other].depth} waiting` };
  }
  return running > 0
    ? { action: "stay", reason: `${running} running on the ${resident}, nothing waits` }
    : { action: "idle", reason: "both queues are empty" };
}

/** Strict arrival order over both queues: fair, and a swap at nearly every job of a mixed stream. */
function fifo(snapshot: PolicySnapshot): Decision {
  const { resident, queues, running } = snapshot;
  if (resident === null) return firstLoad(snapshot);
  const other = otherOf(resident);
  const own = queues[resident].depth > 0 ? oldestOf(queues[resident]) : Number.POSITIVE_INFINITY;
  const others = queues[other].depth > 0 ? oldestOf(queues[other]) : Number.POSITIVE_INFINITY;
  if (others < own) return { action: "swap", to: other, reason: `the oldest job is the ${other}'s` };
  if (own < Number.POSITIVE_INFINITY) return { action: "stay", reason: `the oldest job is the ${resident}'s` };
  return running > 0
    ? { action: "stay", reason: `${running} running on the ${resident}, nothing waits` }
    : { action: "idle", reason: "both queues are empty" };
}
