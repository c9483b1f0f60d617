import type { Redis } from "./connection.ts";
import { KEY_PREFIX } from "./names.ts";

/** Every metric of `/metrics`: all that dashboards and alerts may use. Names get `mathllm_` in front. */
export interface Metric {
  name: string;
  type: "gauge" | "counter" | "histogram";
  labels: readonly string[];
  help: string;
}

const perClass = ["model", "class"] as const;
const gauge = <L extends string>(name: string, help: string, ...labels: L[]) => ({ name, type: "gauge", help, labels }) as const;
const counter = <L extends string>(name: string, help: string, ...labels: L[]) => ({ name, type: "counter", help, labels }) as const;
const histogram = <L extends string>(name: string, help: string, ...labels: L[]) => ({ name, type: "histogram", help, labels }) as const;

export const METRICS = [
  gauge("mathllm_jobs_waiting", "Jobs that wait for their model", ...perClass),
  gauge("mathllm_jobs_active", "Jobs on their model", "model"),
  gauge("mathllm_oldest_job_age_seconds", "Age of the oldest waiting job", ...perClass),
  gauge("mathllm_workers_live", "Workers that have beaten within five seconds, those that stand by included"),
  gauge("mathllm_model_resident", "1 for the model that is resident", "gpu", "model"),
  gauge("mathllm_model_circuit_open", "1 while the model is not loaded because it failed again and again", "gpu", "model"),
  gauge("mathllm_vram_used_bytes", "VRAM in use, by whatever program; absent without a GPU", "gpu"),
  gauge("mathllm_vram_total_bytes", "The GPU's VRAM; absent without a GPU", "gpu"),
  gauge("mathllm_cache_bytes", "Cached answers in Redis"),
  counter("mathllm_swaps_total", "Swaps of the GPU's worker since its start", "gpu"),
  counter("mathllm_cache_requests_total", "Cacheable requests by what became of them: hit, miss, coalesced", "outcome"),
  counter(
    "mathllm_stages_total",
    "Stages that ended on a worker: completed, failed, cancelled (late ones included)",
    ...perClass,
    "outcome",
  ),
  counter("mathllm_tokens_total", "Tokens read (prompt) and written (completion) by the models, of completed stages", "model", "kind"),
  counter("mathllm_refused_total", "Requests answered with 429, by the problem's code", "code"),
  counter("mathllm_webhook_attempts_total", "Calls of webhooks: delivered, failed", "outcome"),
  histogram("mathllm_queue_wait_seconds", "From acceptance to the pick of a job's first stage; of a vote each sample's", ...perClass),
  histogram("mathllm_ttft_seconds", "From acceptance to the first token of a job's first stage, completed ones", ...perClass),
  histogram("mathllm_service_seconds", "From the pick to the end of a completed stage", ...perClass),
  histogram(
    "mathllm_e2e_seconds",
    "From acceptance to the end of a completed job, by the model of its last stage; without cached answers",
    ...perClass,
  ),
  histogram("mathllm_swap_seconds", "From the last pick of the old model to ready, by the model that was loaded", "model"),
] as const satisfies Metric[];

/** Of the histograms, seconds: for answers of a few milliseconds and for jobs that wait an hour. */
export const BUCKETS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];

type Of<T extends Metric["type"]> = Extract<(typeof METRICS)[number], { type: T }>;
type Labels<M extends Metric> = { [L in M["labels"][number]]: string };
type Counter = Of<"counter">;
type Histogram = Of<"histogram">;

const KEY = `${KEY_PREFIX}:metrics`;
const FLUSH_MS = 100;
const BEYOND = BUCKETS_S.length;

/**
 * Counts of all processes together, in one hash of Redis: they outlive every process, and any API process can tell them. What is counted
 * reaches Redis within `FLUSH_MS`; a process that is killed loses no more than that.
 */
export class MetricCounts {
  readonly #redis: Redis;
  readonly #onError: (error: Error) => void;
  #pending = new Map<string, number>();
  #timer: NodeJS.Timeout | undefined;

  constructor(redis: Redis, onError: (error: Error) => void) {
    this.#redis = redis;
    this.#onError = onError;
  }

  count<N extends Counter["name"]>(name: N, labels: Labels<Extract<Counter, { name: N }>>, by = 1): void {
    this.#add(fieldOf(name, labels, "count"), by);
  }

  observe<N extends Histogram["name"]>(name: N, labels: Labels<Extract<Histogram, { name: N }>>, ms: number): void {
    const bucket = BUCKETS_S.findIndex((le) => ms <= le * 1000);
    this.#add(fieldOf(name, labels, String(bucket === -1 ? BEYOND : bucket)), 1);
    this.#add(fieldOf(name, labels, "ms"), Math.max(Math.round(ms), 0));
  }

  /** Resolves when what was counted is in Redis, or has to wait for the next time. */
  async flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const taken = this.#pending;
    if (taken.size === 0) return;
    this.#pending = new Map();
    try {
      const adding = this.#redis.multi();
      for (const [field, by] of taken) adding.hincrby(KEY, field, by);
      await adding.exec();
    } catch (error) {
      for (const [field, by] of taken) this.#add(field, by);
      this.#onError(error as Error);
    }
  }

  #add(field: string, by: number): void {
    this.#pending.set(field, (this.#pending.get(field) ?? 0) + by);
    this.#timer ??= setTimeout(() => void this.flush(), FLUSH_MS).unref();
  }
}

/** Label values are words of ours, which hold no `|`. */
function fieldOf(name: string, labels: Record<string, string>, part: string): string {
  const { labels: order } = METRICS.find((metric) => metric.name === name)!;
  return [name, ...order.map((label) => labels[label]), part].join("|");
}

export interface Series {
  name: string;
  labels: Record<string, string>;
  /** A counter's `count`; a histogram's `ms` in all, and how many observations fell into each bucket, by its place in `BUCKETS_S`. */
  parts: Map<string, number>;
}

/** What all processes have counted since the beginning. */
export async function readMetricCounts(redis: Redis): Promise<Series[]> {
  const series = new Map<string, Series>();
  for (const [field, value] of Object.entries(await redis.hgetall(KEY))) {
    const [name = "", ...rest] = field.split("|");
    const part = rest.pop()!;
    const metric = METRICS.find((each) => each.name === name);
    // Counted by another version.
    if (metric === undefined || metric.labels.length !== rest.length) continue;
    const key = [name, ...rest].join("|");
    const labels = Object.fromEntries(metric.labels.map((label, i) => [label, rest[i]!]));
    const one = series.get(key) ?? { name, labels, parts: new Map() };
    series.set(key, one);
    one.parts.set(part, Number(value));
  }
  return [...series.values()];
}
