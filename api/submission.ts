import { createHash } from "node:crypto";
import { z } from "zod";
import type { AnswerCache } from "../queues/answer-cache.ts";
import { cachedView } from "../queues/cached-view.ts";
import type { Config } from "../queues/config.ts";
import { JOB_DATA_VERSION, type JobData, type JobRequest, type JobView } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { followLeader, moveOn } from "../queues/followers.ts";
import { type JobOwner, releasePlace, takePlace } from "../queues/job-places.ts";
import { loadJobView } from "../queues/job-view.ts";
import { cacheEntryOf, type JobKind, keys, newJobId, roleOfJobId } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import { endFlight, joinFlights, readFollower } from "../queues/single-flight.ts";
import { storeJob } from "../queues/store-job.ts";
import { traceHeaders } from "../queues/tracing.ts";
import type { Admission } from "./admission.ts";
import type { AnswerLookup, Lookup } from "./answer-lookup.ts";
import { requestHash } from "./solve-request.ts";
import type { Webhooks } from "./webhooks.ts";

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
  /** The API key that hands it in. The job takes one of its places, and its Idempotency-Keys are its own. */
  owner?: JobOwner;
  /** Without it a request with a webhook is refused. */
  webhooks?: Webhooks;
  /** May refuse the job. */
  admission?: Admission;
  /** Without it nothing comes from the cache, and identical requests are computed each for itself. */
  answers?: { lookup: AnswerLookup; cache: AnswerCache };
}

export function kindOf(request: JobRequest): JobKind {
  if (request.explain) return "explain";
  return request.model === "student" ? "solve" : "talk";
}

/** Puts a job into Redis, or finds its answer in the cache, or lets it follow an identical one; when it resolves, that has happened. */
export async function submit(queues: Queues, config: Config, request: JobRequest, options: SubmitOptions = {}): Promise<Submitted> {
  const { webhook } = request;
  if (webhook !== undefined && options.webhooks === undefined) throw new MathllmError("invalid-request", "webhook: expected none here.");
  if (webhook !== undefined) options.webhooks?.check(webhook.url);
  const acceptedAt = Date.now();
  const jobId = newJobId(kindOf(request));
  const digest = idempotencyDigest(options);
  if (digest === undefined) return place(queues, config, jobId, request, acceptedAt, options);
  // The record comes first and settles the id: whoever finds it adds the job under that id if it is missing, which BullMQ does once.
  const bodyHash = requestHash(request);
  // It begins to expire when its job has ended.
  const key = keys.idempotency(digest);
  const record = (id: string) => JSON.stringify({ jobId: id, bodyHash });
  const isNew = (await queues.redis.set(key, record(jobId), "NX")) === "OK";
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
    await queues.redis.set(key, record(jobId));
    let cachedId: string | undefined = earlierId;
    try {
      const placed = await place(queues, config, jobId, request, acceptedAt, options);
      cachedId = placed.cached?.jobId;
      return { ...placed, replayed: true };
    } finally {
      if (cachedId !== undefined) await queues.redis.set(key, record(cachedId), "EX", config.jobRetentionSeconds);
    }
  }
  const known =
    (await queues[roleOfJobId(earlierId) ?? "student"].getJob(earlierId)) !== undefined ||
    (await readFollower(queues.redis, earlierId)) !== undefined;
  if (known) return { jobId: earlierId, estimatedWaitMs: null, replayed: true, cached: null };
  return { ...(await place(queues, config, earlierId, request, acceptedAt, options)), replayed: true };
}

/** The Idempotency-Keys of an API key are its own. */
function idempotencyDigest({ idempotencyKey, owner }: SubmitOptions): string | undefined {
  if (idempotencyKey === undefined) return undefined;
  const scoped = owner === undefined ? idempotencyKey : `${owner.name}\n${idempotencyKey}`;
  return createHash("sha256").update(scoped).digest("hex");
}

