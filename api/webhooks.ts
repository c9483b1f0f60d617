import { Queue, UnrecoverableError, Worker } from "bullmq";
import type { Logger } from "pino";
import type { Agent } from "undici";
import { z } from "zod";
import type { Config } from "../queues/config.ts";
import type { Redis } from "../queues/connection.ts";
import { type JobView, TERMINAL_STATUSES, type WebhookView, webhookViewSchema } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import type { MetricCounts } from "../queues/metrics.ts";
import { KEY_PREFIX, keys } from "../queues/names.ts";
import type { JobCompletions } from "./job-completions.ts";
import type { JobLookup } from "./job-lookup.ts";
import { checkWebhookUrl, type Resolve, webhookAgent } from "./webhook-address.ts";
import { callWebhook } from "./webhook-call.ts";

/**
 * Tells a URL that a job has ended, at least once, whatever process dies.
 *
 *   asked ──the job has ended──► queued ──2xx──► delivered
 *     │                            └──anything else──► waits, five times as long each time ──as often as it is tried──► failed
 *     └──the job was never stored──► forgotten
 *
 * `ask` comes before the job is stored. From then on every API process looks at the job: at once when its end is heard, and again and again,
 * ever more rarely, in case it was not. A delivery is queued under an id made of the job's, so that it is queued once. The view of the job's
 * end is kept in it.
 */
const QUEUE = "webhooks";
const SWEEP_MS = 1000;
const LOOKS_A_SWEEP = 200;
/** A job that is not there by then never will be: who was to store it has died. */
const STORING_MS = 10_000;
const MAX_LOOK_AGAIN_MS = 300_000;
const BACKOFF = 5;
const JITTER = 0.1;
const KEPT_ATTEMPTS = 20;
const AT_ONCE = 16;
const CLOSE_GRACE_MS = 2000;

const askedSchema = z.object({ url: z.string(), at: z.number() });
const attemptsSchema = webhookViewSchema.shape.attempts;
type Attempts = WebhookView["attempts"];

interface Delivery {
  jobId: string;
  url: string;
  body: string;
}

const deliveryId = (jobId: string) => `webhook-${jobId}`;

export interface WebhooksOptions {
  redis: Redis;
  /** For a connection of the worker profile, closed by the caller after `close`. */
  connect: () => Redis;
  config: Config;
  lookup: JobLookup;
  completions: JobCompletions;
  counts: MetricCounts;
  log: Logger;
  onError: (error: Error) => void;
  resolve?: Resolve;
}

export class Webhooks {
  readonly #options: WebhooksOptions;
  readonly #queue: Queue<Delivery, null, string>;
  readonly #agent: Agent;
  #worker: Worker<Delivery, null, string> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #sweeping: Promise<void> | undefined;
  #sweepAgain = false;
  #closed = false;
  /** As of the last sweep, with those asked for here since: while there is none, the ends of jobs are not looked at. */
  #asked = 0;

  constructor(options: WebhooksOptions) {
    const { config, redis, onError, resolve } = options;
    this.#options = options;
    this.#agent = webhookAgent(config.webhooks.allowPrivate, config.webhooks.timeoutMs, resolve);
    this.#queue = new Queue(QUEUE, { connection: redis, prefix: KEY_PREFIX, skipWaitingForReady: true, skipVersionCheck: true });
    this.#queue.on("error", onError);
  }

  /** Begins to look at jobs and to deliver. Without a secret nothing is delivered. */
  start(): void {
    const { config, connect, completions, onError } = this.#options;
    if (config.webhooks.secrets.length === 0) return;
    this.#worker = new Worker(QUEUE, async (job) => this.#deliver(job), {
      connection: connect(),
      prefix: KEY_PREFIX,
      concurrency: AT_ONCE,
      lockDuration: 3 * config.webhooks.timeoutMs,
      stalledInterval: 3 * config.webhooks.timeoutMs,
      // The death of a process is no attempt.
      maxStalledCount: Number.MAX_SAFE_INTEGER,
      settings: { backoffStrategy: (attempts) => this.#waitMs(attempts) },
    });
    this.#worker.on("error", onError);
    completions.listenToAll((jobId) => this.#heard(jobId).catch(onError));
    this.#timer = setInterval(() => this.#sweepSoon(), SWEEP_MS);
    this.#sweepSoon();
  }

  /** Throws `invalid-request` when this URL can't be called. */
  check(url: string): void {
    const { secrets, allowPrivate } = this.#options.config.webhooks;
    if (secrets.length === 0)
      throw new MathllmError("invalid-request", "webhook: expected none while the server has no WEBHOOK_SECRET to sign deliveries with.");
    checkWebhookUrl(url, allowPrivate);
  }

  /** Before the job is stored. */
  async ask(jobId: string, url: string, now = Date.now()): Promise<void> {
    const asked = JSON.stringify({ url, at: now } satisfies z.infer<typeof askedSchema>);
    this.#asked++;
    await this.#options.redis
      .multi()
      .hset(keys.webhooks, jobId, asked)
      .zadd(keys.webhookLooks, now + SWEEP_MS, jobId)
      .exec();
  }

  /** The job was refused. */
  async forget(jobId: string): Promise<void> {
    await this.#options.redis.multi().hdel(keys.webhooks, jobId).zrem(keys.webhookLooks, jobId).exec();
  }

  /** The answer was there: nothing has to be waited for. */
  async deliver(jobId: string, url: string, view: JobView): Promise<void> {
    const { attempts } = this.#options.config.webhooks;
    const kept = { age: this.#options.config.jobRetentionSeconds };
    await this.#queue.add(
      "deliver",
      { jobId, url, body: JSON.stringify(view) },
      { jobId: deliveryId(jobId), attempts, backoff: { type: "custom" }, removeOnComplete: kept, removeOnFail: kept, stackTraceLimit: 0 },
    );
  }

