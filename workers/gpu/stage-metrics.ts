import type { StageResult } from "../../queues/contracts.ts";
import type { MetricCounts } from "../../queues/metrics.ts";
import { clientJobId, type Role } from "../../queues/names.ts";
import type { SwapRecord } from "./dispatcher.ts";
import { isGivenUp } from "./job-tally.ts";
import type { StageJob } from "./manual-worker.ts";

/** What the worker's stages and swaps add to the system's metrics (see `queues/metrics.ts`). A vote itself runs on no model and says nothing. */
export class StageMetrics {
  readonly #counts: MetricCounts;

  constructor(counts: MetricCounts) {
    this.#counts = counts;
  }

  /** Only a first attempt tells how long the job waited. */
  picked(role: Role, job: StageJob, at: number): void {
    if (!isFirstStage(role, job) || job.attemptsStarted > 1) return;
    this.#counts.observe("mathllm_queue_wait_seconds", labelsOf(role, job), at - job.data.acceptedAt);
  }

  completed(role: Role, job: StageJob, { vote, firstTokenAt, usage }: StageResult): void {
    const { acceptedAt } = job.data;
    const labels = labelsOf(role, job);
    const finishedAt = job.finishedOn ?? Date.now();
    if (vote === undefined) {
      this.#counts.count("mathllm_stages_total", { ...labels, outcome: "completed" });
      this.#counts.count("mathllm_tokens_total", { model: role, kind: "prompt" }, usage.promptTokens);
      this.#counts.count("mathllm_tokens_total", { model: role, kind: "completion" }, usage.completionTokens);
      if (job.processedOn !== undefined) this.#counts.observe("mathllm_service_seconds", labels, finishedAt - job.processedOn);
      if (firstTokenAt !== null && isFirstStage(role, job)) this.#counts.observe("mathllm_ttft_seconds", labels, firstTokenAt - acceptedAt);
    }
    if (job.id === clientJobId(job.id!)) this.#counts.observe("mathllm_e2e_seconds", labels, finishedAt - acceptedAt);
  }

  /** `reason`: as BullMQ keeps it. */
  failed(role: Role, job: StageJob, reason: string): void {
    this.#counts.count("mathllm_stages_total", { ...labelsOf(role, job), outcome: isGivenUp(reason) ? "cancelled" : "failed" });
  }

  swapped({ to, totalMs }: SwapRecord): void {
    this.#counts.observe("mathllm_swap_seconds", { model: to }, totalMs);
  }
}

const labelsOf = (role: Role, { data }: StageJob) => ({ model: role, class: data.priority });

function isFirstStage(role: Role, { data }: StageJob): boolean {
  return role === "student" || data.kind !== "explain" || data.solved !== undefined;
}
