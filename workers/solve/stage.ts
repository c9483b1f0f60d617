import { UnrecoverableError, WaitingError } from "bullmq";
import { isCacheable } from "../../queues/cache-key.ts";
import { cancelledAt } from "../../queues/cancellation.ts";
import type { Redis } from "../../queues/connection.ts";
import { ALONE_AFTER_CRASHES, type ChatMessage, jobDataSchema, type PublishedModel, type StageResult } from "../../queues/contracts.ts";
import { failedReasonOf, MathllmError } from "../../queues/errors.ts";
import { isVote } from "../../queues/job-stages.ts";
import { deadlineDetail } from "../../queues/job-view.ts";
import { CLASS_PRIORITY, clientJobId, type Role, studentStageId } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { TokenStreamWriter } from "../../queues/token-stream.ts";
import { traced, tracePast } from "../../queues/tracing.ts";
import { describeDeath, isOwnFault, type ServerDeath } from "../gpu/guardrails.ts";
import type { StageJob, StageProcessor } from "../gpu/manual-worker.ts";
import type { Resident } from "../gpu/model-slot.ts";
import { countVote, letOthersPass, refuseIfSettled } from "./vote.ts";

/** What differs between solving and explaining. */
export interface Stage {
  role: Role;
  messages(job: StageJob): Promise<ChatMessage[]>;
  answer(text: string, truncated: boolean): string | null;
}

/** Abort reasons that mean "put the job back", not "fail it". */
export class HandBack extends Error {}

export interface StageDeps {
  redis: Redis;
  queues: Queues;
  resident: () => Resident | null;
  /** Whether that server died; null when it lives. */
  deathOf: (resident: Resident) => Promise<ServerDeath | null>;
  /** The most tokens of an answer, and the most milliseconds on the model. */
  maxTokens: number;
  jobTimeoutMs: number;
  retentionSeconds: number;
  /** Brings the parent of a finally failed stage to where it ends without its model. */
  endParent: (jobId: string) => Promise<void>;
  /** Why this role's model can't be loaded at the moment; null when it can. */
  unavailable: () => string | null;
  /** What decides an answer of this model. */
  publishedModel: (resident: Resident) => PublishedModel;
  /** Keeps an answer of this model for identical requests. Errors are its own. */
  remember: (job: StageJob, result: StageResult, model: PublishedModel) => Promise<void>;
  /** A job was set aside because its model server died under it, alone. */
  onPoison: (jobId: string, detail: string) => void;
  onError: (error: Error) => void;
}

/**
 * The processor of one stage: one request to the resident model, streamed.
 * A cancelled or late job ends without the model. Errors leave as BullMQ wants them: retryable ones as plain errors, others
 * as `UnrecoverableError`, the code in front of the message (see `failedReasonOf`). A job whose server died goes back to its
 * queue without using up an attempt: it is not to blame, unless that keeps happening (see `afterDeath`).
 */
export function stageProcessor(stage: Stage, deps: StageDeps): StageProcessor {
  return (job, token, signal) => {
    const { traceparent, tracestate, priority, acceptedAt } = job.data;
    const parent = { traceparent, tracestate };
    const attributes = { "mathllm.job_id": clientJobId(job.id!), "mathllm.model": stage.role, "mathllm.class": priority };
    if (job.attemptsStarted === 1) tracePast(`${stage.role} queue`, Math.max(job.timestamp, acceptedAt), parent, attributes);
    return traced(`${stage.role} stage`, { kind: "consumer", parent, attributes }, () => process(job, token, signal));
  };

  async function process(...[job, token, signal]: Parameters<StageProcessor>): Promise<StageResult> {
    const resident = isVote(job) ? null : deps.resident();
    try {
      const result = await runStage(stage, deps, job, resident, signal);
      // A fragment is not explained: its parent ends without the Talker. Before the completion, so that no swap begins for it.
      if (result.truncated && job.id === studentStageId(clientJobId(job.id!))) await deps.endParent(clientJobId(job.id!));
      return result;
    } catch (error) {
      const reason = signal.aborted && signal.reason instanceof Error ? signal.reason : error;
      const broken = reason instanceof MathllmError && reason.code === "engine-failed" && resident !== null;
      const death = broken ? await deps.deathOf(resident) : null;
      const cause = death === null ? reason : await afterDeath(job, death);
      if (cause instanceof HandBack) {
        await job.moveToWait(token);
        throw new WaitingError();
      }
      const known = cause instanceof MathllmError ? cause : new MathllmError("internal-error", String(cause));
      if (known.code === "job-crashes-model") deps.onPoison(clientJobId(job.id!), known.message);
      // A vote counted again comes to the same.
      const final = !known.retryable || isVote(job) || job.attemptsMade + 1 >= (job.opts.attempts ?? 1);
      // BullMQ will put the parent among its model's work; at the front it ends without that model. Before the failure, so that no swap begins for it.
      if (final && job.opts.failParentOnFailure === true) await deps.endParent(clientJobId(job.id!));
      throw final ? new UnrecoverableError(failedReasonOf(known)) : new Error(failedReasonOf(known));
    }
  }
}

