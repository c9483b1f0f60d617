import type { GpuSample } from "../../queues/gpu-samples.ts";
import type { PriorityClass, Role } from "../../queues/names.ts";
import type { StageJob } from "./manual-worker.ts";

const CANCELLED = /^(cancelled|deadline-exceeded): /;

/** `reason`: as BullMQ keeps it. A job that its client has given up is no failure. */
export function isGivenUp(reason: string): boolean {
  return CANCELLED.test(reason);
}

/** Counts what was begun and what ended between two samples. */
export class JobTally {
  #now = nothing();

  /** Only the first stage of a job, and only its first attempt, tells how long the job waited. */
  picked(role: Role, { data, attemptsStarted }: Pick<StageJob, "data" | "attemptsStarted">, at: number): void {
    if (attemptsStarted > 1 || (role === "talker" && data.kind === "explain")) return;
    const waits = this.#now.waits[data.priority];
    const waitMs = String(Number(Math.max(at - data.acceptedAt, 0).toPrecision(2)));
    waits[waitMs] = (waits[waitMs] ?? 0) + 1;
  }

  completed(role: Role): void {
    this.#now.ended[role].completed++;
  }

  failed(role: Role, reason: string): void {
    if (!isGivenUp(reason)) this.#now.ended[role].failed++;
  }

  /** Everything since the last call. */
  take(): Pick<GpuSample, "ended" | "waits"> {
    const taken = this.#now;
    this.#now = nothing();
    return taken;
  }
}

function nothing() {
  const waits: Record<PriorityClass, Record<string, number>> = { interactive: {}, normal: {}, batch: {} };
  const ended: GpuSample["ended"] = { student: { completed: 0, failed: 0 }, talker: { completed: 0, failed: 0 } };
  return { waits, ended };
}
