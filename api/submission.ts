import { createHash } from "node:crypto";
import { z } from "zod";
import type { AnswerCache } from "../queues/answer-cache.ts";
import { cachedView } from "../queues/cached-view.ts";
import type { Config } from "../queues/config.ts";
import { JOB_DATA_VERSION, type JobData, type JobView, type SolveRequest } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { followLeader, moveOn } from "../queues/followers.ts";
import { cacheEntryOf, type JobKind, keys, newJobId, roleOfJobId } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import { endFlight, joinFlight, readFollower } from "../queues/single-flight.ts";
import { storeJob } from "../queues/store-job.ts";
import type { Admission } from "./admission.ts";
import type { AnswerLookup, Lookup } from "./answer-lookup.ts";
import { requestHash } from "./solve-request.ts";

const recordSchema = z.object({ jobId: z.string(), bodyHash: z.string() });

export interface Submitted {
  jobId: string;
  /** Milliseconds; null when unknown, or for a replayed job. */
  estimatedWaitMs: number | null;
  /** The Idempotency-Key had been used for the same request: this is its job. */
  replayed: boolean;
  /** The answer was in the cache: its finished view. No job was made. */
  cached: JobView | null;
}

export interface SubmitOptions {
  idempotencyKey?: string;
  /** May refuse the job. */
  admission?: Admission;
  /** Without it nothing comes from the cache, and identical requests are computed each for itself. */
  answers?: { lookup: AnswerLookup; cache: AnswerCache };
}

function kindOf(request: SolveRequest): JobKind {
  if (request.explain) return "explain";
  return request.model === "student" ? "solve" : "talk";
}

/** Puts a job into Redis, or finds its answer in the cache, or lets it follow an identical one; when it resolves, that has happened. */
export async function submit(queues: Queues, config: Config, request: SolveRequest, options: SubmitOptions = {}): Promise<Submitted> {
  const acceptedAt = Date.now();
  const jobId = newJobId(kindOf(request));
  const { idempotencyKey } = options;
  if (idempotencyKey === undefined) return place(queues, config, jobId, request, acceptedAt, options);
  // The record comes first and settles the id: whoever finds it adds the job under that id if it is missing, which BullMQ does once.
  const bodyHash = requestHash(request);
  const key = keys.idempotency(createHash("sha256").update(idempotencyKey).digest("hex"));
  const record = (id: string) => JSON.stringify({ jobId: id, bodyHash });
  const isNew = (await queues.redis.set(key, record(jobId), "EX", config.jobRetentionSeconds, "NX")) === "OK";
  const earlier = isNew ? null : await queues.redis.get(key);
  if (earlier === null) {
    try {
      const placed = await place(queues, config, jobId, request, acceptedAt, options);
      if (placed.cached !== null) await queues.redis.set(key, record(placed.jobId), "EX", config.jobRetentionSeconds);
      return placed;
    } catch (error) {
      // Refused, not lost: the key is free for another try.
      if (error instanceof MathllmError) await queues.redis.del(key);
      throw error;
    }
  }
  const { jobId: earlierId, bodyHash: earlierHash } = recordSchema.parse(JSON.parse(earlier));
  if (earlierHash !== bodyHash) {
    throw new MathllmError("idempotency-conflict", "This Idempotency-Key came before with another body. Use a new key for a new request.", {
      extra: { jobId: earlierId },
    });
  }
  if (cacheEntryOf(earlierId) !== undefined) {
    // Answered from the cache before: from there again, or, expired, by a job.
    const placed = await place(queues, config, jobId, request, acceptedAt, options);
    if (placed.cached === null) await queues.redis.set(key, record(jobId), "EX", config.jobRetentionSeconds);
    return { ...placed, replayed: true };
  }
  const known =
    (await queues[roleOfJobId(earlierId) ?? "student"].getJob(earlierId)) !== undefined ||
    (await readFollower(queues.redis, earlierId)) !== undefined;
  if (known) return { jobId: earlierId, estimatedWaitMs: null, replayed: true, cached: null };
  return { ...(await place(queues, config, earlierId, request, acceptedAt, options)), replayed: true };
}

async function place(
  queues: Queues,
  config: Config,
  jobId: string,
  request: SolveRequest,
  acceptedAt: number,
  { admission, answers }: SubmitOptions,
): Promise<Submitted> {
  const kind = kindOf(request);
  const fromCache = ({ hit }: Lookup): Submitted | null => {
    if (hit === null || answers === undefined) return null;
    answers.cache.count("hit");
    const cached = cachedView(kind, hit.cacheKey, hit.entry, { request, at: acceptedAt });
    return { jobId: cached.jobId, estimatedWaitMs: null, replayed: false, cached };
  };
  const found = (await answers?.lookup.find(kind, request)) ?? { hit: null, flightKey: null };
  const hit = fromCache(found);
  if (hit !== null) return hit;
  const { flightKey, solved } = found;
  const dataOf = (estimatedWaitMs: number | null) => jobData(kind, request, acceptedAt, { estimatedWaitMs, flightKey, solved });
  if (flightKey !== null && answers !== undefined) {
    const leaderId = await joinFlight(queues.redis, flightKey, jobId, config.jobRetentionSeconds);
    if (leaderId !== jobId) {
      await followLeader(queues, config, jobId, { leaderId, data: dataOf(null) });
      answers.cache.count("coalesced");
      return { jobId, estimatedWaitMs: null, replayed: false, cached: null };
    }
    // The one before may have landed between the look and the start: its answer is in the cache by now.
    const landed = fromCache(await answers.lookup.find(kind, request));
    if (landed !== null) {
      await endFlight(queues.redis, flightKey, jobId);
      await moveOn(queues, config, jobId);
      return landed;
    }
    answers.cache.count("miss");
  }
  const store = (estimatedWaitMs: number | null) => storeJob(queues, config, jobId, dataOf(estimatedWaitMs));
  try {
    const estimatedWaitMs = admission === undefined ? null : await admission.admit(request, acceptedAt, store);
    if (admission === undefined) await store(null);
    return { jobId, estimatedWaitMs, replayed: false, cached: null };
  } catch (error) {
    if (flightKey !== null && error instanceof MathllmError) {
      await endFlight(queues.redis, flightKey, jobId);
      await moveOn(queues, config, jobId);
    }
    throw error;
  }
}

function jobData(
  kind: JobKind,
  request: SolveRequest,
  acceptedAt: number,
  { estimatedWaitMs, flightKey, solved }: { estimatedWaitMs: number | null; flightKey: string | null; solved?: JobData["solved"] },
): JobData {
  return {
    version: JOB_DATA_VERSION,
    kind,
    problem: request.problem,
    sampling: request.sampling,
    priority: request.priority,
    cache: request.cache,
    acceptedAt,
    ...(flightKey === null ? {} : { flightKey }),
    ...(solved === undefined ? {} : { solved }),
    ...(request.timeoutMs === undefined ? {} : { deadlineAt: acceptedAt + request.timeoutMs }),
    ...(estimatedWaitMs === null ? {} : { estimatedWaitMs }),
    ...(request.metadata === undefined ? {} : { metadata: request.metadata }),
  };
}
