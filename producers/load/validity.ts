import type { LoadRecord } from "./record.ts";
import { LatencyHistogram, nearestRank } from "./statistics.ts";
import type { Validity } from "./summary.ts";

/**
 * Whether the generator itself was the limit. Its lateness may be what the plan tolerates, or 5 % of the p99 that was measured, if that is
 * more; and it has to have sent 95 % of what was due in the steady window within that window.
 */
const TOLERATED_SHARE = 0.05;
const MIN_ACHIEVED = 0.95;
/** A rate of fewer requests than these is rather a matter of where the window ends. */
const MIN_REQUESTS_FOR_RATE = 20;

export interface ValidityInput {
  /** The steady requests. */
  records: readonly LoadRecord[];
  /** null: a closed loop. */
  rates: { requestedPerS: number; achievedPerS: number } | null;
  eventLoopDelayMs: { p50: number; p99: number; max: number };
  peakInFlight: number;
  maxInFlight: number;
  toleratedDelayMs: number;
}

export function validityOf({ records, rates, eventLoopDelayMs, peakInFlight, ...plan }: ValidityInput): Validity {
  const delays = records.map(({ dispatchDelayMs }) => dispatchDelayMs).sort((a, b) => a - b);
  const e2e = records.filter(({ status }) => status === "completed").map(({ e2eMs }) => e2eMs);
  const e2eP99Ms =
    e2e.length === 0
      ? 0
      : nearestRank(
          e2e.sort((a, b) => a - b),
          0.99,
        );
  const toleratedMs = Math.max(plan.toleratedDelayMs, TOLERATED_SHARE * e2eP99Ms);
  const dispatchDelayMs = {
    p50: delays.length === 0 ? 0 : nearestRank(delays, 0.5),
    p99: delays.length === 0 ? 0 : nearestRank(delays, 0.99),
    max: delays.at(-1) ?? 0,
  };
  const reasons: string[] = [];
  if (records.length === 0) reasons.push("no request was sent in the steady window: raise the duration or lower warm-up and cool-down");
  const tolerated = `at most ${toleratedMs.toFixed(0)} ms is tolerated`;
  if (dispatchDelayMs.p99 > toleratedMs)
    reasons.push(`the generator sent late: dispatch delay p99 ${dispatchDelayMs.p99.toFixed(0)} ms, ${tolerated}`);
  if (eventLoopDelayMs.p99 > toleratedMs)
    reasons.push(`the generator's event loop was blocked: delay p99 ${eventLoopDelayMs.p99.toFixed(0)} ms, ${tolerated}`);
  if (rates !== null && records.length >= MIN_REQUESTS_FOR_RATE && rates.achievedPerS < MIN_ACHIEVED * rates.requestedPerS)
    reasons.push(`${rates.achievedPerS.toFixed(2)} requests/s were sent of ${rates.requestedPerS.toFixed(2)} requested`);
  if (rates !== null && peakInFlight >= plan.maxInFlight)
    reasons.push(`${plan.maxInFlight} requests were in flight, the most that the generator allows, so that others had to wait to be sent`);
  return {
    valid: reasons.length === 0,
    reasons,
    dispatchDelayMs,
    requestedRatePerS: rates?.requestedPerS ?? null,
    achievedRatePerS: rates?.achievedPerS ?? null,
    eventLoopDelayMs,
    maxInFlight: peakInFlight,
  };
}

const EVERY_MS = 10;

/** How late a timer of this process fires: what every time stamp of the generator may be off by. */
export class EventLoopProbe {
  readonly #histogram = new LatencyHistogram();
  readonly #timer: NodeJS.Timeout;
  #dueAt = performance.now() + EVERY_MS;

  constructor() {
    this.#timer = setInterval(() => {
      const now = performance.now();
      const lateMs = now - this.#dueAt;
      this.#histogram.record(lateMs);
      // A tick that was left out would have been late too: every one that was due meanwhile counts.
      for (let missedMs = lateMs - EVERY_MS; missedMs > 0; missedMs -= EVERY_MS) this.#histogram.record(missedMs);
      this.#dueAt = now + EVERY_MS;
    }, EVERY_MS);
    this.#timer.unref();
  }

  stop(): { p50: number; p99: number; max: number } {
    clearInterval(this.#timer);
    const { count } = this.#histogram;
    const at = (percentile: number) => (count === 0 ? 0 : this.#histogram.percentileMs(percentile));
    return { p50: at(50), p99: at(99), max: at(100) };
  }
}
