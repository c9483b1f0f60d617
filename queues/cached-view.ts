import { gradeOf } from "../maths/grading.ts";
import type { CacheEntry } from "./answer-cache.ts";
import type { JobView, SolveRequest, StageResult } from "./contracts.ts";
import { voteView } from "./job-view.ts";
import { cachedJobId, type JobKind } from "./names.ts";

/**
 * The finished view of an answer from the cache. Its id names the entry, so it can be asked for again for as long as the entry lives;
 * then, without the request, priority and metadata are the defaults, the times those of the entry, and nothing is graded.
 */
export function cachedView(
  kind: JobKind,
  cacheKey: string,
  { result, solved, storedAt }: CacheEntry,
  { request, at }: { request?: Pick<SolveRequest, "priority" | "metadata" | "expected">; at?: number } = {},
): JobView {
  const jobId = cachedJobId(kind, cacheKey);
  const time = at ?? storedAt;
  const student = kind === "explain" ? (solved ?? null) : kind === "solve" ? result : null;
  const talker = kind === "solve" ? null : result;
  const results = [student, talker].filter((each): each is StageResult => each !== null);
  return {
    jobId,
    status: "completed",
    model: kind === "talk" ? "talker" : "student",
    priority: request?.priority ?? "normal",
    stages: results.map(({ role }) => ({
      model: role,
      status: "completed",
      attempts: 0,
      pickedAt: null,
      firstTokenAt: null,
      finishedAt: time,
      truncated: false,
      error: null,
    })),
    position: null,
    estimatedStartMs: null,
    reason: null,
    timestamps: { acceptedAt: time, pickedAt: null, firstTokenAt: null, finishedAt: time },
    result: {
      answer: student?.answer ?? null,
      solution: student?.text ?? null,
      explanation: talker?.text ?? null,
      truncated: false,
      cached: true,
      coalesced: false,
      // Nothing was computed for this request.
      usage: { promptTokens: 0, completionTokens: 0 },
      ...voteView(student),
      grade: gradeOf(request?.expected, student?.answer ?? null),
    },
    error: null,
    metadata: request?.metadata ?? {},
    links: { self: `/jobs/${jobId}` },
  };
}
