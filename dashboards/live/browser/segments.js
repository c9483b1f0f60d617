/** @import { Role } from "../../../queues/names.ts" */
/** @import { ServerState } from "../../../queues/contracts.ts" */
/** @import { KeptSample } from "../../../queues/gpu-samples.ts" */
/** @import { Happening } from "./history.js" */

/** @typedef {{ ts: number, role: Role | null, state: ServerState }} Point */
/** @typedef {{ role: Role, state: Exclude<ServerState, "stopped">, from: number, to: number }} Segment */

/** Samples come every second. After so long without one nobody knows what the server did. */
const GAP_MS = 4000;

/**
 * What one GPU's model server did, as bars. Events tell when a state began, to the millisecond; samples, once a second, that it lasted.
 * @param {KeptSample[]} samples one GPU's, oldest first
 * @param {Happening[]} happenings one GPU's, oldest first
 * @returns {Segment[]} of both models, oldest first
 */
export function segmentsOf(samples, happenings) {
  const beside = samples.find(({ coresidentModel }) => coresidentModel !== null)?.coresidentModel ?? null;
  const events = happenings.flatMap(({ kind, ts, role, state }) => (kind === "server" ? [{ ts, role: role ?? null, state }] : []));
  const seen = samples.map(({ ts, serverModel, serverState }) => ({ ts, role: serverModel, state: serverState }));
  const main = segmentsOfLane([...seen, ...events.filter(({ role }) => beside === null || (role !== beside && role !== null))]);
  if (beside === null) return main;
  const up = samples.map(({ ts, coresidentModel }) => ({
    ts,
    role: beside,
    state: /** @type {ServerState} */ (coresidentModel === null ? "stopped" : "ready"),
  }));
  return [...main, ...segmentsOfLane([...up, ...events.filter(({ role }) => role === beside)])];
}

/**
 * @param {Point[]} points
 * @returns {Segment[]}
 */
function segmentsOfLane(points) {
  /** @type {Segment[]} */
  const segments = [];
  /** @type {Segment | null} */
  let current = null;
  /** @type {Role | null} */
  let lastRole = null;
  let lastTs = Number.NEGATIVE_INFINITY;
  for (const { ts, role, state } of [...points].sort((a, b) => a.ts - b.ts)) {
    if (ts - lastTs > GAP_MS) current = null;
    // A server that stops belongs to nobody any more; the bar is still its model's.
    lastRole = role ?? lastRole;
    if (current !== null) current.to = ts;
    if (state === "stopped" || lastRole === null) current = null;
    else if (current === null || current.role !== lastRole || current.state !== state) {
      current = { role: lastRole, state, from: ts, to: ts };
      segments.push(current);
    }
    lastTs = ts;
  }
  return segments;
}

/**
 * The share of a time that a GPU spent on swaps: everything between a model's last job and the next one's first, drains included.
 * @param {Segment[]} segments
 * @param {number} from
 * @param {number} to
 * @returns {number} 0 to 1
 */
export function swapShare(segments, from, to) {
  const swapping = segments.filter(({ state }) => state !== "ready");
  const ms = swapping.reduce((sum, each) => sum + Math.max(Math.min(each.to, to) - Math.max(each.from, from), 0), 0);
  return to > from ? ms / (to - from) : 0;
}
