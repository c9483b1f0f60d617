import type { Logger } from "pino";
import { type Backlog, type QueueBacklog, standingIn } from "../../queues/backlog.ts";
import { ALONE_AFTER_CRASHES } from "../../queues/contracts.ts";
import type { GpuControl } from "../../queues/gpu-control.ts";
import { ENDING_PRIORITY, NEXT_PRIORITY, PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";
import { HandBack } from "../solve/stage.ts";
import { AgeingTurn } from "./ageing.ts";
import type { Guardrails } from "./guardrails.ts";
import type { ManualWorker, StageJob } from "./manual-worker.ts";
import type { ModelSlot } from "./model-slot.ts";
import { type Decision, EMPTY_QUEUE, type Policy, type PolicySnapshot, type QueueSnapshot } from "./policy.ts";
import type { Preparations } from "./preparations.ts";
import type { TrafficMeter } from "./traffic-meter.ts";

/**
 * Takes jobs of the resident model, up to its sequences at once, and swaps when the policy says so and nothing runs.
 *
 *   idle ──work──► loading ──ready──► serving ──swap decided──► draining ──nothing runs──► loading (the other)
 *    ▲  │             │                  │                          │
 *    │  │             └─load failed──► the guardrails say what now: once more with less, or its jobs wait and the other's go on
 *    │  └──idle for long, or released──► slot empty
 *    └──────────────────both queues empty┘      stop(): stopping ──nothing runs──► stopped, slot empty
 *
 * A queue whose model is not prepared counts as empty, unless that model is resident.
 *
 * One loop, one decision at a time. It sleeps until a job arrives, a running one ends, an operator asks, or a timer is due.
 * Invariants: a job is taken only while its model is resident and the lease is certain; the slot is unloaded only when nothing runs, and for
 * another model only once that is prepared, so that nothing but its start lies between the two; a job that is suspected of killing its server runs alone.
 */

const POLL_MS = 1000;

export type Phase = "idle" | "serving" | "draining" | "loading" | "stopping";

/** Milliseconds. `overheadMs` is what the worker itself adds: everything between the last job's end and ready but the engine's own stop, start and warm-up. */
export interface SwapRecord {
  from: Role | null;
  to: Role;
  reason: string;
  drainMs: number;
  stopMs: number;
  startMs: number;
  warmupMs: number;
  overheadMs: number;
  totalMs: number;
}

export interface DispatcherOptions {
  /** The roles that take turns in this slot; the queues of others are none of its business. */
  roles: readonly Role[];
  workers: Record<Role, ManualWorker>;
  slot: ModelSlot;
  guardrails: Guardrails;
  preparations: Pick<Preparations, "isReady" | "status" | "confirm" | "wanted" | "retry">;
  policy: Policy;
  deadlinesMs: PolicySnapshot["deadlinesMs"];
  /** Told of every acceptance, job and swap. */
  meter: TrafficMeter;
  /** Without work for so long the model is unloaded; 0: never. */
  idleUnloadMs: number;
  readBacklog: (now: number) => Promise<Backlog>;
  /** False while the lease is not certain: nothing may be taken or loaded. */
  mayTake: () => boolean;
  /** Why only one job may run at a time at the moment; null when as many as fit may. */
  pressure: () => string | null;
  control: () => GpuControl;
  controlDone: (command: "swapTo" | "release" | "reset") => Promise<void>;
  peers: () => PolicySnapshot["peers"];
  /** False while another GPU's worker is just loading this model. */
  claimLoad: (role: Role) => Promise<boolean>;
  /** Brings jobs whose deadline has passed to the front, to be ended. */
  expireJobs: (now: number) => Promise<void>;
  /** Brings the oldest job of this class to the front of its queue. */
  bringForward: (role: Role, name: PriorityClass) => Promise<void>;
  /** Reads the prepared model's files ahead, until aborted. */
  prefetch: (role: Role, signal: AbortSignal) => Promise<void>;
  onPick: (role: Role, job: StageJob) => void;
  onDecision: (decision: Decision) => void;
  onSwap: (record: SwapRecord) => void;
  log: Logger;
}

export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #running = new Map<string, Promise<void>>();
  readonly #ageing: Record<Role, AgeingTurn> = { student: new AgeingTurn(), talker: new AgeingTurn() };
  #phase: Phase = "idle";
  #waitsFor: string | null = null;
  /** When the policy wants to be asked again at the latest, although nothing has happened. */
  #askAgainAt = Number.POSITIVE_INFINITY;
  #loop: Promise<void> | undefined;
  #stopping = false;
  #wake: () => void = () => {};
  #hurry: () => void = () => {};
  #woken = false;
  #drainStartedAt: number | null = null;
  #prefetching: AbortController | null = null;
  #emptySince = performance.now();
  #workSeenAt = performance.now();
  #lastDecision = "";
  #backlog: Backlog | null = null;
  /** Jobs picked since the resident model was loaded. */
  #served = 0;
  /** Models that this worker has loaded before. */
  readonly #started = new Set<Role>();
  /** Jobs taken of each queue since the last look at it. */
  readonly #taken: Record<Role, number> = { student: 0, talker: 0 };
  /** A suspect runs, or (`next`) waits at the front for the others to end. */
  #alone: "no" | "next" | "runs" = "no";

  constructor(options: DispatcherOptions) {
    this.#options = options;
  }

  get phase(): Phase {
    return this.#phase;
  }

  /** Why it takes nothing, where there is more to say than the phase. */
  get waitsFor(): string | null {
    return this.#waitsFor;
  }

  get running(): number {
    return this.#running.size;
  }

  get backlog(): Backlog | null {
    return this.#backlog;
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
    this.#prefetching?.abort();
    await this.#loop;
    const ended = Promise.allSettled(this.#running.values());
    await Promise.race([ended, enough]);
    clearTimeout(timer);
    for (const role of this.#options.roles) workers[role].cancelAllJobs(new HandBack("the worker stops") as unknown as string);
    await ended;
    await slot.unload(graceMs === 0 ? { graceMs: 0 } : {});
  }

  /** Ends the grace of a `stop` under way. */
  hurry(): void {
    this.#hurry();
  }

  /** One decision. Returns whether to decide again at once. */
  async #step(): Promise<boolean> {
    const { slot } = this.#options;
    this.#woken = false;
    this.#waitsFor = null;
    if (!this.#options.mayTake()) {
      this.#waitsFor = "Redis has not confirmed the lease";
      return false;
    }
    const now = Date.now();
    await this.#options.expireJobs(now);
    const backlog = await this.#options.readBacklog(now);
    this.#countArrivals(backlog, now);
    await this.#endJobs(backlog);
    for (const role of this.#options.roles) this.#options.preparations.wanted(role, waitingSince(backlog[role]));
    if (this.#running.size > 0 || this.#options.roles.some((role) => backlog[role].depth > 0)) this.#workSeenAt = performance.now();

    const control = this.#options.control();
    if (control.reset) {
      await this.#options.guardrails.reset(now);
      this.#options.preparations.retry();
      await this.#options.controlDone("reset");
    }
    if (control.release) return this.#empty("an operator asked for the GPU", () => this.#options.controlDone("release"));
    const decision = await this.#decide(control, backlog, now);
    this.#askAgainAt = now + (decision.askAgainMs ?? Number.POSITIVE_INFINITY);
    if (decision.action === "swap") return this.#towards(decision.to, decision.reason);
    this.#drainStartedAt = null;
    this.#prefetching?.abort();
    slot.drain(false);
    if (control.drained) {
      this.#phase = this.#running.size > 0 ? "draining" : "idle";
      this.#waitsFor = "drained by an operator; resume it to go on";
      return false;
    }
    this.#phase = decision.action === "idle" ? "idle" : "serving";
    this.#waitsFor = this.#unprepared(backlog).map((role) => this.#options.preparations.status(role).reason)[0] ?? null;
    if (decision.action === "idle" && this.#idleForLong()) return this.#empty(`no work for ${this.#options.idleUnloadMs / 1000} s`);
    if (decision.action === "hold") this.#waitsFor = decision.reason;
    if (decision.action !== "stay" || slot.resident === null || backlog[slot.resident.role].depth === 0) return false;
    return this.#pick(slot.resident.role, backlog, now);
  }

  async #decide(control: GpuControl, backlog: Backlog, now: number): Promise<Decision> {
    const { slot, guardrails, preparations, policy, meter, deadlinesMs } = this.#options;
    const resident = slot.resident?.role ?? null;
    const asked = control.swapTo;
    if (asked !== null && this.#options.roles.includes(asked)) {
      const able = guardrails.openUntil(asked, now) === null && preparations.isReady(asked);
      if (asked !== resident && able) return this.#decided({ action: "swap", to: asked, reason: "an operator asked for it" });
      if (asked === resident || preparations.status(asked).state !== "preparing") await this.#options.controlDone("swapTo");
    }
    if (control.drained) return this.#decided({ action: "stay", reason: "drained by an operator" });
    const decision = policy({
      now,
      resident,
      running: this.#running.size,
      served: this.#served,
      rates: meter.rates(now),
      peers: this.#options.peers(),
      deadlinesMs,
      queues: { student: this.#workOf("student", backlog, now), talker: this.#workOf("talker", backlog, now) },
    });
    const notYet = this.#unprepared(backlog).map((role) => `; the ${role}'s jobs wait until their model is on this machine`);
    return this.#decided({ ...decision, reason: decision.reason + notYet.join("") });
  }

  #decided(decision: Decision): Decision {
    const text = `${decision.action} ${decision.reason}`;
    if (text !== this.#lastDecision) this.#options.onDecision(decision);
    this.#lastDecision = text;
    return decision;
  }

  /** Nothing runs any more: load the model; else let what runs end, and read the model's files meanwhile. */
  async #towards(to: Role, reason: string): Promise<boolean> {
    const { slot, preparations, prefetch, log } = this.#options;
    if (!(await preparations.confirm(to))) return false;
    this.#drainStartedAt ??= performance.now();
    slot.drain(true);
    if (this.#running.size > 0) {
      this.#phase = "draining";
      if (this.#prefetching === null || this.#prefetching.signal.aborted) {
        this.#prefetching = new AbortController();
        prefetch(to, this.#prefetching.signal).catch((error) =>
          log.debug({ err: error }, "the next model's files could not be read ahead"),
        );
      }
      return false;
    }
    this.#prefetching?.abort();
    if (!(await this.#options.claimLoad(to))) {
      this.#waitsFor = `another GPU is loading the ${to}`;
      return false;
    }
    await this.#swap(slot.resident?.role ?? null, to, reason);
    return true;
  }

  /** Unloads the model once nothing runs. */
  async #empty(reason: string, done: () => Promise<void> = async () => {}): Promise<boolean> {
    const { slot, log } = this.#options;
    if (slot.resident !== null) {
      slot.drain(true);
      if (this.#running.size > 0) {
        this.#phase = "draining";
        return false;
      }
      log.info({ role: slot.resident.role, reason }, "the model is unloaded");
      await slot.unload();
    }
    this.#phase = "idle";
    this.#decided({ action: "idle", reason: `the GPU is free: ${reason}` });
    await done();
    return true;
  }

  #idleForLong(): boolean {
    const { idleUnloadMs, slot } = this.#options;
    return idleUnloadMs > 0 && slot.resident !== null && performance.now() - this.#workSeenAt >= idleUnloadMs;
  }

  /** Takes one job of the resident model, if it may have another. Returns whether to go on at once. */
  async #pick(role: Role, backlog: Backlog, now: number): Promise<boolean> {
    const { slot, pressure, bringForward, deadlinesMs, log } = this.#options;
    if (this.#alone === "runs" || (this.#alone === "next" && this.#running.size > 0)) {
      this.#waitsFor = "a job that may have killed its model server runs alone";
      return false;
    }
    const pressed = pressure();
    const places = pressed === null ? slot.resident!.profile.maxNumSeqs : 1;
    if (this.#running.size >= places) {
      if (pressed !== null) this.#waitsFor = pressed;
      return false;
    }
    const late = this.#alone === "no" ? this.#ageing[role].next(backlog[role].oldest, now, deadlinesMs) : null;
    if (late !== null) await bringForward(role, late);
    const job = await this.#take(role);
    if (job === undefined) return false;
    if (this.#stopping) {
      await job.moveToWait(job.token);
      return false;
    }
    const suspect = (job.data.crashes ?? 0) >= ALONE_AFTER_CRASHES;
    if (suspect && this.#running.size > 0) {
      this.#alone = "next";
      await job.changePriority({ priority: NEXT_PRIORITY });
      await job.moveToWait(job.token);
      return false;
    }
    this.#alone = suspect ? "runs" : "no";
    // The server may have died while the job was being taken: the processor then hands it back.
    this.#served++;
    this.#serve(role, job);
    log.debug({ jobId: job.id, role }, "picked");
    return true;
  }

  async #take(role: Role): Promise<StageJob | undefined> {
    const job = await this.#options.workers[role].takeNext();
    if (job !== undefined) this.#taken[role]++;
    return job;
  }

  /** What came since the last look: the change of what waits and what was taken meanwhile. */
  #countArrivals(backlog: Backlog, now: number): void {
    for (const role of this.#options.roles) {
      const before = this.#backlog === null ? 0 : standingIn(this.#backlog[role]);
      const arrived = standingIn(backlog[role]) - before + this.#taken[role];
      if (arrived > 0) this.#options.meter.arrived(role, arrived, now);
      this.#taken[role] = 0;
    }
    this.#backlog = backlog;
  }

  #workOf(role: Role, backlog: Backlog, now: number): QueueSnapshot {
    if (!this.#options.roles.includes(role) || this.#options.guardrails.openUntil(role, now) !== null) return EMPTY_QUEUE;
    if (!this.#canServe(role)) return EMPTY_QUEUE;
    const { depth, waiting, ending, returned, oldest }: QueueBacklog = backlog[role];
    return depth === 0 ? EMPTY_QUEUE : { depth: returned > 0 ? depth : depth - ending, waiting, oldest };
  }

  #canServe(role: Role): boolean {
    return this.#options.slot.resident?.role === role || this.#options.preparations.isReady(role);
  }

  /** The roles with work whose model can't be started yet. */
  #unprepared(backlog: Backlog): Role[] {
    return this.#options.roles.filter((role) => backlog[role].depth > 0 && !this.#canServe(role));
  }

  /** Ends the jobs that need no model, whichever is resident. They stand first, unless returned jobs stand before them: those put off. */
  async #endJobs(backlog: Backlog): Promise<void> {
    for (const role of this.#options.roles) {
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
    const { workers, meter, onPick, log } = this.#options;
    const place = meter.picked(role, performance.now());
    onPick(role, job);
    const served = workers[role]
      .finish(job)
      .catch((error) => log.error({ err: error, jobId: job.id }, "the outcome could not be recorded; the job runs again"))
      .finally(() => {
        this.#running.delete(job.token!);
        if (this.#running.size === 0) {
          this.#emptySince = performance.now();
          if (this.#alone === "runs") this.#alone = "no";
        }
        meter.served(place, performance.now(), tokensOf(job));
        this.wake();
      });
    this.#running.set(job.token!, served);
  }

  async #swap(from: Role | null, to: Role, reason: string): Promise<void> {
    const { slot, guardrails, meter, onSwap, log } = this.#options;
    this.#phase = "loading";
    const drainStartedAt = this.#drainStartedAt ?? performance.now();
    const emptyAt = Math.max(drainStartedAt, this.#emptySince);
    try {
      const unloaded = await slot.unload({ maySleep: true });
      if (this.#stopping) return;
      const loaded = await slot.load(to);
      guardrails.loaded(to);
      this.#served = 0;
      const readyAt = performance.now();
      const engineMs = unloaded.engineMs + loaded.spawnMs + loaded.warmupMs;
      meter.swapped(to, readyAt - drainStartedAt, readyAt - emptyAt, loaded.woken ? "woken" : this.#started.has(to) ? "again" : "first");
      this.#started.add(to);
      onSwap({
        from,
        to,
        reason,
        drainMs: emptyAt - drainStartedAt,
        stopMs: unloaded.engineMs,
        startMs: loaded.spawnMs,
        warmupMs: loaded.warmupMs,
        overheadMs: readyAt - emptyAt - engineMs,
        totalMs: readyAt - drainStartedAt,
      });
    } catch (error) {
      if (this.#stopping) return;
      log.error({ err: error, role: to }, "the model can't be loaded");
      await guardrails.loadFailed(to, error as Error, Date.now());
    } finally {
      this.#drainStartedAt = null;
    }
  }

  async #sleep(): Promise<void> {
    if (this.#woken) return;
    const now = Date.now();
    const due = this.#options.roles.flatMap((role) => [this.#backlog?.[role].nextDueAt, this.#options.guardrails.openUntil(role, now)]);
    const dueInMs = [...due, this.#askAgainAt].map((at) => (at ?? Number.POSITIVE_INFINITY) - now).filter((ms) => ms > 0);
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      timer = setTimeout(resolve, Math.min(POLL_MS, ...dueInMs));
    });
    clearTimeout(timer);
    this.#wake = () => {};
  }
}

/** Acceptance of the oldest job that could start now, epoch milliseconds; null when there is none. */
function waitingSince({ depth, oldest }: QueueBacklog): number | null {
  const times = PRIORITY_CLASSES.map((name) => oldest[name]).filter((at) => at !== null);
  return depth === 0 || times.length === 0 ? null : Math.min(...times);
}

/** What a job wrote; null where it failed, or ran on no model, so that its time says nothing of the model's speed. */
function tokensOf({ returnvalue }: StageJob): number | null {
  return returnvalue == null || returnvalue.vote !== undefined ? null : returnvalue.usage.completionTokens;
}
