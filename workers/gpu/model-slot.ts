import type { Logger } from "pino";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { Role } from "../../queues/names.ts";
import type { ProcessIdentity } from "../../queues/process-identity.ts";
import { ChatClient } from "../engines/chat-client.ts";
import type { Engine, EngineExit, EngineFactory, ReadyModel } from "../engines/engine.ts";

export interface Resident {
  role: Role;
  engine: Engine;
  client: ChatClient;
  model: ReadyModel;
  since: number;
  pid: number;
}

export interface LoadTimes {
  stopMs: number;
  startMs: number;
  warmupMs: number;
}

export interface ModelSlotOptions {
  profiles: Record<Role, ModelProfile>;
  createEngine: EngineFactory;
  startTimeoutMs: number;
  stopGraceMs: number;
  /** Told before a model server may allocate its first byte, and again (null) when its memory is free. */
  recordModelServer: (identity: ProcessIdentity | null) => Promise<void>;
  onCrash: (role: Role, exit: EngineExit) => void;
  log: Logger;
}

/**
 * The one place on the GPU where a model can be. All loading and unloading goes through it, one at a time, so that two
 * models are never up together.
 *
 *   empty ──load──► loading ──ready──► resident ──unload──► stopping ──process gone──► empty
 *                      └──failed, process gone──► empty      │
 *   resident ──the process dies by itself──► empty ◄─────────┘
 *
 * The caller unloads only when no request runs on the resident model.
 */
export class ModelSlot {
  readonly #options: ModelSlotOptions;
  #resident: Resident | null = null;
  #engine: Engine | null = null;
  /** Loads and unloads, one after the other. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: ModelSlotOptions) {
    this.#options = options;
  }

  get resident(): Resident | null {
    return this.#resident;
  }

  /** Loads a model into the empty slot. Throws the engine's error, with nothing left running. */
  load(role: Role): Promise<Omit<LoadTimes, "stopMs">> {
    return this.#inTurn(() => this.#load(role));
  }

  /** Resolves when the slot is empty and the memory is free; returns the milliseconds it took. `graceMs` 0 kills at once. */
  unload(graceMs = this.#options.stopGraceMs): Promise<number> {
    return this.#inTurn(async () => {
      const startedAt = performance.now();
      await this.#stop(graceMs);
      return performance.now() - startedAt;
    });
  }

  /** A load under way fails at once; a resident model is left as it is. */
  abandonLoad(): void {
    if (this.#resident === null) void this.#engine?.stop(0);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work, work);
    this.#turn = result.catch(() => {});
    return result;
  }

  async #load(role: Role): Promise<Omit<LoadTimes, "stopMs">> {
    if (this.#engine !== null) throw new Error(`the slot still holds a model server: unload it before loading the ${role}`);
    const profile = this.#options.profiles[role];
    const engine = this.#options.createEngine(profile);
    this.#engine = engine;
    const startedAt = performance.now();
    try {
      const endpoint = await engine.start(profile);
      await this.#options.recordModelServer({ pid: endpoint.pid, startTicks: endpoint.startTicks });
      const spawnedAt = performance.now();
      const model = await engine.ready(this.#options.startTimeoutMs);
      this.#resident = { role, engine, client: new ChatClient(endpoint.baseUrl), model, since: Date.now(), pid: endpoint.pid };
      void engine.exited.then((exit) => this.#exited(engine, exit));
      const readyAt = performance.now();
      this.#options.log.info({ role, model: model.modelId, pid: endpoint.pid, ms: Math.round(readyAt - startedAt) }, "model is resident");
      return { startMs: spawnedAt - startedAt, warmupMs: readyAt - spawnedAt };
    } catch (error) {
      await this.#stop(0);
      throw error instanceof MathllmError ? error : new MathllmError("engine-failed", `The ${role} did not start: ${String(error)}`);
    }
  }

  async #stop(graceMs: number): Promise<void> {
    const engine = this.#engine;
    const resident = this.#resident;
    this.#resident = null;
    if (engine === null) return;
    await resident?.client.close();
    await engine.stop(graceMs);
    this.#engine = null;
    // The record only helps a successor to find a server that was left behind; this one is gone.
    await this.#options
      .recordModelServer(null)
      .catch((error) => this.#options.log.warn({ err: error }, "the freed GPU could not be recorded"));
  }

  #exited(engine: Engine, exit: EngineExit): Promise<void> {
    return this.#inTurn(async () => {
      const crashed = this.#resident;
      if (crashed?.engine !== engine) return;
      await this.#stop(0);
      this.#options.log.error({ role: crashed.role, code: exit.code, signal: exit.signal, lastLines: exit.lastLines }, "model server died");
      this.#options.onCrash(crashed.role, exit);
    });
  }
}
