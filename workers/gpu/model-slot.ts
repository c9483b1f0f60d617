import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { ModelProfile } from "../../queues/config.ts";
import type { ServerState } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { Role } from "../../queues/names.ts";
import type { ProcessIdentity } from "../../queues/process-identity.ts";
import { ChatClient } from "../engines/chat-client.ts";
import type { Endpoint, Engine, EngineExit, EngineFactory, ReadyModel } from "../engines/engine.ts";
import { kernelOomKills } from "../engines/out-of-memory.ts";
import type { IdleLevel, VramUse } from "./gpu-memory.ts";
import type { ServerDeath } from "./guardrails.ts";
import { clearPort, isStopped } from "./left-behind.ts";
import { SleepingServers } from "./sleeping-servers.ts";

/** A model server that is up, or sleeps. */
export interface LoadedModel {
  role: Role;
  engine: Engine;
  baseUrl: string;
  /** What the server wants as a bearer token. */
  apiKey: string | undefined;
  model: ReadyModel;
  /** As it was started: requests at once, context, answer length. */
  profile: ModelProfile;
  /** As it was asked for, before it was fitted to the model and the memory. */
  asked: ModelProfile;
  /** null for a server that someone else runs. */
  identity: ProcessIdentity | null;
}

/** The model that can serve. */
export interface Resident extends LoadedModel {
  client: ChatClient;
  since: number;
}

/** Milliseconds of one load. The engine's own: `spawnMs` and `warmupMs`; the rest of `totalMs` is ours. */
export interface LoadTimes {
  spawnMs: number;
  warmupMs: number;
  totalMs: number;
  /** A sleeping server was woken, none started. */
  woken: boolean;
}

/** Milliseconds of one unload. The engine's own: `engineMs`. */
export interface UnloadTimes {
  engineMs: number;
  totalMs: number;
}

export interface ModelSlotOptions {
  profileOf: (role: Role) => ModelProfile;
  createEngine: EngineFactory;
  startTimeoutMs: number;
  healthTimeoutMs: number;
  stopGraceMs: number;
  /** Told before a model server may allocate its first byte, and again when its memory is free: all that hold any, sleeping ones too. */
  recordModelServers: (identities: ProcessIdentity[]) => Promise<void>;
  idleLevel: IdleLevel;
  /** The profile as it can be loaded now. Throws `out-of-memory` or `memory-taken`. `vram`: what is in use; null without a GPU. */
  fit: (profile: ModelProfile, vram: VramUse | null) => Promise<ModelProfile>;
  /** The memory of a stopped server did not come back in time; the next load is tried all the same. */
  onNotFreed: (role: Role | null, reason: string) => void;
  onState: (state: ServerState) => void;
  /** A server that was ready has died by itself; its memory is free. */
  onDeath: (role: Role, death: ServerDeath) => Promise<void>;
  log: Logger;
}

/**
 * The one place on the GPU where a model can be, and the life of its server:
 *
 *   stopped ──load──► starting ──process up──► warming ──first token──► ready ◄──► draining
 *      ▲                 │ failed, timed out ─────┤                       │  dies, hangs │ unload
 *      │                 └────────► failed ◄──────┴───────────────────────┘             │
 *      └──memory free── stopping ◄────┴──────────────────────────────────────────────────┘
 *
 * Loads, unloads and deaths are handled one at a time, so that two models are never up together. The caller unloads only when no
 * request runs on the resident model. Each state may be followed only by those in `FOLLOWERS`.
 */
const FOLLOWERS: Record<ServerState, readonly ServerState[]> = {
  stopped: ["starting"],
  starting: ["warming", "failed"],
  warming: ["ready", "failed"],
  ready: ["draining", "stopping", "failed"],
  draining: ["ready", "stopping", "failed"],
  failed: ["stopping"],
  // Again: a stop that failed is tried once more.
  stopping: ["stopped", "stopping"],
};

const HEALTH_INTERVAL_MS = 2000;
/** How long a broken request waits to learn whether its server died. */
const DEATH_NOTICE_MS = 1000;

export class ModelSlot {
  readonly #options: ModelSlotOptions;
  readonly #sleeping: SleepingServers;
  #state: ServerState = "stopped";
  #stateSince = Date.now();
  #lastError: string | null = null;
  #resident: Resident | null = null;
  #loading: Role | null = null;
  #engine: Engine | null = null;
  /** The load under way is not wanted any more. */
  #abandoned = false;
  #hung: ServerDeath["hung"] = null;
  #oomKills: number | null = null;
  /** Loads, unloads and deaths, one after the other. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: ModelSlotOptions) {
    this.#options = options;
    this.#sleeping = new SleepingServers(options.idleLevel, options.log);
  }

  /** The model that can serve: null while it is starting or stopping. */
  get resident(): Resident | null {
    return this.#resident;
  }

  get loading(): Role | null {
    return this.#loading;
  }

