import type { LoadRecord, Phase } from "./record.ts";
import { LatencyHistogram } from "./statistics.ts";

const RATE_WINDOW_MS = 5000;

/** Where a run stands, a few times a second. */
export interface LoadTick {
  elapsedS: number;
  /** null: unknown (a number of requests in a closed loop). */
  totalS: number | null;
  /** null: no number of requests ends the run. */
  planned: number | null;
  phase: Phase;
  sent: number;
  completed: number;
  /** Refused ones included. */
  failed: number;
  inFlight: number;
  /** Requests sent and ended a second, over the last five. */
  sentPerS: number;
  endedPerS: number;
  /** E2E of everything completed so far; null before the first. */
  p50Ms: number | null;
  p95Ms: number | null;
  /** null: not our API, or nothing resident. */
  residentModel: string | null;
  /** Since the beginning of the session; null: not our API. */
  swaps: number | null;
}

/** Counts a run as it goes, in constant memory. */
export class Progress {
  readonly e2e = new LatencyHistogram();
  readonly #sentAt: number[] = [];
  readonly #endedAt: number[] = [];
  sent = 0;
  completed = 0;
  failed = 0;

  begun(at: number): void {
    this.sent++;
    this.#sentAt.push(at);
  }

  ended({ status, e2eMs, finishedAt }: LoadRecord): void {
    this.#endedAt.push(finishedAt);
    if (status === "completed") {
      this.completed++;
      this.e2e.record(e2eMs);
    } else this.failed++;
  }

  rates(now: number, elapsedMs: number): { sentPerS: number; endedPerS: number } {
    const windowMs = Math.max(Math.min(RATE_WINDOW_MS, elapsedMs), 1);
    const perS = (times: number[]) => {
      // Times come almost in order: what is old stands in front.
      while (times.length > 0 && times[0]! < now - windowMs) times.shift();
      return (1000 * times.length) / windowMs;
    };
    return { sentPerS: perS(this.#sentAt), endedPerS: perS(this.#endedAt) };
  }
}
