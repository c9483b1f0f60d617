import type { Logger } from "pino";
import { ENDING_PRIORITY, ROLES, type Role } from "../../queues/names.ts";
import { HandBack } from "../solve/stage.ts";
import type { Backlog, QueueBacklog } from "./backlog.ts";
import type { ManualWorker, StageJob } from "./manual-worker.ts";
import type { ModelSlot } from "./model-slot.ts";
import type { Decision, Policy, PolicySnapshot, QueueSnapshot } from "./policy.ts";
import type { TrafficMeter } from "./traffic-meter.ts";

/**
 * Takes jobs of the resident model, up to `maxNumSeqs` at once, and swaps when the policy says so and nothing runs.
 *
 *   idle ──work──► loading ──ready──► serving ──swap decided──► draining ──nothing runs──► loading (the other)
 *    ▲                │                  │                          │
 *    │                └─load failed──► the model is blocked for a while; its jobs wait, the other's go on
 *    └──────────────────both queues empty┘      stop(): stopping ──nothing runs──► stopped, slot empty
 *
 * One loop, one decision at a time. It sleeps until a job arrives, a running one ends, or a timer is due. Invariants: a job is
 * taken only while its model is resident and the lease is certain; the slot is unloaded only when nothing runs.
 */

const POLL_MS = 1000;
const LOAD_BACKOFF_MS = 1000;
const LOAD_BACKOFF_CAP_MS = 60_000;
const EMPTY_QUEUE: QueueSnapshot = { depth: 0, oldest: { interactive: null, normal: null, batch: null } };

export type Phase = "idle" | "serving" | "draining" | "loading" | "stopping";

export interface SwapRecord {
  from: Role | null;
  to: Role;
  reason: string;
  drainMs: number;
  stopMs: number;
  startMs: number;
  warmupMs: number;
}

export interface DispatcherOptions {
  workers: Record<Role, ManualWorker>;
  slot: ModelSlot;
  policy: Policy;
  deadlinesMs: PolicySnapshot["deadlinesMs"];
  /** Told of every acceptance, job and swap. */
  meter: TrafficMeter;
  maxNumSeqs: Record<Role, number>;
  readBacklog: (now: number) => Promise<Backlog>;
  /** False while the lease is not certain: nothing may be taken or loaded. */
  mayTake: () => boolean;
  /** Brings jobs whose deadline has passed to the front, to be ended. */
  expireJobs: (now: number) => Promise<void>;
  onSwap: (record: SwapRecord) => void;
  /** Called when a model could not be loaded (see `blockedReason`). */
  onBlocked: () => void;
  log: Logger;
}

interface Block {
  error: string;
  failures: number;
  until: number;
}

