import { type Job, Worker } from "bullmq";
import type { Redis } from "../../queues/connection.ts";
import type { JobData, StageResult } from "../../queues/contracts.ts";
import { KEY_PREFIX, type Role } from "../../queues/names.ts";

export type StageJob = Job<JobData, StageResult>;
export type StageProcessor = (job: StageJob, token: string, signal: AbortSignal) => Promise<StageResult>;

const LOCK_DURATION_MS = 15_000;
const STALLED_INTERVAL_MS = 5000;
/** A worker's death is not the job's fault, so no number of them fails it. */
const MAX_STALLED_COUNT = 1_000_000;

/**
 * A BullMQ worker that takes a job only when asked. `run()` would prefetch a job whose model is not resident; without
 * `run()` nothing renews locks or looks for stalled jobs, so `watchLocks` starts both.
 */
export class ManualWorker extends Worker<JobData, StageResult> {
  readonly #tokenPrefix: string;
  #taken = 0;

  /** Locks are taken in the name of `owner`, so that a successor knows the jobs that a dead owner held. */
  constructor(role: Role, owner: string, processor: StageProcessor, connection: Redis) {
    // BullMQ hands over the abort signal only to a processor that declares three parameters.
    super(role, (job, token, signal) => processor(job, token ?? "", signal as AbortSignal), {
      connection,
      prefix: KEY_PREFIX,
      autorun: false,
      lockDuration: LOCK_DURATION_MS,
      stalledInterval: STALLED_INTERVAL_MS,
      maxStalledCount: MAX_STALLED_COUNT,
      skipVersionCheck: true,
    });
    this.#tokenPrefix = lockTokenPrefix(owner);
  }

  async watchLocks(): Promise<void> {
    this.lockManager.start();
    await this.startStalledCheckTimer();
  }

  /** The next job of this queue, locked for this worker; undefined when none can start now. Never blocks. */
  async takeNext(): Promise<StageJob | undefined> {
    // Redis alone says whether a rate limit holds: it may have been lifted since this worker last heard of it.
    (this as unknown as { limitUntil: number }).limitUntil = 0;
    return this.getNextJob(`${this.#tokenPrefix}${this.#taken++}`, { block: false });
  }

  /** Runs a taken job to its end: completed, failed, or to be retried. Rejects only when Redis refuses the outcome. */
  async finish(job: StageJob): Promise<void> {
    await this.processJob(job, job.token!, () => false);
  }
}

export function lockTokenPrefix(owner: string): string {
  return `${owner}:`;
}
