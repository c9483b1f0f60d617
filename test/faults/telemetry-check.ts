import { z } from "zod";
import { ROLES } from "../../queues/names.ts";

const recordSchema = z.object({ ts: z.number(), kind: z.string() });
const swapSchema = z.object({
  ts: z.number(),
  to: z.enum(ROLES).nullable(),
  stopMs: z.number(),
  startMs: z.number(),
  warmupMs: z.number(),
});
const jobSchema = z.object({
  jobId: z.string(),
  role: z.enum(ROLES),
  outcome: z.string(),
  pickedAt: z.number().nullable(),
  doneAt: z.number().nullable(),
});

/** Records are rounded to milliseconds. */
const TOLERANCE_MS = 5;

export interface TelemetryFindings {
  swaps: number;
  jobs: number;
  violations: string[];
}

/**
 * Reads the telemetry of one worker process, from its start to its end. By its swap records a model is resident from the end of
 * its load to the begin of the next one's; a completed job of the other model may not have run in that time.
 */
export function checkTelemetry(name: string, text: string): TelemetryFindings {
  const violations: string[] = [];
  const swaps: z.infer<typeof swapSchema>[] = [];
  const jobs: z.infer<typeof jobSchema>[] = [];
  const lines = text.split("\n");
  // A process killed while writing leaves a line without its end, which is no record.
  lines.pop();
  for (const [i, line] of lines.entries()) {
    try {
      const record = JSON.parse(line);
      const { kind } = recordSchema.parse(record);
      if (kind === "swap") swaps.push(swapSchema.parse(record));
      if (kind === "job") jobs.push(jobSchema.parse(record));
    } catch (error) {
      violations.push(`telemetry of ${name}, line ${i + 1} can't be read (${(error as Error).message.replaceAll(/\s+/g, " ")}): ${line}`);
    }
  }
  for (const [i, swap] of swaps.entries()) {
    const next = swaps[i + 1];
    const from = swap.ts + TOLERANCE_MS;
    const to = next === undefined ? Number.POSITIVE_INFINITY : next.ts - next.stopMs - next.startMs - next.warmupMs - TOLERANCE_MS;
    for (const job of jobs) {
      if (job.outcome !== "completed" || job.role === swap.to || job.pickedAt === null || job.doneAt === null) continue;
      if (job.pickedAt < to && job.doneAt > from) {
        violations.push(
          `telemetry of ${name}: ${job.jobId} ran on the ${job.role} from ${job.pickedAt} to ${job.doneAt}, while the ${swap.to} was resident (${swap.ts} to ${Math.round(to)})`,
        );
      }
    }
  }
  return { swaps: swaps.length, jobs: jobs.length, violations };
}
