/** Names that both sides of Redis share. Importing this file has no side effects. */

/** The two models' roles. A role names a queue, a model server and a profile. */
export const ROLES = ["student", "talker"] as const;
export type Role = (typeof ROLES)[number];

/** The hash tag keeps every key in one Redis Cluster slot, which flows across both queues need. */
export const KEY_PREFIX = "{mathllm}";

export const PRIORITY_CLASSES = ["interactive", "normal", "batch"] as const;
export type PriorityClass = (typeof PRIORITY_CLASSES)[number];

/**
 * BullMQ priorities, lower first. A job without one would run before all others, so every job gets one.
 * `ENDING_PRIORITY` is for jobs that only have to be ended (cancelled, too late, their Student failed, a vote to be counted): no model is needed.
 */
export const ENDING_PRIORITY = 1;
/** For the next job out of turn: one whose class has waited too long, one that has to run alone. */
export const NEXT_PRIORITY = 2;
export const CLASS_PRIORITY: Record<PriorityClass, number> = { interactive: 10, normal: 100, batch: 1000 };

/** A job's kind stands at the front of its id, so that an id alone tells which queue holds it. */
export const JOB_KINDS = ["solve", "talk", "explain"] as const;
export type JobKind = (typeof JOB_KINDS)[number];

/** The models that a job of this kind needs, in their order. */
export function rolesOfKind(kind: JobKind): readonly Role[] {
  return kind === "explain" ? ROLES : kind === "talk" ? ["talker"] : ["student"];
}

const ID_PATTERN = /^(solve|talk|explain)-[0-9a-f]{32}$/;
/** The id of an answer from the cache names its entry. */
const CACHED_ID_PATTERN = /^cached-(solve|talk|explain)-([0-9a-f]{32})$/;

export function cachedJobId(kind: JobKind, cacheKey: string): string {
  return `cached-${kind}-${cacheKey}`;
}

/** undefined when the id does not name a cache entry. */
export function cacheEntryOf(jobId: string): { kind: JobKind; cacheKey: string } | undefined {
  const [, kind, cacheKey] = CACHED_ID_PATTERN.exec(jobId) ?? [];
  return cacheKey === undefined ? undefined : { kind: kind as JobKind, cacheKey };
}

/** The queue that holds the job a client knows under this id; undefined when the id is not one of ours. */
export function roleOfJobId(jobId: string): Role | undefined {
  const kind = ID_PATTERN.exec(jobId)?.[1];
  if (kind === undefined) return undefined;
  return kind === "solve" ? "student" : "talker";
}

export function newJobId(kind: JobKind): string {
  return `${kind}-${crypto.randomUUID().replaceAll("-", "")}`;
}

export function isExplainId(jobId: string): boolean {
  return jobId.startsWith("explain-");
}

/** The Student stage of an `explain` job is a child job of its own. */
export function studentStageId(jobId: string): string {
  return `${jobId}-solve`;
}

/** One sample of a vote, the Student stage of the job with this id, is a child job of the vote. */
export function sampleId(jobId: string, sample: number): string {
  return `${jobId}-s${sample}`;
}

/** undefined: the job with this id is no sample. */
export function sampleOfId(stageId: string): number | undefined {
  const digits = /-s(\d+)$/.exec(stageId)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/** The id a client knows, given the id of any stage or sample. */
export function clientJobId(stageId: string): string {
  return stageId.replace(/-(solve|s\d+)$/, "");
}

export const keys = {
  workers: `${KEY_PREFIX}:workers`,
  deadlines: `${KEY_PREFIX}:deadlines`,
  cancelChannel: `${KEY_PREFIX}:cancel`,
  cancelled: (jobId: string) => `${KEY_PREFIX}:cancelled:${jobId}`,
  idempotency: (digest: string) => `${KEY_PREFIX}:idempotency:${digest}`,
  publishedModels: `${KEY_PREFIX}:models`,
  cacheEntry: (cacheKey: string) => `${KEY_PREFIX}:cache:entry:${cacheKey}`,
  flight: (flightKey: string) => `${KEY_PREFIX}:flight:${flightKey}`,
  follower: (jobId: string) => `${KEY_PREFIX}:follower:${jobId}`,
  followers: (leaderId: string) => `${KEY_PREFIX}:followers:${leaderId}`,
  followed: (leaderId: string) => `${KEY_PREFIX}:followed:${leaderId}`,
  following: (name: PriorityClass) => `${KEY_PREFIX}:following:${name}`,
  tokenStream: (jobId: string) => `${KEY_PREFIX}:tokens:${jobId}`,
  lease: (gpuId: string) => `${KEY_PREFIX}:gpu:${gpuId}:lease`,
  leaseHolder: (gpuId: string) => `${KEY_PREFIX}:gpu:${gpuId}:holder`,
  leaseFence: (gpuId: string) => `${KEY_PREFIX}:gpu:${gpuId}:fence`,
  gpuControl: (gpuId: string) => `${KEY_PREFIX}:gpu:${gpuId}:control`,
  gpuLadder: (gpuId: string) => `${KEY_PREFIX}:gpu:${gpuId}:ladder`,
  gpuControlChannel: `${KEY_PREFIX}:gpu-control`,
  gpuEvents: `${KEY_PREFIX}:gpu-events`,
  gpuSamples: `${KEY_PREFIX}:gpu-samples`,
  loadClaim: (role: Role) => `${KEY_PREFIX}:load-claim:${role}`,
  apiKeys: `${KEY_PREFIX}:api-keys`,
  apiKeyNames: `${KEY_PREFIX}:api-key-names`,
  apiKeyUses: `${KEY_PREFIX}:api-key-uses`,
  apiKeyJobs: (name: string) => `${KEY_PREFIX}:api-key-jobs:${name}`,
  audit: `${KEY_PREFIX}:audit`,
  webhooks: `${KEY_PREFIX}:webhooks-asked`,
  webhookLooks: `${KEY_PREFIX}:webhook-looks`,
  batch: (batchId: string) => `${KEY_PREFIX}:batch:${batchId}`,
  batches: `${KEY_PREFIX}:batches`,
  openBatches: `${KEY_PREFIX}:open-batches`,
};