export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #running = new Map<string, Promise<void>>();
  readonly #blocked: Partial<Record<Role, Block>> = {};
  #phase: Phase = "idle";
  #loop: Promise<void> | undefined;
  #stopping = false;
  #wake: () => void = () => {};
  #hurry: () => void = () => {};
  #woken = false;
  #drainStartedAt: number | null = null;
  #lastDecision: { action: string; reason: string; at: number } | null = null;
  #backlog: Backlog | null = null;
  /** Jobs picked since the resident model was loaded. */
  #served = 0;
  /** Jobs taken of each queue since the last look at it. */
  readonly #taken: Record<Role, number> = { student: 0, talker: 0 };

  constructor(options: DispatcherOptions) {
    this.#options = options;
  }

  get phase(): Phase {
    return this.#phase;
  }

  get running(): number {
    return this.#running.size;
  }

  get lastDecision() {
    return this.#lastDecision;
  }

  get backlog(): Backlog | null {
    return this.#backlog;
  }

  /** Why a model can't be loaded at the moment; null when it can. */
  blockedReason(role: Role): string | null {
    return this.#blocked[role]?.error ?? null;
  }

  /** Something changed outside: look again. */
  wake(): void {
    this.#woken = true;
    this.#wake();
  }

  /** Runs until `stop()`; rejects only on a programming error. Trouble with Redis is logged and tried again. */
  run(): Promise<void> {
    this.#loop = this.#dispatch();
    return this.#loop;
  }

  async #dispatch(): Promise<void> {
    while (!this.#stopping) {
      try {
        const again = await this.#step();
        if (!again && !this.#stopping) await this.#sleep();
      } catch (error) {
        this.#options.log.error({ err: error }, "dispatching failed, trying again");
        await this.#sleep();
      }
    }
  }

  /**
   * Takes nothing more, lets the running jobs end within `graceMs` (or until `hurry`), hands the rest back to their queue, and
   * empties the slot; a model that is just loading is given up.
   */
  async stop(graceMs: number): Promise<void> {
    const { workers, slot } = this.#options;
    this.#stopping = true;
    this.#phase = "stopping";
    this.#wake();
    const enough = new Promise<void>((resolve) => {
      this.#hurry = resolve;
    });
    const timer = setTimeout(this.#hurry, graceMs);
    slot.abandonLoad();
    await this.#loop;
    const ended = Promise.allSettled(this.#running.values());
    await Promise.race([ended, enough]);
    clearTimeout(timer);
    for (const worker of Object.values(workers)) worker.cancelAllJobs(new HandBack("the worker stops") as unknown as string);
    await ended;
    await slot.unload(graceMs === 0 ? 0 : undefined);
  }

  /** Ends the grace of a `stop` under way. */
  hurry(): void {
    this.#hurry();
  }

  /** One decision. Returns whether to decide again at once. */
  async #step(): Promise<boolean> {
    const { slot, policy, log } = this.#options;
    this.#woken = false;
    if (!this.#options.mayTake()) return false;
    const now = Date.now();
    await this.#options.expireJobs(now);
    const backlog = await this.#options.readBacklog(now);
    this.#countArrivals(backlog, now);
    await this.#endJobs(backlog);

    const resident = slot.resident?.role ?? null;
    const decision = policy({
      now,
      resident,
      running: this.#running.size,
      served: this.#served,
      rates: this.#options.meter.rates(now),
      deadlinesMs: this.#options.deadlinesMs,
      queues: { student: this.#workOf("student", backlog, now), talker: this.#workOf("talker", backlog, now) },
    });
    this.#remember(decision, now);
    if (decision.action === "swap") {
      this.#drainStartedAt ??= performance.now();
      if (this.#running.size > 0) {
        this.#phase = "draining";
        return false;
      }
      await this.#swap(resident, decision.to, decision.reason);
      return true;
    }
    this.#drainStartedAt = null;
    this.#phase = decision.action === "idle" ? "idle" : "serving";
    if (decision.action === "idle" || resident === null) return false;
    if (this.#running.size >= this.#options.maxNumSeqs[resident] || backlog[resident].depth === 0) return false;
    const job = await this.#take(resident);
    if (job === undefined) return false;
    if (this.#stopping) {
      await job.moveToWait(job.token);
      return false;
    }
    // The server may have died while the job was being taken: the processor then fails it as retryable.
    this.#served++;
    this.#serve(resident, job);
    log.debug({ jobId: job.id, role: resident }, "picked");
    return true;
  }

  async #take(role: Role): Promise<StageJob | undefined> {
    const job = await this.#options.workers[role].takeNext();
    if (job !== undefined) this.#taken[role]++;
    return job;
  }

  /** What came since the last look: the depth's change and what was taken meanwhile. */
  #countArrivals(backlog: Backlog, now: number): void {
    for (const role of ROLES) {
      const arrived = backlog[role].depth - (this.#backlog?.[role].depth ?? 0) + this.#taken[role];
      if (arrived > 0) this.#options.meter.arrived(role, arrived, now);
      this.#taken[role] = 0;
    }
    this.#backlog = backlog;
  }

  #workOf(role: Role, backlog: Backlog, now: number): QueueSnapshot {
    const block = this.#blocked[role];
    if (block !== undefined && block.until > now) return EMPTY_QUEUE;
    const { depth, ending, returned, oldest }: QueueBacklog = backlog[role];
    return depth === 0 ? EMPTY_QUEUE : { depth: returned > 0 ? depth : depth - ending, oldest };
  }

  #remember(decision: Decision, at: number): void {
    if (this.#lastDecision?.reason === decision.reason && this.#lastDecision.action === decision.action) return;
    this.#lastDecision = { action: decision.action, reason: decision.reason, at };
  }

  /** Ends the jobs that need no model, whichever is resident. They stand first, unless returned jobs stand before them: those put off. */
  async #endJobs(backlog: Backlog): Promise<void> {
    for (const role of ROLES) {
      if (backlog[role].returned > 0) continue;
      for (let left = backlog[role].ending; left > 0; left--) {
        const job = await this.#take(role);
        if (job === undefined) break;
        if (job.priority !== ENDING_PRIORITY && job.deferredFailure === undefined) {
          // A job came back meanwhile and stood before them: it waits for its turn like any other.
          await job.moveToWait(job.token);
          break;
        }
        await this.#options.workers[role].finish(job);
      }
    }
  }

  #serve(role: Role, job: StageJob): void {
    const startedAt = performance.now();
    const served = this.#options.workers[role]
      .finish(job)
      .catch((error) => this.#options.log.error({ err: error, jobId: job.id }, "the outcome could not be recorded; the job runs again"))
      .finally(() => {
        this.#running.delete(job.token!);
        this.#options.meter.served(role, performance.now() - startedAt);
        this.wake();
      });
    this.#running.set(job.token!, served);
  }

  async #swap(from: Role | null, to: Role, reason: string): Promise<void> {
    const { slot, log } = this.#options;
    this.#phase = "loading";
    const drainMs = performance.now() - (this.#drainStartedAt ?? performance.now());
    try {
      const stopMs = await slot.unload();
      if (this.#stopping) return;
      const { startMs, warmupMs } = await slot.load(to);
      delete this.#blocked[to];
      this.#served = 0;
      this.#options.meter.swapped(to, drainMs + stopMs + startMs + warmupMs);
      this.#options.onSwap({ from, to, reason, drainMs, stopMs, startMs, warmupMs });
    } catch (error) {
      if (this.#stopping) return;
      const failures = (this.#blocked[to]?.failures ?? 0) + 1;
      const waitMs = Math.min(LOAD_BACKOFF_MS * 2 ** (failures - 1), LOAD_BACKOFF_CAP_MS);
      this.#blocked[to] = { error: (error as Error).message, failures, until: Date.now() + waitMs };
      log.error({ err: error, role: to, retryInMs: waitMs }, "the model can't be loaded; its jobs wait");
      this.#options.onBlocked();
    } finally {
      this.#drainStartedAt = null;
    }
  }

  async #sleep(): Promise<void> {
    if (this.#woken) return;
    const now = Date.now();
    const dueInMs = ROLES.map((role) => (this.#backlog?.[role].nextDueAt ?? Number.POSITIVE_INFINITY) - now).filter((ms) => ms > 0);
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      timer = setTimeout(resolve, Math.min(POLL_MS, ...dueInMs));
    });
    clearTimeout(timer);
    this.#wake = () => {};
  }
}
