import type { Backlog } from "../queues/backlog.ts";
import type { Config } from "../queues/config.ts";
import type { SolveRequest, WorkerStatus } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { aheadOf, expectedWaitMs } from "../queues/expected-wait.ts";
import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import { countFollowing } from "../queues/single-flight.ts";
import { liveWorkers } from "../queues/worker-status.ts";

/** The queues are looked at this often at most; what was accepted here since is added. */
const LOOK_MS = 100;
const MAX_RETRY_AFTER_SECONDS = 3600;
const FULL_RETRY_AFTER_SECONDS = 10;

interface Look {
  backlog: Backlog;
  workers: WorkerStatus[];
  following: Record<PriorityClass, number>;
}

/** How far the job is that a request would follow. */
export interface LeaderProgress {
  /** Milliseconds until it is picked, as expected now; null when that is not known. */
  estimatedStartMs: number | null;
  /** Epoch milliseconds; null while it waits. */
  pickedAt: number | null;
}

/**
 * Backpressure: a job is refused with 429 and `Retry-After` when its class's depth of a queue is full, or when it could not start in
 * time: within its own `timeoutMs`, or, for `interactive` and `normal`, within its class's deadline. `batch` waits as long as it takes.
 */
export class Admission {
  readonly #queues: Queues;
  readonly #config: Config;
  #look: Promise<Look> | undefined;
  #lookedAt = Number.POSITIVE_INFINITY;
  /** Accepted here since the last look. */
  #since = new Map<string, number>();
  /** Of those accepted here, the ones on their way to Redis. */
  readonly #storing = new Set<Promise<unknown>>();

  constructor(queues: Queues, config: Config) {
    this.#queues = queues;
    this.#config = config;
  }

