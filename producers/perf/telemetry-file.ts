import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { z } from "zod";
import { ROLES } from "../../queues/names.ts";

const number = z.number().nullish();

const sampleSchema = z.object({
  ts: z.number(),
  residentModel: z.string().nullish(),
  depths: z.record(z.string(), z.number().nullable()).default({}),
  running: number,
  rssBytes: number,
  modelServerRssBytes: number,
  vramUsedBytes: number,
  vramTotalBytes: number,
  gpuPercent: number,
  cpuPercent: number,
  tokensPerSecond: number,
  kvCacheUsage: number,
  draftTokensTotal: number,
  draftAcceptedTokensTotal: number,
});
export type TelemetrySample = z.infer<typeof sampleSchema>;

const swapSchema = z.object({
  ts: z.number(),
  from: z.enum(ROLES).nullable(),
  to: z.enum(ROLES),
  reason: z.string(),
  drainMs: z.number(),
  totalMs: z.number(),
});
export type TelemetrySwap = z.infer<typeof swapSchema>;

export interface TelemetryRecords {
  samples: TelemetrySample[];
  swaps: TelemetrySwap[];
  /** Out-of-memory answers. */
  ooms: { ts: number }[];
  guardrails: { ts: number; [field: string]: unknown }[];
  /** Stages that ended. */
  jobs: number;
}

const anySchema = z.looseObject({ ts: z.number(), kind: z.string() });

/** What a worker recorded within a span of time (epoch milliseconds); rotated files are not read. A line that is no record is passed over. */
export async function readTelemetry(path: string, fromMs: number, toMs: number): Promise<TelemetryRecords> {
  const found: TelemetryRecords = { samples: [], swaps: [], ooms: [], guardrails: [], jobs: 0 };
  for await (const line of createInterface({ input: createReadStream(path) })) {
    const record = parsed(line);
    if (record === undefined || record.ts < fromMs || record.ts > toMs) continue;
    if (record.kind === "sample") {
      const sample = sampleSchema.safeParse(record);
      if (sample.success) found.samples.push(sample.data);
    } else if (record.kind === "swap") {
      const swap = swapSchema.safeParse(record);
      if (swap.success) found.swaps.push(swap.data);
    } else if (record.kind === "oom") found.ooms.push(record);
    else if (record.kind === "guardrail") found.guardrails.push(record);
    else if (record.kind === "job") found.jobs++;
  }
  return found;
}

function parsed(line: string): z.infer<typeof anySchema> | undefined {
  try {
    return anySchema.safeParse(JSON.parse(line)).data;
  } catch {
    return undefined;
  }
}
