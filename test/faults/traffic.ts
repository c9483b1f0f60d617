import { readFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { seededSample } from "../../maths/seeded-random.ts";
import type { JobKind, PriorityClass } from "../../queues/names.ts";

export interface PlannedJob {
  kind: JobKind;
  /** Milliseconds after the storm's begin. */
  atMs: number;
  idempotencyKey: string;
  body: object;
}

export interface AcceptedJob {
  jobId: string;
  kind: JobKind;
  acceptedAt: number;
}

const LARGEST_BURST = 40;
const LEAST_BURSTS = 30;
/** The shipped models' answers are shorter; one that rambles would only take time. */
const MAX_TOKENS = 256;
const REQUEST_TIMEOUT_MS = 15_000;
const RETRY_MS = 150;
const FULL_RETRY_CAP_MS = 2000;
const ACCEPT_WITHIN_MS = 120_000;
/** Every so many accepted jobs are handed in once more with the same key. */
const REPEAT_EVERY = 20;

function pick<T>(random: () => number, shares: [T, number][]): T {
  let left = random();
  for (const [value, share] of shares) {
    left -= share;
    if (left < 0) return value;
  }
  return shares.at(-1)![0];
}

interface Answer {
  why: string;
  jobId?: string;
  replayed?: boolean;
  /** Undefined: trying again is of no use. */
  waitMs?: number;
}

/** Jobs in bursts, so that queues fill and empty: both kinds of moment are worth a fault. */
export function planJobs(count: number, windowMs: number, seed: number, random: () => number): PlannedJob[] {
  const rows = readFileSync(path.join(import.meta.dirname, "../../models/held-out.jsonl"), "utf8")
    .trim()
    .split("\n");
  const problems: string[] = seededSample(rows, rows.length, random).map((row) => JSON.parse(row).problem);
  const largest = Math.min(LARGEST_BURST, Math.ceil((2 * count) / LEAST_BURSTS));
  const bursts: number[] = [];
  for (let left = count; left > 0; left -= bursts.at(-1)!) bursts.push(Math.min(1 + Math.floor(random() * largest), left));
  // One burst in each equal part of the window: left to chance alone, long stretches would have no work to strike at.
  const times = bursts.map((_, part) => ((part + random()) * windowMs) / bursts.length);
  const jobTimes = bursts.flatMap((size, part) => Array.from({ length: size }, (_, i) => times[part]! + i));
  return jobTimes.map((atMs, n) => {
    const kind = pick<JobKind>(random, [
      ["solve", 0.45],
      ["talk", 0.25],
      ["explain", 0.3],
    ]);
    const priority = pick<PriorityClass>(random, [
      ["interactive", 0.3],
      ["normal", 0.4],
      ["batch", 0.3],
    ]);
    return {
      kind,
      atMs,
      idempotencyKey: `storm-${seed}-${n}`,
      body: {
        problem: problems[n % problems.length],
        // Every job is to be computed: what is checked is that none is lost or computed twice.
        cache: "off",
        priority,
        explain: kind === "explain",
        model: kind === "talk" ? "talker" : "student",
        // A seed of its own makes every request another one: an answer out of a cache would test nothing.
        sampling: { temperature: 0.2, seed: n, maxTokens: MAX_TOKENS },
      },
    };
  });
}

/** Hands the planned jobs in over HTTP and keeps at it until each is accepted, whatever dies meanwhile. */
export class Submitter {
  readonly accepted: AcceptedJob[] = [];
  readonly violations: string[] = [];
  /** Answers and errors that were followed by another try, by what they were. */
  readonly retries: Record<string, number> = {};
  /** Jobs that were in Redis though their first POST got no 2xx: a retry with the same key found them. */
  foundAgain = 0;
  /** POSTs without an answer yet. */
  unanswered = 0;
  #onPost: () => void = () => {};
  readonly #url: string;
  readonly #signal: AbortSignal;
  readonly #acceptWithinMs: number;

  /** `acceptWithinMs`: how long one POST may be turned away or meet a dead API before that is a violation. */
  constructor(url: string, signal: AbortSignal, acceptWithinMs = ACCEPT_WITHIN_MS) {
    this.#url = url;
    this.#signal = signal;
    this.#acceptWithinMs = acceptWithinMs;
  }

  async run(jobs: PlannedJob[], beganAt: number): Promise<void> {
    await Promise.all(jobs.map((job) => this.#handIn(job, beganAt + job.atMs)));
  }

  /** Resolves when the next POST has been sent. */
  nextPost(): Promise<void> {
    return new Promise((resolve) => {
      this.#onPost = resolve;
    });
  }

  async #handIn(job: PlannedJob, at: number): Promise<void> {
    await delay(Math.max(at - Date.now(), 0), undefined, { signal: this.#signal });
    const jobId = await this.#post(job);
    if (jobId === undefined) return;
    this.accepted.push({ jobId, kind: job.kind, acceptedAt: Date.now() });
    if (this.accepted.length % REPEAT_EVERY !== 0) return;
    const again = await this.#post(job);
    if (again !== undefined && again !== jobId) {
      this.violations.push(`Idempotency-Key ${job.idempotencyKey} got ${jobId} first and ${again} when it came again`);
    }
  }

  async #post({ idempotencyKey, body }: PlannedJob): Promise<string | undefined> {
    const giveUpAt = Date.now() + this.#acceptWithinMs;
    for (let tries = 1; ; tries++) {
      const { why, jobId, waitMs, replayed } = await this.#try(idempotencyKey, body);
      if (jobId !== undefined) {
        if (tries > 1 && replayed) this.foundAgain++;
        return jobId;
      }
      if (waitMs === undefined || Date.now() > giveUpAt) {
        this.violations.push(`POST /solve with Idempotency-Key ${idempotencyKey} was never accepted: ${why}`);
        return undefined;
      }
      this.retries[why] = (this.retries[why] ?? 0) + 1;
      await delay(waitMs, undefined, { signal: this.#signal });
    }
  }

  async #try(key: string, body: object): Promise<Answer> {
    this.unanswered++;
    try {
      const answer = fetch(`${this.#url}/solve`, {
        method: "POST",
        headers: { "content-type": "application/json", "idempotency-key": key },
        body: JSON.stringify(body),
        signal: AbortSignal.any([this.#signal, AbortSignal.timeout(REQUEST_TIMEOUT_MS)]),
      });
      this.#onPost();
      const response = await answer;
      const text = await response.text();
      if (response.ok) return { why: "accepted", jobId: JSON.parse(text).jobId, replayed: response.headers.has("idempotent-replayed") };
      if (response.status === 503) return { why: "503", waitMs: RETRY_MS };
      if (response.status === 429) {
        const seconds = Number(response.headers.get("retry-after"));
        return { why: "429", waitMs: Math.min(Number.isFinite(seconds) ? seconds * 1000 : RETRY_MS, FULL_RETRY_CAP_MS) + RETRY_MS };
      }
      return { why: `${response.status} ${text}` };
    } catch (error) {
      this.#signal.throwIfAborted();
      const { name, cause } = error as Error & { cause?: { code?: string } };
      return { why: cause?.code ?? name, waitMs: RETRY_MS };
    } finally {
      this.unanswered--;
    }
  }
}