/** Places a request under an id that is settled already. */
export async function place(
  queues: Queues,
  config: Config,
  jobId: string,
  request: JobRequest,
  acceptedAt: number,
  options: SubmitOptions,
): Promise<Submitted> {
  const { owner, webhooks } = options;
  const url = request.webhook?.url;
  const undo = async () => {
    if (owner !== undefined) await releasePlace(queues, owner, jobId);
    if (url !== undefined) await webhooks?.forget(jobId);
  };
  if (owner !== undefined) await takePlace(queues, owner, jobId);
  try {
    if (url !== undefined) await webhooks?.ask(jobId, url);
    const placed = await storeOrFind(queues, config, jobId, request, acceptedAt, options);
    if (placed.cached !== null) {
      // The same request again is told once.
      if (url !== undefined) await webhooks?.deliver(idempotencyDigest(options) ?? jobId, url, placed.cached);
      await undo();
    }
    return placed;
  } catch (error) {
    // What is not of our table may have been stored all the same.
    if (error instanceof MathllmError) await undo();
    throw error;
  }
}

async function storeOrFind(
  queues: Queues,
  config: Config,
  jobId: string,
  request: JobRequest,
  acceptedAt: number,
  options: SubmitOptions,
): Promise<Submitted> {
  const { admission, answers } = options;
  const kind = kindOf(request);
  const fromCache = ({ hit }: Lookup): Submitted | null => {
    if (hit === null || answers === undefined) return null;
    answers.cache.count("hit");
    const cached = cachedView(kind, hit.cacheKey, hit.entry, { request, at: acceptedAt });
    return { jobId: cached.jobId, estimatedWaitMs: null, replayed: false, cached };
  };
  const found = (await answers?.lookup.find(kind, request)) ?? { hit: null, flightKey: null, isCacheable: false };
  const hit = fromCache(found);
  if (hit !== null) return hit;
  const { flightKey } = found;
  const dataOf = (estimatedWaitMs: number | null) => jobData(kind, request, acceptedAt, options, found, estimatedWaitMs);
  if (flightKey !== null && answers !== undefined) {
    for (;;) {
      const [flight] = await joinFlights(queues.redis, [{ flightKey, jobId, answerKey: found.answerKey }]);
      const { leaderId, since } = flight!;
      if (leaderId === jobId) break;
      const follow = () => followLeader(queues, config, jobId, { leaderId, data: dataOf(null) }, since);
      const leaderProgress = async () => {
        const view = await loadJobView(queues, leaderId);
        return view && { estimatedStartMs: view.estimatedStartMs, pickedAt: view.timestamps.pickedAt };
      };
      if (await (admission === undefined ? follow() : admission.admitFollower(request, acceptedAt, leaderProgress, follow))) {
        answers.cache.count("coalesced");
        return { jobId, estimatedWaitMs: null, replayed: false, cached: null };
      }
    }
    // The one before may have landed between the look and the start: its answer is in the cache by now.
    const landed = fromCache(await answers.lookup.find(kind, request));
    if (landed !== null) {
      await endFlight(queues.redis, flightKey, jobId);
      await moveOn(queues, config, jobId);
      return landed;
    }
  }
  if (found.isCacheable) answers?.cache.count("miss");
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

export function jobData(
  kind: JobKind,
  request: JobRequest,
  acceptedAt: number,
  options: SubmitOptions,
  { flightKey, solved }: Lookup,
  estimatedWaitMs: number | null,
): JobData {
  const digest = idempotencyDigest(options);
  return {
    version: JOB_DATA_VERSION,
    kind,
    problem: request.problem,
    ...(request.messages === undefined ? {} : { messages: request.messages }),
    sampling: request.sampling,
    priority: request.priority,
    cache: request.cache,
    acceptedAt,
    ...(options.owner === undefined ? {} : { owner: options.owner.name }),
    ...(digest === undefined ? {} : { idempotencyDigest: digest }),
    ...(request.samples === 1 ? {} : { samples: request.samples }),
    ...(request.expected === undefined ? {} : { expected: request.expected }),
    ...(flightKey === null ? {} : { flightKey }),
    ...(solved === undefined ? {} : { solved }),
    ...(request.timeoutMs === undefined ? {} : { deadlineAt: acceptedAt + request.timeoutMs }),
    ...(estimatedWaitMs === null ? {} : { estimatedWaitMs }),
    ...(request.metadata === undefined ? {} : { metadata: request.metadata }),
    ...traceHeaders(),
  };
}
