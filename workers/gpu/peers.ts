import type { Redis } from "../../queues/connection.ts";
import type { WorkerStatus } from "../../queues/contracts.ts";
import { keys, type Role } from "../../queues/names.ts";
import type { PolicySnapshot } from "./policy.ts";

/** Long enough for a load to show in the heartbeat, short enough not to hold anyone up. */
const CLAIM_MS = 5000;

const CLAIM_SCRIPT = `
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
`;

/** How many workers of other GPUs have each model resident, or are loading it, and serve. */
export function peersOf(gpuId: string, workers: WorkerStatus[]): PolicySnapshot["peers"] {
  const others = workers.filter(
    (worker) => worker.gpuId !== gpuId && worker.phase !== "standby" && worker.phase !== "stopping" && !worker.drained,
  );
  const having = (role: Role) => others.filter((worker) => (worker.loadingModel ?? worker.residentModel) === role).length;
  return { student: having("student"), talker: having("talker") };
}

/** Heartbeats are a second old: of several GPUs that want to load the same model at the same moment, one may, and the others look again. */
export async function claimLoad(redis: Redis, gpuId: string, role: Role): Promise<boolean> {
  return (await redis.eval(CLAIM_SCRIPT, 1, keys.loadClaim(role), gpuId, CLAIM_MS)) === 1;
}