  /**
   * Counts the job in and stores it, or throws `queue-full` or `deadline-unmeetable`. Resolves with the milliseconds until a model begins
   * with it, as expected now; null while nothing has been measured.
   */
  async admit(request: SolveRequest, now: number, store: (estimatedWaitMs: number | null) => Promise<void>): Promise<number | null> {
    const { backlog, workers } = await this.#current(now);
    const role: Role = request.model;
    const name = request.priority;
    checkRoom(request, workers);
    const stages: Role[] = request.explain ? ["student", "talker"] : [role];
    for (const stage of stages) this.#checkDepth(stage, name, backlog, stage === "student" ? request.samples : 1);
    const sooner = PRIORITY_CLASSES.slice(0, PRIORITY_CLASSES.indexOf(name) + 1);
    const ahead = sooner.reduce((sum, each) => sum + this.#acceptedSince(role, each), aheadOf(role, name, backlog));
    const estimatedWaitMs = expectedWaitMs(role, name, ahead, backlog, workers, now);
    if (estimatedWaitMs !== null) this.#checkTime(request, estimatedWaitMs, stages, workers);
    this.#since.set(`${role} ${name}`, this.#acceptedSince(role, name) + request.samples);
    const stored = store(estimatedWaitMs);
    this.#storing.add(stored);
    await stored.finally(() => this.#storing.delete(stored));
    return estimatedWaitMs;
  }

  /**
   * The same for a request that would follow a job like its own: as many of a class may follow as may wait, and its time is that of its leader,
   * or its own, where its class comes first and so brings the leader forward.
   */
  async admitFollower<T>(
    request: SolveRequest,
    now: number,
    leaderProgress: () => Promise<LeaderProgress | undefined>,
    store: () => Promise<T>,
  ): Promise<T> {
    const [{ backlog, workers, following }, leader] = await Promise.all([this.#current(now), leaderProgress()]);
    const name = request.priority;
    const followers = following[name] + (this.#since.get(`following ${name}`) ?? 0);
    const most = this.#config.maxDepths[name];
    if (followers >= most) {
      throw new MathllmError(
        "queue-full",
        `${followers} ${name} requests follow identical ones that have not ended, and ${most} may. Try again later, or raise ${name.toUpperCase()}_MAX_DEPTH.`,
        { extra: { retryAfterSeconds: FULL_RETRY_AFTER_SECONDS } },
      );
    }
    const stages: Role[] = request.explain ? ["student", "talker"] : [request.model];
    const ownMs = expectedWaitMs(request.model, name, aheadOf(request.model, name, backlog), backlog, workers, now);
    if (ownMs !== null) {
      // Of one that runs, what has been done of its work counts.
      const leaderMs = leader == null ? ownMs : leader.pickedAt === null ? (leader.estimatedStartMs ?? ownMs) : leader.pickedAt - now;
      this.#checkTime(request, Math.min(ownMs, leaderMs), stages, workers);
    }
    this.#since.set(`following ${name}`, (this.#since.get(`following ${name}`) ?? 0) + 1);
    const stored = store();
    this.#storing.add(stored);
    return stored.finally(() => this.#storing.delete(stored));
  }

  #acceptedSince(role: Role, name: PriorityClass): number {
    return this.#since.get(`${role} ${name}`) ?? 0;
  }

  /** One look for all requests of the moment. A failed one is not kept. */
  #current(now: number): Promise<Look> {
    if (this.#look === undefined || performance.now() - this.#lookedAt > LOOK_MS) {
      this.#lookedAt = Number.POSITIVE_INFINITY;
      const look = this.#lookAgain(now);
      look.catch(() => {
        if (this.#look === look) this.#look = undefined;
      });
      this.#look = look;
    }
    return this.#look;
  }

  /**
   * Nothing is accepted meanwhile, so that every job accepted here is either seen or counted afterwards, and none is both. One that
   * Redis does not take fails the look as well.
   */
  async #lookAgain(now: number): Promise<Look> {
    await Promise.all(this.#storing);
    const { redis } = this.#queues;
    const [backlog, workers, following] = await Promise.all([
      this.#queues.readBacklog(now),
      liveWorkers(redis, now),
      countFollowing(redis),
    ]);
    this.#lookedAt = performance.now();
    this.#since = new Map();
    return { backlog, workers, following };
  }

  /** Each sample counts as a job. */
  #checkDepth(role: Role, name: PriorityClass, backlog: Backlog, samples: number): void {
    const waiting = backlog[role].waiting[name] + this.#acceptedSince(role, name);
    const most = this.#config.maxDepths[name];
    if (waiting + samples <= most) return;
    const more = samples === 1 ? "" : `; this one has ${samples} samples`;
    throw new MathllmError(
      "queue-full",
      `${waiting} ${name} jobs wait for the ${role}, and ${most} may${more}. Try again later, or raise ${name.toUpperCase()}_MAX_DEPTH.`,
      { extra: { retryAfterSeconds: FULL_RETRY_AFTER_SECONDS } },
    );
  }

  #checkTime({ priority, timeoutMs, samples }: SolveRequest, estimatedWaitMs: number, stages: Role[], workers: WorkerStatus[]): void {
    // Only they have measured anything; there is one, since the wait is known.
    const { models, deadlinesMs } = workers.find(({ phase, drained }) => phase !== "standby" && phase !== "stopping" && !drained)!;
    // A vote is settled, at best, by half of its samples, as many at once as there are slots.
    const turns = Math.ceil(Math.ceil(samples / 2) / models.student.capacity.maxNumSeqs);
    const workMs = stages.reduce((sum, stage, i) => {
      const { serviceMs, swapMs } = models[stage];
      return sum + (serviceMs ?? 0) * (stage === "student" ? turns : 1) + (i > 0 ? (swapMs ?? 0) : 0);
    }, 0);
    const deadlineMs = priority === "batch" ? Number.POSITIVE_INFINITY : deadlinesMs[priority];
    const lateByMs = Math.max(
      Math.max(estimatedWaitMs + workMs, 0) - (timeoutMs ?? Number.POSITIVE_INFINITY),
      estimatedWaitMs - deadlineMs,
    );
    if (lateByMs <= 0) return;
    const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
    const limit =
      estimatedWaitMs > deadlineMs
        ? `${priority} jobs are to start within ${seconds(deadlineMs)}`
        : `it is to end within timeoutMs, ${seconds(timeoutMs!)}, its work taking ${seconds(workMs)}`;
    throw new MathllmError(
      "deadline-unmeetable",
      `The job would wait ${seconds(Math.max(estimatedWaitMs, 0))}; ${limit}. Try again later, or send it as batch, which may wait as long as it takes.`,
      {
        extra: {
          estimatedStartMs: estimatedWaitMs,
          retryAfterSeconds: Math.min(Math.max(Math.ceil(lateByMs / 1000), 1), MAX_RETRY_AFTER_SECONDS),
        },
      },
    );
  }
}

/** An answer longer than every live worker's context can't come: it is refused rather than cut. */
function checkRoom({ model, sampling }: SolveRequest, workers: WorkerStatus[]): void {
  const contexts = workers.map(({ models }) => models[model].contextTokens).filter((tokens) => tokens !== null);
  const most = Math.max(...contexts);
  if (contexts.length === 0 || (sampling.maxTokens ?? 0) <= most) return;
  throw new MathllmError(
    "invalid-request",
    `sampling.maxTokens: expected at most ${most}, the tokens of the ${model}'s context; got ${sampling.maxTokens}. Lower it, or raise ${model.toUpperCase()}_MAX_MODEL_LEN as far as the model allows.`,
  );
}