  /** undefined: this job has none, or it has expired. */
  async view(jobId: string): Promise<WebhookView | undefined> {
    const asked = await this.#askedFor(jobId);
    const state = await this.#queue.getJobState(deliveryId(jobId));
    const job = await this.#queue.getJob(deliveryId(jobId));
    if (job === undefined) return asked && { jobId, url: asked.url, status: "waiting", attempts: [], nextAttemptAt: null };
    const attempts = attemptsSchema.safeParse(job.progress).data ?? [];
    const last = attempts.at(-1);
    const status = state === "completed" ? "delivered" : state === "failed" ? "failed" : "delivering";
    const nextAttemptAt = state === "delayed" && last !== undefined ? last.at + last.durationMs + job.delay : null;
    return { jobId, url: job.data.url, status, attempts, nextAttemptAt };
  }

  /** What runs has two seconds to end; the next API process does it again. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    const ended = Promise.all([this.#sweeping, this.#worker?.close()]);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise((resolve) => {
      timer = setTimeout(resolve, CLOSE_GRACE_MS);
    });
    await Promise.race([ended, late]).catch(this.#options.onError);
    clearTimeout(timer);
    this.#worker?.close(true).catch(this.#options.onError);
    await this.#agent.destroy();
    await this.#queue.close();
  }

  async #askedFor(jobId: string): Promise<z.infer<typeof askedSchema> | undefined> {
    const text = await this.#options.redis.hget(keys.webhooks, jobId);
    return text === null ? undefined : askedSchema.parse(JSON.parse(text));
  }

  /** A job's followers end with it. */
  async #heard(jobId: string): Promise<void> {
    if (this.#asked === 0 || this.#closed) return;
    const { redis } = this.#options;
    const ended = [jobId, ...(await redis.smembers(keys.followers(jobId)))];
    const changed = await redis.zadd(keys.webhookLooks, "XX", "CH", ...ended.flatMap((id) => [0, id]));
    if (Number(changed) > 0) this.#sweepSoon();
  }

  #sweepSoon(): void {
    if (this.#closed) return;
    if (this.#sweeping !== undefined) {
      this.#sweepAgain = true;
      return;
    }
    this.#sweeping = this.#sweep()
      .catch(this.#options.onError)
      .finally(() => {
        this.#sweeping = undefined;
        if (this.#sweepAgain) {
          this.#sweepAgain = false;
          this.#sweepSoon();
        }
      });
  }

  async #sweep(): Promise<void> {
    const { redis } = this.#options;
    this.#asked = await redis.zcard(keys.webhookLooks);
    if (this.#asked === 0) return;
    const due = await redis.zrangebyscore(keys.webhookLooks, "-inf", Date.now(), "LIMIT", 0, LOOKS_A_SWEEP);
    await Promise.all(due.map((jobId) => this.#look(jobId)));
    if (due.length === LOOKS_A_SWEEP) this.#sweepAgain = true;
  }

  async #look(jobId: string): Promise<void> {
    const { redis, lookup } = this.#options;
    const asked = await this.#askedFor(jobId);
    if (asked === undefined) {
      await redis.zrem(keys.webhookLooks, jobId);
      return;
    }
    const view = await lookup.view(jobId);
    const now = Date.now();
    const ageMs = now - asked.at;
    if (view !== undefined && TERMINAL_STATUSES.includes(view.status)) {
      await this.deliver(jobId, asked.url, view);
      await this.forget(jobId);
    } else if (view === undefined && ageMs > STORING_MS) {
      await this.forget(jobId);
    } else {
      const deadlineAt = await redis.zscore(keys.deadlines, jobId);
      const againAt = now + Math.min(Math.max(ageMs / 4, SWEEP_MS), MAX_LOOK_AGAIN_MS);
      const dueAt = Number(deadlineAt ?? Number.POSITIVE_INFINITY);
      await redis.zadd(keys.webhookLooks, "XX", dueAt > now ? Math.min(againAt, dueAt + 1) : againAt, jobId);
    }
  }

  async #deliver(job: {
    data: Delivery;
    progress: unknown;
    attemptsMade: number;
    updateProgress: (value: Attempts) => Promise<void>;
  }): Promise<null> {
    const { jobId, url, body } = job.data;
    const { log, config, counts } = this.#options;
    const { secrets, allowPrivate, timeoutMs } = config.webhooks;
    const signal = AbortSignal.timeout(timeoutMs);
    const { isFinal, ...attempt } = await callWebhook(
      { id: `msg_${jobId}`, url, body },
      { secrets, allowPrivate, dispatcher: this.#agent, signal },
    );
    const earlier = attemptsSchema.safeParse(job.progress).data ?? [];
    await job.updateProgress([...earlier, attempt].slice(-KEPT_ATTEMPTS));
    counts.count("mathllm_webhook_attempts_total", { outcome: attempt.error === null ? "delivered" : "failed" });
    // The URL may carry a secret.
    log.info({ jobId, host: new URL(url).host, attempt: job.attemptsMade + 1, ...attempt }, "webhook");
    if (attempt.error === null) return null;
    throw isFinal ? new UnrecoverableError(attempt.error) : new Error(attempt.error);
  }

  #waitMs(attempts: number): number {
    const waitMs = this.#options.config.webhooks.retryMs * BACKOFF ** (attempts - 1);
    return Math.round(waitMs * (1 - JITTER + 2 * JITTER * Math.random()));
  }
}
