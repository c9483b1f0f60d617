import { readFileSync } from "node:fs";
import type { Logger } from "pino";
import type { ModelProfile } from "../../queues/config.ts";
import type { Role } from "../../queues/names.ts";
import type { ProcessIdentity } from "../../queues/process-identity.ts";
import { capacityOf } from "./capacity-ladder.ts";
import type { IdleLevel } from "./gpu-memory.ts";
import type { LoadedModel } from "./model-slot.ts";

/** What a sleeping vLLM keeps on the GPU: about 1.1 GB, by its users' reports. More means that it does not really sleep. */
const MAX_RESIDUAL_BYTES = 2 * 1024 ** 3;
/** Left to the rest of the system when weights move to host memory. */
const HOST_MARGIN_BYTES = 2 * 1024 ** 3;

/**
 * Model servers that sleep instead of being stopped (vLLM's sleep mode): the process and its compiled kernels stay, the weights go to
 * host memory (level 1) or are dropped (level 2), and waking takes a tenth of a start. A server that does not fall asleep, or does not
 * give its memory back, is left to be stopped: never is it taken on trust.
 */
export class SleepingServers {
  readonly #idleLevel: IdleLevel;
  readonly #log: Logger;
  readonly #asleep = new Map<Role, LoadedModel>();

  constructor(idleLevel: IdleLevel, log: Logger) {
    this.#idleLevel = idleLevel;
    this.#log = log;
  }

  get identities(): ProcessIdentity[] {
    return [...this.#asleep.values()].flatMap(({ identity }) => (identity === null ? [] : [identity]));
  }

  /** Whether the server sleeps now and its memory is free but for the residual. False: it has to be stopped. */
  async putToSleep(resident: LoadedModel): Promise<boolean> {
    const { engine, profile, role } = resident;
    if (profile.sleepLevel === 0 || engine.sleep === undefined) return false;
    const { weightsBytes } = await engine.footprint(profile).catch(() => ({ weightsBytes: 0 }));
    if (profile.sleepLevel === 1 && weightsBytes + HOST_MARGIN_BYTES > availableMemoryBytes()) {
      this.#log.warn({ role, weightsBytes }, "too little host memory for the weights of a sleeping model: it is stopped instead");
      return false;
    }
    try {
      await engine.sleep(profile.sleepLevel);
      const notFreed = await this.#idleLevel.freed(MAX_RESIDUAL_BYTES);
      if (notFreed !== null) throw new Error(notFreed);
    } catch (error) {
      this.#log.warn({ role, reason: (error as Error).message }, "the model server did not fall asleep: it is stopped instead");
      return false;
    }
    this.#asleep.set(role, resident);
    void engine.exited.then(() => {
      if (this.#asleep.get(role) === resident) this.#asleep.delete(role);
    });
    return true;
  }

  /** Takes the sleeping server of this role out, if there is one of these very settings; one of others is stopped. */
  async take(role: Role, profile: ModelProfile): Promise<LoadedModel | null> {
    const asleep = this.#asleep.get(role);
    if (asleep === undefined) return null;
    this.#asleep.delete(role);
    if (JSON.stringify(capacityOf(asleep.asked)) === JSON.stringify(capacityOf(profile))) return asleep;
    await asleep.engine.stop(0);
    return null;
  }

  async stopAll(): Promise<void> {
    const all = [...this.#asleep.values()];
    this.#asleep.clear();
    await Promise.all(all.map(({ engine }) => engine.stop(0)));
  }
}

/** MemAvailable of /proc/meminfo; unlimited where there is none. */
function availableMemoryBytes(): number {
  try {
    return Number(/^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"))![1]) * 1024;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}