  get server(): { state: ServerState; pid: number | null; since: number; lastError: string | null } {
    return { state: this.#state, pid: this.#resident?.identity?.pid ?? null, since: this.#stateSince, lastError: this.#lastError };
  }

  /** Loads a model into the empty slot. Throws the engine's error, with nothing left running. */
  load(role: Role): Promise<LoadTimes> {
    return this.#inTurn(() => this.#load(role));
  }

  /**
   * Resolves when the slot is empty and the memory is free. `graceMs` 0 kills at once. With `maySleep` a server that can sleep does,
   * to be woken by the next load of its model; without, sleeping ones are stopped too.
   */
  unload({ graceMs = this.#options.stopGraceMs, maySleep = false } = {}): Promise<UnloadTimes> {
    return this.#inTurn(async () => {
      const startedAt = performance.now();
      const engineMs = await this.#stop(graceMs, maySleep);
      if (!maySleep) await this.#sleeping.stopAll();
      return { engineMs, totalMs: performance.now() - startedAt };
    });
  }

  /** A load under way fails at once; a resident model is left as it is. */
  abandonLoad(): void {
    if (this.#resident !== null) return;
    this.#abandoned = true;
    this.#engine?.stop(0).catch((error) => this.#options.log.warn({ err: error }, "a load could not be given up at once"));
  }

  /** Says that nothing new is given to the resident model, or (false) that it is again. */
  drain(draining: boolean): void {
    if (this.#state === (draining ? "ready" : "draining")) this.#enter(draining ? "draining" : "ready");
  }

  /** Whether this server died, as a request on it that broke off wants to know; null when it lives. */
  async deathOf(resident: Resident): Promise<ServerDeath | null> {
    const exit = await Promise.race([resident.engine.exited, delay(DEATH_NOTICE_MS, null, { ref: false })]);
    return exit === null ? null : this.#deathBy(exit);
  }

  #enter(state: ServerState): void {
    if (!FOLLOWERS[this.#state].includes(state)) throw new Error(`a model server can't be ${state} right after ${this.#state}`);
    this.#state = state;
    this.#stateSince = Date.now();
    this.#options.onState(state);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work, work);
    this.#turn = result.catch(() => {});
    return result;
  }

  async #load(role: Role): Promise<LoadTimes> {
    if (this.#engine !== null) throw new Error(`the slot still holds a model server: unload it before loading the ${role}`);
    const startedAt = performance.now();
    const { profileOf, createEngine, log } = this.#options;
    const profile = profileOf(role);
    this.#loading = role;
    this.#abandoned = false;
    this.#hung = null;
    this.#oomKills = kernelOomKills();
    this.#enter("starting");
    const asleep = await this.#sleeping.take(role, profile);
    if (asleep !== null && (await this.#wake(asleep))) {
      this.#loading = null;
      const totalMs = performance.now() - startedAt;
      return { spawnMs: 0, warmupMs: totalMs, totalMs, woken: true };
    }
    const engine = createEngine(profile);
    this.#engine = engine;
    try {
      if (this.#abandoned) throw new MathllmError("engine-failed", "The load was given up.");
      const orphan = await clearPort(profile.port);
      if (orphan !== null) log.warn({ pid: orphan.pid, port: profile.port }, "stopped a model server that had outlived its worker");
      const fitted = await this.#options.fit(profile, await this.#options.idleLevel.measure());
      const spawningAt = performance.now();
      const endpoint = await startedInTime(engine.start(fitted), role, this.#options.startTimeoutMs);
      const spawnMs = performance.now() - spawningAt;
      const identity = endpoint.pid === null ? null : { pid: endpoint.pid, startTicks: endpoint.startTicks };
      await this.#record(identity);
      this.#enter("warming");
      const warmingAt = performance.now();
      const model = await engine.ready(Math.max(Math.ceil(this.#options.startTimeoutMs - spawnMs), 1));
      const warmupMs = performance.now() - warmingAt;
      void engine.exited.then((exit) => this.#exited(engine, exit));
      const { baseUrl, apiKey } = endpoint;
      this.#ready({ role, engine, baseUrl, apiKey, model, profile: fitted, asked: profile, identity });
      const totalMs = performance.now() - startedAt;
      log.info({ role, model: model.modelId, pid: endpoint.pid, ms: Math.round(totalMs) }, "model is resident");
      return { spawnMs, warmupMs, totalMs, woken: false };
    } catch (error) {
      const known =
        error instanceof MathllmError ? error : new MathllmError("engine-failed", `The ${role} did not start: ${String(error)}`);
      const oomKilled = this.#wasOomKilled();
      const failure = oomKilled ? new MathllmError("out-of-memory", `The kernel's out-of-memory killer ended it. ${known.message}`) : known;
      this.#fail(failure.message);
      await this.#stop(0);
      throw failure;
    } finally {
      this.#loading = null;
    }
  }

  /** False when it did not wake: it is stopped, and a new one has to be started. */
  async #wake(asleep: LoadedModel): Promise<boolean> {
    const { engine, identity, role } = asleep;
    this.#engine = engine;
    try {
      await this.#record(identity);
      this.#enter("warming");
      await engine.wake!(this.#options.startTimeoutMs);
      this.#ready(asleep);
      this.#options.log.info({ role }, "model is awake");
      return true;
    } catch (error) {
      this.#options.log.warn({ role, reason: (error as Error).message }, "the sleeping model server did not wake: a new one is started");
      this.#fail((error as Error).message);
      await this.#stop(0);
      this.#enter("starting");
      return false;
    }
  }

  #ready(loaded: LoadedModel): void {
    const client = new ChatClient(loaded.baseUrl, { model: loaded.model.modelId, apiKey: loaded.apiKey });
    const resident = { ...loaded, client, since: Date.now() };
    this.#resident = resident;
    this.#lastError = null;
    this.#enter("ready");
    this.#watchHealth(resident).catch((error) => this.#options.log.warn({ err: error }, "a hung model server could not be stopped"));
  }

  #record(identity: ProcessIdentity | null): Promise<void> {
    return this.#options.recordModelServers([...(identity === null ? [] : [identity]), ...this.#sleeping.identities]);
  }

  #fail(reason: string): void {
    this.#lastError = reason;
    this.#enter("failed");
  }

  /** Returns the milliseconds that the engine took to stop. */
  async #stop(graceMs: number, maySleep = false): Promise<number> {
    const engine = this.#engine;
    const resident = this.#resident;
    this.#resident = null;
    if (engine === null) return 0;
    this.#enter("stopping");
    await resident?.client.close();
    const stoppingAt = performance.now();
    const sleeps = maySleep && resident !== null && (await this.#sleeping.putToSleep(resident));
    if (!sleeps) await engine.stop(graceMs);
    const engineMs = performance.now() - stoppingAt;
    const notFreed = sleeps ? null : await this.#options.idleLevel.freed();
    if (notFreed !== null) this.#options.onNotFreed(resident?.role ?? null, notFreed);
    this.#engine = null;
    // The record only helps a successor to find a server that was left behind; this one is gone.
    await this.#record(null).catch((error) => this.#options.log.warn({ err: error }, "the freed GPU could not be recorded"));
    this.#enter("stopped");
    return engineMs;
  }

  #exited(engine: Engine, exit: EngineExit): Promise<void> {
    return this.#inTurn(async () => {
      const dead = this.#resident;
      if (dead?.engine !== engine) return;
      const death = this.#deathBy(exit);
      this.#fail(`code ${exit.code}, signal ${exit.signal}`);
      await this.#stop(0);
      this.#options.log.error({ role: dead.role, code: exit.code, signal: exit.signal, lastLines: exit.lastLines }, "model server died");
      await this.#options.onDeath(dead.role, death);
    });
  }

  #deathBy(exit: EngineExit): ServerDeath {
    return { exit, hung: this.#hung, oomKilled: exit.signal === "SIGKILL" && this.#wasOomKilled() };
  }

  #wasOomKilled(): boolean {
    const kills = kernelOomKills();
    return kills !== null && this.#oomKills !== null && kills > this.#oomKills;
  }

  /** A server that is stopped or stuck keeps its port and its jobs for ever: after `healthTimeoutMs` without an answer it is killed. */
  async #watchHealth(resident: Resident): Promise<void> {
    const { engine, identity } = resident;
    const { healthTimeoutMs, log } = this.#options;
    let answeredAt = performance.now();
    for (;;) {
      await delay(Math.min(HEALTH_INTERVAL_MS, healthTimeoutMs / 3), undefined, { ref: false });
      if (this.#resident !== resident) return;
      try {
        await engine.health(healthTimeoutMs / 3);
        answeredAt = performance.now();
      } catch {
        // It may be busy for a moment; the clock decides.
      }
      if (performance.now() - answeredAt < healthTimeoutMs || this.#resident !== resident) continue;
      log.error({ healthTimeoutMs }, "the model server does not answer its health check and is killed");
      this.#hung = identity === null || isStopped(identity) ? "paused" : "stuck";
      await engine.stop(0);
      return;
    }
  }
}

/** Rejects after `timeoutMs`; the start itself is then given up by stopping its engine. */
async function startedInTime(started: Promise<Endpoint>, role: Role, timeoutMs: number): Promise<Endpoint> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    const error = new MathllmError(
      "engine-failed",
      `The ${role}'s model server was not started within ${timeoutMs} ms. Raise ENGINE_START_TIMEOUT_MS.`,
    );
    timer = setTimeout(() => reject(error), timeoutMs);
  });
  try {
    return await Promise.race([started, late]);
  } finally {
    clearTimeout(timer);
  }
}
