import type { Logger } from "pino";
import { gradeOf } from "../../maths/grading.ts";
import type { AnswerCache } from "../../queues/answer-cache.ts";
import { explainKey, isCacheable, solveKey, talkKey } from "../../queues/cache-key.ts";
import { moveToEnding } from "../../queues/cancellation.ts";
import type { Config } from "../../queues/config.ts";
import type { Redis } from "../../queues/connection.ts";
import { MAX_SAMPLES, type PublishedModel, type StageResult } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { landJob } from "../../queues/followers.ts";
import { clientJobId, isExplainId, type Role, roleOfJobId, sampleId, sampleOfId, studentStageId } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { ManualWorker, type StageJob } from "../gpu/manual-worker.ts";
import type { ModelSlot } from "../gpu/model-slot.ts";
import type { Telemetry } from "../gpu/telemetry.ts";
import { PROMPT_VERSION } from "./prompts.ts";
import { HandBack, stageProcessor } from "./stage.ts";
import { studentStage } from "./student.ts";
import { solutionOf, talkerStage } from "./talker.ts";
import { endIfSettled, SETTLED } from "./vote.ts";

export interface StageWorkersOptions {
  /** Locks are taken in its name. */
  workerId: string;
  config: Config;
  redis: Redis;
  queues: Queues;
  telemetry: Telemetry;
  slotOf: (role: Role) => ModelSlot;
  /** Why this role's model can't be loaded at the moment; null when it can. */
  unavailable: (role: Role) => string | null;
  cache: AnswerCache;
  onDone: (role: Role) => void;
  /** A job was set aside because its model server died under it, alone. */
  onPoison: (role: Role, jobId: string, reason: string) => void;
  onError: (error: Error) => void;
  log: Logger;
}

/** The BullMQ worker of each queue, with its stage as processor and every outcome in the telemetry. */
export function createStageWorkers(options: StageWorkersOptions): Record<Role, ManualWorker> {
  return { student: stageWorker("student", options), talker: stageWorker("talker", options) };
}

function stageWorker(role: Role, options: StageWorkersOptions): ManualWorker {
  const { workerId, config, redis, queues, telemetry, slotOf, unavailable, cache, onDone, onPoison, onError, log } = options;
  const worker = new ManualWorker(
    role,
    workerId,
    stageProcessor(role === "student" ? studentStage : talkerStage, {
      redis,
      queues,
      resident: () => slotOf(role).resident,
      deathOf: (resident) => slotOf(role).deathOf(resident),
      maxTokens: config.profiles[role].maxTokens,
      jobTimeoutMs: config.jobTimeoutMs,
      retentionSeconds: config.jobRetentionSeconds,
      unavailable: () => unavailable(role),
      endParent: (jobId) => moveToEnding(queues, jobId),
      publishedModel: ({ model: { modelId, digest } }) => ({
        modelId,
        digest,
        promptVersion: PROMPT_VERSION,
        maxTokens: config.profiles[role].maxTokens,
      }),
      remember: async (job, result, model) => {
        try {
          await remember(cache, role, job, result, model);
        } catch (error) {
          onError(error as Error);
        }
      },
      onPoison: (jobId, reason) => onPoison(role, jobId, reason),
      onError,
    }),
    redis,
  );
  worker.on("error", onError);
  worker.on("stalled", (jobId) =>
    log.warn({ jobId, role }, "the job's lock had expired (its worker died, or Redis was away); it waits again"),
  );
  worker.on("lockRenewalFailed", (jobIds: string[]) => {
    for (const jobId of jobIds) worker.cancelJob(jobId, new HandBack("the lock was lost") as unknown as string);
  });
  const ended = (job: StageJob) => {
    if (job.data.sample !== undefined) endIfSettled(queues, job).catch(onError);
    else if (job.id === clientJobId(job.id!)) landJob(queues, config, job).catch(onError);
  };
  worker.on("completed", (job, result) => {
    // A vote says nothing of the model.
    if (result.vote === undefined) onDone(role);
    ended(job);
    recordJob(telemetry, job, "completed", result);
  });
  worker.on("failed", (job, error) => {
    if (job?.finishedOn !== undefined) ended(job);
    if (job !== undefined) recordJob(telemetry, job, job.finishedOn === undefined ? "retrying" : "failed", null, error.message);
  });
  return worker;
}

/** Keeps a whole answer of a request that may be cached, under the model that really gave it. */
async function remember(cache: AnswerCache, role: Role, job: StageJob, result: StageResult, model: PublishedModel): Promise<void> {
  if (result.truncated || !isCacheable(job.data)) return;
  if (role === "student") return cache.put(solveKey(model, job.data), { result });
  if (job.data.kind === "talk") return cache.put(talkKey(model, job.data), { result });
  const solved = await solutionOf(job);
  if (solved !== undefined) await cache.put(explainKey(model, job.data, solved), { result, solved });
}

function recordJob(telemetry: Telemetry, job: StageJob, outcome: string, result: StageResult | null, error?: string): void {
  const isAnswer = result?.role === "student" && job.data.sample === undefined;
  const grade = isAnswer ? gradeOf(job.data.expected, result.answer) : null;
  telemetry.write("job", {
    jobId: clientJobId(job.id!),
    role: job.queueName,
    class: job.data.priority,
    outcome,
    acceptedAt: job.data.acceptedAt,
    queuedAt: job.timestamp,
    pickedAt: job.processedOn ?? null,
    firstTokenAt: result?.firstTokenAt ?? null,
    doneAt: job.finishedOn ?? null,
    estimatedWaitMs: job.data.estimatedWaitMs ?? null,
    cached: false,
    retries: Math.max(job.attemptsStarted - 1, 0),
    promptTokens: result?.usage.promptTokens ?? null,
    completionTokens: result?.usage.completionTokens ?? null,
    ...(job.data.sample === undefined ? {} : { sample: job.data.sample }),
    ...(result?.vote === undefined ? {} : { agreement: result.vote.agreement, samples: result.vote.samples }),
    ...(grade === null ? {} : { verdict: grade.verdict }),
    ...(error === undefined ? {} : { error }),
  });
}

/** A cancel reaches whichever stage of the job runs here; `id` may name a single sample. */
export function cancelRunning(workers: Record<Role, ManualWorker>, id: string): void {
  const cancel = (role: Role, stageId: string, reason: MathllmError) => workers[role].cancelJob(stageId, reason as unknown as string);
  if (sampleOfId(id) !== undefined) {
    cancel("student", id, SETTLED);
    return;
  }
  const reason = new MathllmError("cancelled", "Cancelled on request.");
  for (let sample = 0; sample < MAX_SAMPLES; sample++) cancel("student", sampleId(id, sample), reason);
  if (isExplainId(id)) cancel("student", studentStageId(id), reason);
  const role = roleOfJobId(id);
  if (role !== undefined) cancel(role, id, reason);
}
