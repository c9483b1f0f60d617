import type { Logger } from "pino";
import type { AnswerCache } from "../../queues/answer-cache.ts";
import { explainKey, isCacheable, solveKey, talkKey } from "../../queues/cache-key.ts";
import { moveToEnding } from "../../queues/cancellation.ts";
import type { Config } from "../../queues/config.ts";
import type { Redis } from "../../queues/connection.ts";
import type { StageResult } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { endedForItself, moveOn } from "../../queues/followers.ts";
import { clientJobId, isExplainId, type Role, roleOfJobId, studentStageId } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { endFlight } from "../../queues/single-flight.ts";
import { ManualWorker, type StageJob } from "../gpu/manual-worker.ts";
import type { ModelSlot, Resident } from "../gpu/model-slot.ts";
import type { Telemetry } from "../gpu/telemetry.ts";
import { PROMPT_VERSION } from "./prompts.ts";
import { HandBack, stageProcessor } from "./stage.ts";
import { studentStage } from "./student.ts";
import { solutionOf, talkerStage } from "./talker.ts";

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
      resident: () => slotOf(role).resident,
      deathOf: (resident) => slotOf(role).deathOf(resident),
      maxTokens: config.profiles[role].maxTokens,
      jobTimeoutMs: config.jobTimeoutMs,
      retentionSeconds: config.jobRetentionSeconds,
      unavailable: () => unavailable(role),
      endParent: (jobId) => moveToEnding(queues, jobId),
      remember: async (job, result, resident) => {
        try {
          await remember(cache, role, config, job, result, resident);
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
  const landed = (job: StageJob) => landFlight(queues, config, job).catch(onError);
  worker.on("completed", (job, result) => {
    onDone(role);
    void landed(job);
    recordJob(telemetry, job, "completed", result);
  });
  worker.on("failed", (job, error) => {
    if (job?.finishedOn !== undefined) void landed(job);
    if (job !== undefined) recordJob(telemetry, job, job.finishedOn === undefined ? "retrying" : "failed", null, error.message);
  });
  return worker;
}

/** Keeps a whole answer of a request that may be cached, under the model that really gave it. */
async function remember(
  cache: AnswerCache,
  role: Role,
  config: Config,
  job: StageJob,
  result: StageResult,
  resident: Resident,
): Promise<void> {
  if (result.truncated || !isCacheable(job.data)) return;
  const { modelId, digest } = resident.model;
  const model = { modelId, digest, promptVersion: PROMPT_VERSION, maxTokens: config.profiles[role].maxTokens };
  if (role === "student") return cache.put(solveKey(model, job.data), { result });
  if (job.data.kind === "talk") return cache.put(talkKey(model, job.data), { result });
  const solved = await solutionOf(job);
  if (solved !== undefined) await cache.put(explainKey(model, job.data, solved), { result, solved });
}

/** A whole job has ended: the next identical request leads a flight of its own, and followers that got no answer go on. */
async function landFlight(queues: Queues, config: Config, job: StageJob): Promise<void> {
  const jobId = clientJobId(job.id!);
  const { flightKey } = job.data;
  if (flightKey === undefined || job.id !== jobId) return;
  await endFlight(queues.redis, flightKey, jobId);
  const failed = Boolean(job.failedReason);
  if (failed && (await endedForItself(queues, jobId, job.data))) await moveOn(queues, config, jobId);
}

function recordJob(telemetry: Telemetry, job: StageJob, outcome: string, result: StageResult | null, error?: string): void {
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
    ...(error === undefined ? {} : { error }),
  });
}

/** A cancel reaches whichever stage of the job runs here. */
export function cancelRunning(workers: Record<Role, ManualWorker>, jobId: string): void {
  const reason = new MathllmError("cancelled", "Cancelled on request.") as unknown as string;
  if (isExplainId(jobId)) workers.student.cancelJob(studentStageId(jobId), reason);
  const role = roleOfJobId(jobId);
  if (role !== undefined) workers[role].cancelJob(jobId, reason);
}