/**
 * What becomes of a job whose model server died under it. A death that can have been the job's doing is counted; a job that was there
 * twice runs alone from then on (the dispatcher sees to it), and when the server dies again it is the job's doing, and it is set aside.
 */
async function afterDeath(job: StageJob, death: ServerDeath): Promise<Error> {
  const before = job.data.crashes ?? 0;
  if (!isOwnFault(death)) return new HandBack("its model server was killed");
  if (before >= ALONE_AFTER_CRASHES) {
    return new MathllmError(
      "job-crashes-model",
      `The model server died ${before + 1} times while it ran this job, the last time with no other job beside it. ${describeDeath(death)}`,
    );
  }
  await job.updateData({ ...job.data, crashes: before + 1 });
  return new HandBack("its model server died");
}

async function runStage(
  stage: Stage,
  deps: StageDeps,
  job: StageJob,
  resident: Resident | null,
  signal: AbortSignal,
): Promise<StageResult> {
  const data = jobDataSchema.parse(job.data);
  const jobId = clientJobId(job.id!);
  if (data.sample === 0 && job.attemptsStarted === 1) await letOthersPass(deps.queues, job);
  if ((await cancelledAt(deps.redis, jobId)) !== null) throw new MathllmError("cancelled", "Cancelled on request.");
  const remainingMs = (data.deadlineAt ?? Number.POSITIVE_INFINITY) - Date.now();
  if (remainingMs <= 0) throw new MathllmError("deadline-exceeded", deadlineDetail(data, deps.unavailable()));
  if (isVote(job)) {
    const { drawnBy, ...result } = await countVote(deps.queues, job);
    if (drawnBy !== undefined) await deps.remember(job, result, drawnBy);
    return result;
  }
  if (data.sample !== undefined) await refuseIfSettled(deps.queues, job);
  const messages = await stage.messages(job);
  if (resident?.role !== stage.role) {
    // The server died just now, or the job was to be ended and then had its chance after all: it waits in its own class.
    await job.changePriority({ priority: CLASS_PRIORITY[data.priority] });
    throw new HandBack("its model is not resident");
  }

  const late =
    remainingMs < deps.jobTimeoutMs
      ? new MathllmError("deadline-exceeded", deadlineDetail(data, deps.unavailable()))
      : new MathllmError(
          "job-timeout",
          `The answer took longer than ${deps.jobTimeoutMs} ms on the model. Raise JOB_TIMEOUT_MS or lower maxTokens.`,
        );
  const clock = new AbortController();
  const timer = setTimeout(() => clock.abort(late), Math.min(remainingMs, deps.jobTimeoutMs));
  const written = { role: stage.role, attempt: job.attemptsStarted, sample: data.sample ?? null };
  const stream = new TokenStreamWriter(deps.redis, jobId, written, deps.retentionSeconds, deps.onError);
  let firstTokenAt: number | null = null;
  try {
    const { temperature, topP, topK, minP, seed, stop } = data.sampling;
    const reply = await resident.client.chat(
      {
        messages,
        maxTokens: Math.min(data.sampling.maxTokens ?? deps.maxTokens, deps.maxTokens),
        temperature,
        topP,
        topK,
        minP,
        seed,
        stop,
      },
      {
        signal: AbortSignal.any([signal, clock.signal]),
        onText: (text) => {
          if (firstTokenAt === null) {
            firstTokenAt = Date.now();
            job.updateProgress({ firstTokenAt }).catch(deps.onError);
          }
          stream.write(text);
        },
      },
    );
    const truncated = reply.finishReason === "length";
    const result: StageResult = {
      role: stage.role,
      text: reply.text,
      answer: stage.answer(reply.text, truncated),
      truncated,
      usage: { promptTokens: reply.promptTokens, completionTokens: reply.completionTokens },
      modelId: resident.model.modelId,
      firstTokenAt,
    };
    const model = deps.publishedModel(resident);
    if (data.sample !== undefined) return isCacheable(data) ? { ...result, drawnBy: model } : result;
    // Before the job is completed: whoever comes when it is no longer in flight finds its answer.
    await deps.remember(job, result, model);
    return result;
  } finally {
    clearTimeout(timer);
    stream.end();
  }
}
