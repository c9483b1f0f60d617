import { createHash } from "node:crypto";
import { z } from "zod";
import type { Config } from "../queues/config.ts";
import { JOB_DATA_VERSION, type JobData, type SolveRequest } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { jobOptions } from "../queues/job-options.ts";
import { isExplainId, type JobKind, keys, newJobId, roleOfJobId, studentStageId } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import type { Admission } from "./admission.ts";
import { requestHash } from "./solve-request.ts";

const recordSchema = z.object({ jobId: z.string(), bodyHash: z.string() });

export interface Submitted {
  jobId: string;
  /** Milliseconds; null when unknown, or for a replayed job. */
  estimatedWaitMs: number | null;
  /** The Idempotency-Key had been used for the same request: this is its job. */
  replayed: boolean;
}

function kindOf(request: SolveRequest): JobKind {
  if (request.explain) return "explain";
  return request.model === "student" ? "solve" : "talk";
}

/** Puts a job into Redis; when it resolves, the job is there. `admission` may refuse it. */
export async function submit(
  queues: Queues,
  config: Config,
  request: SolveRequest,
  { idempotencyKey, admission }: { idempotencyKey?: string; admission?: Admission } = {},
): Promise<Submitted> {
  const acceptedAt = Date.now();
  const jobId = newJobId(kindOf(request));
  const addNow = async (id: string) => {
    const store = (estimatedWaitMs: number | null) => add(queues, config, id, request, acceptedAt, estimatedWaitMs);
    if (admission !== undefined) return admission.admit(request, acceptedAt, store);
    await store(null);
    return null;
  };
  if (idempotencyKey === undefined) return { jobId, estimatedWaitMs: await addNow(jobId), replayed: false };
  // The record comes first and settles the id: whoever finds it adds the job under that id if it is missing, which BullMQ does once.
  const bodyHash = requestHash(request);
  const key = keys.idempotency(createHash("sha256").update(idempotencyKey).digest("hex"));
  const isNew = (await queues.redis.set(key, JSON.stringify({ jobId, bodyHash }), "EX", config.jobRetentionSeconds, "NX")) === "OK";
  const earlier = isNew ? null : await queues.redis.get(key);
  if (earlier === null) {
    try {
      return { jobId, estimatedWaitMs: await addNow(jobId), replayed: false };
    } catch (error) {
      // Refused, not lost: the key is free for another try.
      if (error instanceof MathllmError) await queues.redis.del(key);
      throw error;
    }
  }
  const record = recordSchema.parse(JSON.parse(earlier));
  if (record.bodyHash !== bodyHash) {
    throw new MathllmError("idempotency-conflict", "This Idempotency-Key came before with another body. Use a new key for a new request.", {
      extra: { jobId: record.jobId },
    });
  }
  const queue = queues[roleOfJobId(record.jobId) ?? "student"];
  const estimatedWaitMs = (await queue.getJob(record.jobId)) === undefined ? await addNow(record.jobId) : null;
  return { jobId: record.jobId, estimatedWaitMs, replayed: true };
}

async function add(
  queues: Queues,
  config: Config,
  jobId: string,
  request: SolveRequest,
  acceptedAt: number,
  estimatedWaitMs: number | null,
): Promise<void> {
  const kind = kindOf(request);
  const data: JobData = {
    version: JOB_DATA_VERSION,
    kind,
    problem: request.problem,
    sampling: request.sampling,
    priority: request.priority,
    acceptedAt,
    ...(request.timeoutMs === undefined ? {} : { deadlineAt: acceptedAt + request.timeoutMs }),
    ...(estimatedWaitMs === null ? {} : { estimatedWaitMs }),
    ...(request.metadata === undefined ? {} : { metadata: request.metadata }),
  };
  const options = { priority: request.priority, attempts: config.jobAttempts, retentionSeconds: config.jobRetentionSeconds };
  if (data.deadlineAt !== undefined) await queues.redis.zadd(keys.deadlines, data.deadlineAt, jobId);
  if (isExplainId(jobId)) {
    const child = { name: kind, queueName: "student", data, opts: jobOptions({ ...options, jobId: studentStageId(jobId), isChild: true }) };
    await queues.flows.add({ name: kind, queueName: "talker", data, opts: jobOptions({ ...options, jobId }), children: [child] });
  } else {
    await queues[roleOfJobId(jobId) ?? "student"].add(kind, data, jobOptions({ ...options, jobId }));
  }
}
