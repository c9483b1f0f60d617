import type { Redis } from "./connection.ts";
import { keys, ROLES, type Role } from "./names.ts";

/**
 * What an operator wants of one GPU's worker. `drained` stays until it is resumed, through restarts; the others are done once and
 * then taken back by the worker. A hash in Redis and a broadcast: whoever missed the broadcast sees the hash within a second.
 */
export interface GpuControl {
  drained: boolean;
  /** Load this model next, whatever the policy says. */
  swapTo: Role | null;
  /** Unload the resident model once nothing runs. */
  release: boolean;
  /** Forget the answers to out-of-memory and close the circuits. */
  reset: boolean;
}

export type GpuCommand = { drained: boolean } | { swapTo: Role } | { release: true } | { reset: true };

export async function commandGpu(redis: Redis, gpuId: string, command: GpuCommand): Promise<void> {
  const [[field, value]] = Object.entries(command) as [[string, unknown]];
  if (value === false) await redis.hdel(keys.gpuControl(gpuId), field);
  else await redis.hset(keys.gpuControl(gpuId), field, String(value));
  await redis.publish(keys.gpuControlChannel, gpuId);
}

export async function readGpuControl(redis: Redis, gpuId: string): Promise<GpuControl> {
  const { drained, swapTo, release, reset } = await redis.hgetall(keys.gpuControl(gpuId));
  return {
    drained: drained === "true",
    swapTo: ROLES.find((role) => role === swapTo) ?? null,
    release: release === "true",
    reset: reset === "true",
  };
}

/** The worker has done it. */
export async function commandDone(redis: Redis, gpuId: string, command: "swapTo" | "release" | "reset"): Promise<void> {
  await redis.hdel(keys.gpuControl(gpuId), command);
}
