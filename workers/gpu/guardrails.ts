import type { Logger } from "pino";
import { z } from "zod";
import type { ModelProfile } from "../../queues/config.ts";
import type { Redis } from "../../queues/connection.ts";
import type { Capacity, WorkerStatus } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { keys, ROLES, type Role } from "../../queues/names.ts";
import type { EngineExit } from "../engines/engine.ts";
import { tellsOfOutOfMemory } from "../engines/out-of-memory.ts";
import { capacityOf, fingerprintOf, nextStep } from "./capacity-ladder.ts";
import { Circuit } from "./circuit.ts";

const rungSchema = z.object({
  at: z.number(),
  step: z.string(),
  reason: z.string(),
  capacity: z.object({ maxNumSeqs: z.number(), maxModelLen: z.number(), kvCacheBits: z.union([z.literal(16), z.literal(8)]) }),
});
const ladderSchema = z.object({ fingerprint: z.string(), rungs: z.array(rungSchema) });
type Rung = z.infer<typeof rungSchema>;

const REASON_CHARS = 500;

/** How a model server ended, as seen by the slot. */
export interface ServerDeath {
  exit: EngineExit;
  /** Its health check was not answered, so the worker killed it: it was busy for ever (`stuck`), or stopped by somebody (`paused`). */
  hung: "stuck" | "paused" | null;
  /** The kernel's out-of-memory killer was at work meanwhile. */
  oomKilled: boolean;
}

/** Whether the death can have been a job's doing: a kill from outside, by an operator or the machine, never is. */
export function isOwnFault({ exit, hung, oomKilled }: ServerDeath): boolean {
  if (hung !== null) return hung === "stuck";
  return oomKilled || exit.signal === null || !["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"].includes(exit.signal);
}

/** For people: exit code or signal, and the last lines printed. */
export function describeDeath({ exit, hung, oomKilled }: ServerDeath): string {
  const how = oomKilled
    ? "was killed by the kernel for want of memory"
    : hung !== null
      ? `was ${hung}, did not answer its health check and was killed`
      : exit.signal === null
        ? `ended with code ${exit.code}`
        : `was ended by ${exit.signal}`;
  const lines = exit.lastLines.slice(-5).join(" | ");
  return `The model server ${how}. ${lines === "" ? "It printed nothing." : `Its last lines: ${lines}`}`.slice(0, REASON_CHARS);
}

export interface GuardrailsOptions {
  redis: Redis;
  gpuId: string;
  profiles: Record<Role, ModelProfile>;
  /** Every action, for telemetry and `/gpu/events`. */
  onAction: (kind: "oom" | "guardrail", record: object) => void;
  log: Logger;
}

/** What keeps one GPU serving when memory runs out or a model fails: a remembered ladder and a circuit for each model. */
export class Guardrails {
  readonly #options: GuardrailsOptions;
  readonly #rungs: Record<Role, Rung[]> = { student: [], talker: [] };
  readonly #circuits: Record<Role, Circuit> = { student: new Circuit(), talker: new Circuit() };

  constructor(options: GuardrailsOptions) {
    this.#options = options;
  }

  /** Reads the ladders of earlier runs; one of other settings is dropped. */
  async restore(): Promise<void> {
    const stored = await this.#options.redis.hgetall(keys.gpuLadder(this.#options.gpuId));
    for (const role of ROLES) {
      const ladder = ladderSchema.safeParse(parseJson(stored[role]));
      const valid = ladder.success && ladder.data.fingerprint === fingerprintOf(this.#options.profiles[role]);
      this.#rungs[role] = valid ? ladder.data.rungs : [];
    }
  }

  /** The profile as it is to be run: as configured, with the ladder's last step. */
  profile(role: Role): ModelProfile {
    return { ...this.#options.profiles[role], ...this.capacity(role) };
  }

  capacity(role: Role): Capacity {
    return this.#rungs[role].at(-1)?.capacity ?? capacityOf(this.#options.profiles[role]);
  }

  /** Epoch milliseconds until which this model is not to be loaded; null when it may be. */
  openUntil(role: Role, now: number): number | null {
    return this.#circuits[role].until(now);
  }

  loaded(role: Role): void {
    this.#circuits[role].loaded();
  }

  jobDone(role: Role): void {
    this.#circuits[role].jobDone();
  }

  /** A load failed: out of memory takes the next step of the ladder, to be tried at once; anything else opens the circuit. */
  async loadFailed(role: Role, error: Error, now: number): Promise<void> {
    const outOfMemory = (error instanceof MathllmError && error.code === "out-of-memory") || tellsOfOutOfMemory(error.message);
    if (outOfMemory && (await this.#stepDown(role, error.message, now))) return;
    const reason = outOfMemory ? `Even the smallest setting does not fit: ${error.message}` : error.message;
    this.#circuits[role].loadFailed(reason, now);
    this.#report(role, "circuit-open", reason, now);
  }

  /** A server that had been ready died. */
  async died(role: Role, death: ServerDeath, now: number): Promise<void> {
    const reason = describeDeath(death);
    if (death.oomKilled || tellsOfOutOfMemory(death.exit.lastLines.join("\n"))) await this.#stepDown(role, reason, now);
    this.#circuits[role].crashed(reason, now);
    this.#report(role, this.openUntil(role, now) === null ? "server-died" : "circuit-open", reason, now);
  }

  /** An operator's word: as configured again, and nothing is held against any model. */
  async reset(now: number): Promise<void> {
    await this.#options.redis.del(keys.gpuLadder(this.#options.gpuId));
    for (const role of ROLES) {
      this.#rungs[role] = [];
      this.#circuits[role].reset();
      this.#report(role, "reset", "an operator asked for it", now);
    }
  }

  status(role: Role, now: number): Pick<WorkerStatus["models"]["student"], "capacity" | "ladder" | "circuit" | "error"> {
    const circuit = this.#circuits[role];
    return {
      capacity: this.capacity(role),
      ladder: this.#rungs[role].map(({ at, step, reason }) => ({ at, step, reason })),
      circuit: { state: circuit.state(now), failures: circuit.failures, until: circuit.until(now) },
      error: circuit.reason,
    };
  }

  async #stepDown(role: Role, evidence: string, now: number): Promise<boolean> {
    const { redis, gpuId, profiles, log, onAction } = this.#options;
    const before = this.capacity(role);
    const next = nextStep(before);
    const reason = evidence.slice(0, REASON_CHARS);
    onAction("oom", { role, before, after: next?.capacity ?? null, step: next?.step ?? null, evidence: reason });
    if (next === null) return false;
    this.#rungs[role].push({ at: now, step: next.step, reason, capacity: next.capacity });
    await redis.hset(keys.gpuLadder(gpuId), role, JSON.stringify({ fingerprint: fingerprintOf(profiles[role]), rungs: this.#rungs[role] }));
    log.warn({ role, step: next.step, evidence: reason }, "out of memory: the model is run with less from now on");
    return true;
  }

  #report(role: Role, action: string, reason: string, now: number): void {
    const { state, failures, until } = this.status(role, now).circuit;
    this.#options.onAction("guardrail", { role, action, reason, circuit: state, failures, until });
  }
}

function parseJson(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}
