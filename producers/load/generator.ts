import { setTimeout as delay } from "node:timers/promises";
import type { Arrival } from "./arrivals.ts";
import type { LoadPlan } from "./load-options.ts";
import type { Phase } from "./record.ts";
import type { PlannedRequest } from "./request-plan.ts";
import { phaseAt, type Schedule } from "./schedule.ts";
import { nowMs } from "./target.ts";

/** A request whose time has come. */
export interface Dispatch {
  request: PlannedRequest;
  phase: Phase;
  step: number | null;
  offsetMs: number;
  scheduledAt: number;
}

export interface GeneratorOptions {
  plan: LoadPlan;
  schedule: Schedule;
  nextRequest: (replayed?: Partial<Pick<PlannedRequest, "kind" | "priorityClass">>) => PlannedRequest;
  /** Requests of this plan that have their record already. */
  isRecorded: (index: number) => boolean;
  /** Where in the plan a closed loop goes on; an open one goes on at the first request without a record. */
  fromMs: number;
  /** Sends it; resolves when it has ended, and never rejects unless the run can't go on. */
  dispatch: (dispatch: Dispatch) => Promise<void>;
  /** Aborted: nothing more is sent. */
  signal: AbortSignal;
}

/** The times of a session, by which its part of the steady window is known. */
export interface SessionTimes {
  /** Wall-clock time of the plan's beginning: when it would have begun without the pauses before. */
  baseAt: number;
  /** Where in the plan it began and stopped sending. */
  fromMs: number;
  toMs: number;
}

/** Time for the first request to be made ready. */
const LEAD_MS = 20;

/**
 * Sends a plan's requests: an open loop at the times of the schedule, whatever becomes of them; a closed one whenever another has
 * ended. `settled` resolves when all have ended.
 */
export class Generator {
  readonly #options: GeneratorOptions;
  readonly #running = new Set<Promise<void>>();
  /** Aborted by the first dispatch that can't go on: nothing more is sent then. */
  readonly #broken = new AbortController();
  readonly #signal: AbortSignal;
  #onSlotFree: (() => void) | undefined;
  peakInFlight = 0;

  constructor(options: GeneratorOptions) {
    this.#options = options;
    this.#signal = AbortSignal.any([options.signal, this.#broken.signal]);
  }

  get inFlight(): number {
    return this.#running.size;
  }

  /** `onBegin` is told when the clock starts, if there is anything to send. Resolves when everything is sent or the signal is aborted. */
  send(onBegin: (times: Omit<SessionTimes, "toMs">) => void): Promise<SessionTimes> {
    const { arrivals } = this.#options.schedule;
    return arrivals === null ? this.#closedLoop(onBegin) : this.#openLoop(arrivals(), onBegin);
  }

  /** Rejects with what stopped a dispatch. */
  async settled(): Promise<void> {
    await Promise.all(this.#running);
    if (this.#broken.signal.aborted) throw this.#broken.signal.reason;
  }

  async #openLoop(arrivals: Iterable<Arrival>, onBegin: (times: Omit<SessionTimes, "toMs">) => void) {
    const { plan, schedule, nextRequest, isRecorded } = this.#options;
    let times: Omit<SessionTimes, "toMs"> | undefined;
    for (const arrival of arrivals) {
      const request = nextRequest(arrival);
      if (isRecorded(request.index)) continue;
      if (times === undefined) {
        // A run that goes on skips the pause between its sessions.
        const fromMs = request.index === 0 ? 0 : arrival.offsetMs;
        times = { baseAt: nowMs() + LEAD_MS - fromMs, fromMs };
        onBegin(times);
      }
      const scheduledAt = times.baseAt + arrival.offsetMs;
      await this.#until(scheduledAt);
      while (this.#running.size >= plan.maxInFlight) await new Promise<void>((resolve) => (this.#onSlotFree = resolve));
      if (this.#signal.aborted) break;
      const { offsetMs, step } = arrival;
      this.#dispatch({ request, phase: phaseAt(offsetMs, schedule), step, offsetMs, scheduledAt });
    }
    if (times === undefined) return { baseAt: nowMs(), fromMs: 0, toMs: 0 };
    // The last gap belongs to the plan too.
    await this.#until(times.baseAt + schedule.endMs!);
    return { ...times, toMs: Math.min(nowMs() - times.baseAt, schedule.endMs!) };
  }

  async #closedLoop(onBegin: (times: Omit<SessionTimes, "toMs">) => void): Promise<SessionTimes> {
    const { plan, schedule, nextRequest, isRecorded, fromMs } = this.#options;
    if (plan.arrivals.pattern !== "closed") throw new TypeError("Expected a closed loop.");
    const baseAt = nowMs() - fromMs;
    onBegin({ baseAt, fromMs });
    let taken = 0;
    const next = (): PlannedRequest | undefined => {
      while (schedule.count === null || taken < schedule.count) {
        taken++;
        const request = nextRequest();
        if (!isRecorded(request.index)) return request;
      }
      return undefined;
    };
    const lane = async () => {
      while (!this.#signal.aborted) {
        const scheduledAt = nowMs();
        const offsetMs = scheduledAt - baseAt;
        if (offsetMs >= (schedule.endMs ?? Number.POSITIVE_INFINITY)) return;
        const request = next();
        if (request === undefined) return;
        await this.#dispatch({ request, phase: phaseAt(offsetMs, schedule), step: null, offsetMs, scheduledAt });
      }
    };
    const end = new AbortController();
    const lanes = Promise.all(Array.from({ length: plan.arrivals.concurrency }, lane));
    const ended = lanes.finally(() => end.abort());
    // What still runs at the end of the duration, or at an interruption, is for `settled`.
    await Promise.race([ended, this.#until(schedule.endMs === null ? Number.POSITIVE_INFINITY : baseAt + schedule.endMs, end.signal)]);
    return { baseAt, fromMs, toMs: Math.min(nowMs() - baseAt, schedule.endMs ?? Number.POSITIVE_INFINITY) };
  }

  /** Sleeps till then, or till nothing more is to be sent. */
  async #until(at: number, also?: AbortSignal): Promise<void> {
    const signal = also === undefined ? this.#signal : AbortSignal.any([this.#signal, also]);
    for (;;) {
      const waitMs = at - nowMs();
      if (waitMs <= 0 || signal.aborted) return;
      // A longer time overflows the timer.
      await delay(Math.min(waitMs, 2 ** 30), undefined, { signal }).catch(() => {});
    }
  }

  async #dispatch(dispatch: Dispatch): Promise<void> {
    const running = this.#options
      .dispatch(dispatch)
      .catch((error) => this.#broken.abort(error))
      .finally(() => {
        this.#running.delete(running);
        this.#onSlotFree?.();
      });
    this.#running.add(running);
    this.peakInFlight = Math.max(this.peakInFlight, this.#running.size);
    await running;
  }
}
