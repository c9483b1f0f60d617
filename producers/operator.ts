import Table from "cli-table3";
import { type GpuView, gpuViewSchema, type QueueView } from "../queues/gpu-view.ts";
import { PRIORITY_CLASSES, ROLES, type Role } from "../queues/names.ts";
import { type RateLimit, rateLimitSchema } from "../queues/rate-limits.ts";
import type { ApiClient } from "./submit.ts";

/** What an operator asks of the GPUs over HTTP, and what it looks like in a terminal. */
export const GPU_COMMANDS = ["drain", "resume", "swap", "release", "reset"] as const;
export type OperatorCommand = (typeof GPU_COMMANDS)[number];

export async function gpuView(api: ApiClient): Promise<GpuView> {
  return gpuViewSchema.parse(await api.json("/gpu"));
}

/** Returns the ids of the GPUs that were told. `model` is what `swap` loads. */
export async function commandGpus(api: ApiClient, command: OperatorCommand, options: { gpuId?: string; model?: Role }): Promise<string[]> {
  const { gpuIds } = (await api.json(`/gpu/${command}`, { method: "POST", ...jsonOf(options) })) as { gpuIds: string[] };
  return gpuIds;
}

/** null lifts the limit. */
export async function limitQueue(api: ApiClient, role: Role, limit: RateLimit | null): Promise<void> {
  await api.json(`/queues/${role}/rate-limit`, limit === null ? { method: "DELETE" } : { method: "PUT", ...jsonOf(limit) });
}

const jsonOf = (body: object) => ({ headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

const UNITS_MS: Record<string, number> = { s: 1000, min: 60_000, h: 3_600_000 };

/** `10/s`, `100/min`, `5/h`, or `off`: null. undefined when it is none of these. */
export function parseRateLimit(text: string): RateLimit | null | undefined {
  if (text === "off") return null;
  const match = /^(\d{1,7})\/(s|min|h)$/.exec(text);
  return rateLimitSchema.safeParse({ max: Number(match?.[1]), durationMs: UNITS_MS[match?.[2] ?? ""] }).data;
}

const seconds = (ms: number | null) => (ms === null ? "–" : `${(ms / 1000).toFixed(1)} s`);

const PREPARATIONS = { preparing: "not on this machine yet, its jobs wait", failed: "can't be had, its jobs wait" };

export function gpuReport(view: GpuView): string {
  if (view.gpus.length === 0) return `No GPU is held by a worker.\n${queueReport(view.queues)}`;
  return view.gpus.map(oneGpu).join("\n") + queueReport(view.queues);
}

function oneGpu(gpu: GpuView["gpus"][number]): string {
  const lines = [
    `GPU ${gpu.gpuId}: ${gpu.residentModel ?? "no model"} resident${gpu.residentSince === null ? "" : ` for ${seconds(Math.max(Date.now() - gpu.residentSince, 0))}`}, ${gpu.phase}, ${gpu.running} running, ${gpu.swaps} swaps`,
    `  worker ${gpu.lease.pid}, lease ${gpu.lease.fence}, policy ${gpu.policy}, ${gpu.standbys.length} standing by`,
    `  model server ${gpu.server.state}${gpu.server.pid === null ? "" : `, process ${gpu.server.pid}`}${gpu.server.lastError === null ? "" : `; last error: ${gpu.server.lastError}`}`,
  ];
  if (gpu.waitsFor !== null) lines.push(`  waits: ${gpu.waitsFor}`);
  if (gpu.vram !== null)
    lines.push(`  VRAM ${(gpu.vram.usedBytes / 2 ** 30).toFixed(1)} of ${(gpu.vram.totalBytes / 2 ** 30).toFixed(1)} GiB`);
  for (const role of ROLES) {
    const { preparation, circuit, ladder, error, capacity } = gpu.models[role];
    if (preparation.state !== "ready") lines.push(`  ${role}: ${PREPARATIONS[preparation.state]}; ${preparation.reason}`);
    if (circuit.state !== "closed") lines.push(`  ${role}: circuit ${circuit.state}; ${error ?? "waiting for a job to prove it"}`);
    if (ladder.length > 0)
      lines.push(`  ${role}: runs with less (${JSON.stringify(capacity)}) after ${ladder.map(({ step }) => step).join(", ")}`);
  }
  if (gpu.lastDecision !== null) lines.push(`  last decision: ${gpu.lastDecision.action}, ${gpu.lastDecision.reason}`);
  return `${lines.join("\n")}\n`;
}

export function queueReport(queues: Record<Role, QueueView>): string {
  const table = new Table({
    head: ["queue", ...PRIORITY_CLASSES.map((name) => `${name} (would wait)`), "active", "rate limit"],
    style: { head: [], border: [] },
  });
  for (const role of ROLES) {
    const { waiting, estimatedWaitMs, active, rateLimit } = queues[role];
    table.push([
      role,
      ...PRIORITY_CLASSES.map((name) => `${waiting[name]} (${seconds(estimatedWaitMs[name])})`),
      active,
      rateLimit === null
        ? "off"
        : `${rateLimit.max} per ${rateLimit.durationMs < 1000 ? `${rateLimit.durationMs} ms` : seconds(rateLimit.durationMs)}`,
    ]);
  }
  return `${table.toString()}\n`;
}
