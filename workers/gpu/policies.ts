import { ROLES, type Role } from "../../queues/names.ts";
import { exhaustive, fifo } from "./exhaustive.ts";
import { ge, maxWait, quantum } from "./ge.ts";
import { leastWait } from "./least-wait.ts";
import { assumed, type Decision, EMPTY_QUEUE, meanSwapMs, otherOf, type Policy, type PolicySnapshot, workMs } from "./policy.ts";

export const POLICIES = {
  "least-wait": besidePeers(leastWait),
  ge: besidePeers(ge),
  exhaustive: besidePeers(exhaustive),
  fifo: besidePeers(fifo),
  "max-wait": besidePeers(maxWait),
} as const satisfies Record<string, Policy>;

/**
 * Several GPUs on the same queues: work of a model that other workers have resident is theirs, unless they would need longer for it than
 * two swaps take; and of several workers with the same model one leaves it for the model that nobody has.
 */
function besidePeers(policy: Policy): Policy {
  return (snapshot) => {
    const { resident, peers, queues } = snapshot;
    if (peers.student + peers.talker === 0) return policy(snapshot);
    const left = ROLES.filter((role) => role !== resident && queues[role].depth > 0 && isPeersWork(snapshot, role));
    const own = { ...queues, ...Object.fromEntries(left.map((role) => [role, EMPTY_QUEUE])) };
    const decision = spread({ ...snapshot, queues: own }) ?? policy({ ...snapshot, queues: own });
    return left.length === 0
      ? decision
      : { ...decision, reason: `${decision.reason}; the ${left.join("'s and the ")}'s jobs are another GPU's` };
  };
}

function isPeersWork({ peers, rates: measured, queues }: PolicySnapshot, role: Role): boolean {
  const rates = assumed(measured);
  const { depth } = queues[role];
  // Before the first measurement: what their slots can take at once.
  if (rates[role].serviceMs === 0) return depth <= peers[role] * rates[role].slots;
  return peers[role] > 0 && workMs(rates[role], depth) / peers[role] <= 2 * meanSwapMs(rates);
}

function spread(snapshot: PolicySnapshot): Decision | null {
  const { resident, peers, queues, served } = snapshot;
  if (resident === null) return null;
  const other = otherOf(resident);
  if (peers[resident] === 0 || peers[other] > 0 || queues[other].depth === 0) return null;
  if (served < quantum(snapshot, "normal") && queues[resident].depth > 0) return null;
  return { action: "swap", to: other, reason: `other GPUs serve the ${resident} and none the ${other}, which has work` };
}
