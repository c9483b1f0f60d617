import type { Redis } from "./connection.ts";
import { keys } from "./names.ts";

/** What happens on the GPUs, as a Redis stream, so that a late or returning listener gets what it missed. */
export const GPU_EVENT_KINDS = ["decision", "server", "swap", "oom", "guardrail", "control"] as const;
export type GpuEventKind = (typeof GPU_EVENT_KINDS)[number];

export interface GpuEvent {
  /** The stream's entry id: a reader resumes after it. */
  id: string;
  kind: GpuEventKind;
  /** One JSON object with at least `ts` and `gpuId`. */
  data: string;
}

const KEPT_EVENTS = 1000;
const BATCH = 200;

export async function addGpuEvent(redis: Redis, kind: GpuEventKind, record: object): Promise<void> {
  await redis.xadd(keys.gpuEvents, "MAXLEN", "~", KEPT_EVENTS, "*", "kind", kind, "data", JSON.stringify(record));
}

/** The newest `count` events, oldest first. */
export async function latestGpuEvents(redis: Redis, count: number): Promise<GpuEvent[]> {
  return (await redis.xrevrange(keys.gpuEvents, "+", "-", "COUNT", count)).reverse().map(toEvent);
}

/** What is kept since `sinceMs` (epoch milliseconds), oldest first. */
export async function gpuEventsSince(redis: Redis, sinceMs: number): Promise<GpuEvent[]> {
  return (await redis.xrange(keys.gpuEvents, sinceMs, "+")).map(toEvent);
}

/** The events after `afterId`; waits for one for up to `blockMs`. `blocking` is a connection of its own. */
export async function nextGpuEvents(blocking: Redis, afterId: string, blockMs: number): Promise<GpuEvent[]> {
  const streams = await blocking.xread("COUNT", BATCH, "BLOCK", blockMs, "STREAMS", keys.gpuEvents, afterId);
  return streams?.[0]?.[1].map(toEvent) ?? [];
}

function toEvent([id, fields]: [string, string[]]): GpuEvent {
  return { id, kind: fields[1] as GpuEventKind, data: fields[3] ?? "{}" };
}
