import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import type { Redis } from "../../queues/connection.ts";
import { MathllmError } from "../../queues/errors.ts";
import { keys } from "../../queues/names.ts";
import { hostBoot, isAlive, ownIdentity, type ProcessIdentity } from "../../queues/process-identity.ts";

/**
 * The right to load a model on one GPU, held by one worker at a time.
 *
 *   waiting ──key free, or its holder is dead on this host──► held ──release()──► released
 *                                                              │
 *                                   another worker has it, or its fence is newer ──► lost
 *
 * Held is renewed every third of the TTL. When Redis can't be reached past the TTL the lease is not lost but `uncertain`:
 * the worker takes nothing new; once Redis answers, it re-acquires unless another worker took a newer fence meanwhile.
 * The holder's record outlives the lease: it names the model server that a successor has to see dead before it loads.
 */

const identitySchema = z.object({ pid: z.number(), startTicks: z.number().nullable() });
const predecessorSchema = z.object({ owner: z.string(), worker: identitySchema });
const holderSchema = predecessorSchema.extend({
  fence: z.number(),
  host: z.string(),
  /** Earlier holders that nobody has cleared up after yet: whoever was about to may have died over it. */
  predecessors: z.array(predecessorSchema),
  /** Every process that may hold the GPU's memory, sleeping ones too. */
  modelServers: z.array(identitySchema),
});
type Holder = z.infer<typeof holderSchema>;

/** A worker of this host that held the lease before, with the jobs that it may have left locked in its name. */
export type Predecessor = z.infer<typeof predecessorSchema>;

/** What earlier holders may have left on this host. */
export interface Inheritance {
  predecessors: Predecessor[];
  modelServers: ProcessIdentity[];
}

/** KEYS: lease, fence, holder. ARGV: owner, TTL in ms, holder as JSON, fence. 1: renewed; 2: re-acquired; 0: lost. */
const RENEW_SCRIPT = `
local owner = redis.call('GET', KEYS[1])
if owner == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('SET', KEYS[3], ARGV[3])
  return 1
end
if not owner and redis.call('GET', KEYS[2]) == ARGV[4] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  redis.call('SET', KEYS[3], ARGV[3])
  return 2
end
return 0
`;

/** Deletes the lease only while `ARGV[1]` still holds it. */
const RELEASE_SCRIPT = `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`;

const UNCERTAIN_RETRY_MS = 100;

export class Lease {
  readonly #redis: Redis;
  readonly #gpuId: string;
  readonly #ttlMs: number;
  readonly #owner: string;
  #fence = 0;
  #modelServers: ProcessIdentity[] = [];
  #predecessors: Predecessor[] = [];
  #confirmedAt = 0;
  #lost = false;
  #timer: NodeJS.Timeout | undefined;
  #onLost: () => void = () => {};

  /** `owner` names this worker; it may acquire again after it lost the lease. */
  constructor(redis: Redis, gpuId: string, owner: string, ttlMs: number) {
    this.#owner = owner;
    this.#redis = redis;
    this.#gpuId = gpuId;
    this.#ttlMs = ttlMs;
  }

  /** Rises with every holder; 0 before the first acquisition. */
  get fence(): number {
    return this.#fence;
  }

  /** Whether Redis has confirmed the lease within its TTL: only then may a job be taken or a model be loaded. */
  get certain(): boolean {
    return this.#timer !== undefined && performance.now() - this.#confirmedAt < this.#ttlMs;
  }

  /**
   * Waits for the lease. Resolves with what earlier holders may have left on this host, which stays on record until `cleared`.
   * `onLost` is called once, when another worker turns out to hold it. Rejects only when `signal` aborts.
   */
  async acquire(signal: AbortSignal, onLost: () => void): Promise<Inheritance> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#onLost = onLost;
    this.#lost = false;
    this.#modelServers = [];
    const [leaseKey] = this.#keys();
    while ((await this.#redis.set(leaseKey, this.#owner, "PX", this.#ttlMs, "NX")) !== "OK") {
      const holder = await this.#readHolder();
      // Its own, from before Redis lost the answer, or one of a worker that is dead: no need to wait for its end.
      if (holder !== null && (holder.owner === this.#owner || (holder.host === hostBoot() && !isAlive(holder.worker)))) {
        await this.#redis.eval(RELEASE_SCRIPT, 1, leaseKey, holder.owner);
      } else {
        await delay(this.#ttlMs / 10, undefined, { signal });
      }
      signal.throwIfAborted();
    }
    const previous = await this.#readHolder();
    this.#fence = await this.#redis.incr(keys.leaseFence(this.#gpuId));
    this.#confirmedAt = performance.now();
    this.#schedule();
    const here = previous !== null && previous.host === hostBoot() ? previous : null;
    // All of it stays on record until it is seen gone, lest our own death hides it from the next.
    this.#modelServers = here?.modelServers ?? [];
    this.#predecessors =
      here === null ? [] : [{ owner: here.owner, worker: here.worker }, ...here.predecessors].filter(({ owner }) => owner !== this.#owner);
    await this.#renew();
    // Whoever stalled past its lease finds a successor's record: nothing of that is to be cleared up.
    signal.throwIfAborted();
    return { predecessors: this.#predecessors, modelServers: this.#modelServers };
  }

  /** Nothing of earlier holders is left. */
  async cleared(): Promise<void> {
    this.#predecessors = [];
    this.#modelServers = [];
    await this.#renew();
  }

  /**
   * Records which processes hold the GPU's memory, before they allocate any; none once it is free again. Throws
   * `engine-failed` when the lease turns out to be lost: then nothing may be allocated.
   */
  async recordModelServers(identities: ProcessIdentity[]): Promise<void> {
    this.#modelServers = identities;
    await this.#renew();
    if (identities.length > 0 && this.#lost) throw new MathllmError("engine-failed", "Another worker holds the GPU by now.");
  }

  /** Gives the lease back. The caller has stopped its model server. */
  async release(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const [leaseKey] = this.#keys();
    await this.#redis.eval(RELEASE_SCRIPT, 1, leaseKey, this.#owner);
  }

  #keys(): [string, string, string] {
    return [keys.lease(this.#gpuId), keys.leaseFence(this.#gpuId), keys.leaseHolder(this.#gpuId)];
  }

  async #readHolder(): Promise<Holder | null> {
    const text = await this.#redis.get(keys.leaseHolder(this.#gpuId));
    return text === null ? null : (holderSchema.safeParse(JSON.parse(text)).data ?? null);
  }

  #schedule(): void {
    this.#timer = setTimeout(
      async () => {
        try {
          await this.#renew();
        } catch {
          // Redis said no for a moment: the lease becomes uncertain by itself when no renewal gets through.
        }
        if (this.#timer !== undefined) this.#schedule();
      },
      this.certain ? this.#ttlMs / 3 : UNCERTAIN_RETRY_MS,
    );
  }

  async #renew(): Promise<void> {
    const sentAt = performance.now();
    const holder: Holder = {
      owner: this.#owner,
      fence: this.#fence,
      host: hostBoot(),
      worker: ownIdentity(),
      modelServers: this.#modelServers,
      predecessors: this.#predecessors,
    };
    const outcome = await this.#redis.eval(RENEW_SCRIPT, 3, ...this.#keys(), this.#owner, this.#ttlMs, JSON.stringify(holder), this.#fence);
    if (outcome === 0) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
      if (!this.#lost) this.#onLost();
      this.#lost = true;
    } else {
      this.#confirmedAt = sentAt;
    }
  }
}
