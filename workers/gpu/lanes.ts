import { ROLES, type Role } from "../../queues/names.ts";
import type { ProcessIdentity } from "../../queues/process-identity.ts";
import type { Dispatcher } from "./dispatcher.ts";
import type { ModelSlot } from "./model-slot.ts";

/**
 * One place for a model with the roles that take turns in it. Usually there is one lane with both roles. With a co-resident Talker,
 * which takes no VRAM, each role has a lane of its own and nothing is ever swapped.
 */
export interface Lane {
  roles: readonly Role[];
  slot: ModelSlot;
  /** Renewed whenever the worker comes to hold the GPU; null while it stands by. */
  dispatcher: Dispatcher | null;
  /** This lane has done what an operator's `release` asks. */
  released: boolean;
  /** Processes that hold memory. */
  modelServers: ProcessIdentity[];
}

export function rolesOfLanes(talkerCoresident: boolean): readonly (readonly Role[])[] {
  return talkerCoresident ? [["student"], ["talker"]] : [ROLES];
}

export function laneOf(lanes: readonly Lane[], role: Role): Lane {
  return lanes.find(({ roles }) => roles.includes(role))!;
}
