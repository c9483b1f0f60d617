import { expect, test } from "vitest";
import { type JobData, jobViewSchema, type StageResult } from "../../queues/contracts.ts";
import { type JobSnapshot, type StageSnapshot, toJobView } from "../../queues/job-view.ts";

const data: JobData = { version: 1, kind: "solve", problem: "p", sampling: { temperature: 0 }, priority: "normal", acceptedAt: 100 };
const stage = (over: Partial<StageSnapshot>): StageSnapshot => ({
  role: "student",
  id: "solve-1",
  state: "prioritized",
  attempts: 0,
  pickedAt: null,
  firstTokenAt: null,
  finishedAt: null,
  failedReason: null,
  result: null,
  ...over,
});
const solved: StageResult = {
  role: "student",
  text: "s \\boxed{1}",
  answer: "1",
  truncated: false,
  usage: { promptTokens: 3, completionTokens: 4 },
  modelId: "m",
  firstTokenAt: 5,
};
const view = (over: Partial<JobSnapshot>) =>
  jobViewSchema.parse(
    toJobView({
      jobId: "solve-1",
      data,
      stages: [stage({})],
      cancelledAt: null,
      position: 2,
      estimatedStartMs: 9,
      queue: null,
      liveWorkers: [],
      now: 1000,
      ...over,
    }),
  );
const done = stage({ state: "completed", attempts: 1, pickedAt: 200, finishedAt: 300, firstTokenAt: 250, result: solved });

test("a waiting job has its position, estimate, and the reason when no worker lives", () => {
  expect(view({})).toMatchObject({ status: "waiting", position: 2, estimatedStartMs: 9, reason: "no-worker", result: null });
});

test("a delayed first try is delayed, a retry after a pick is active", () => {
  expect(view({ stages: [stage({ state: "delayed" })] }).status).toBe("delayed");
  expect(view({ stages: [stage({ state: "delayed", attempts: 1 })] }).status).toBe("active");
});

test("completed: result, times, no position", () => {
  expect(view({ stages: [done] })).toMatchObject({
    status: "completed",
    position: null,
    reason: null,
    timestamps: { acceptedAt: 100, pickedAt: 200, firstTokenAt: 250, finishedAt: 300 },
    result: { answer: "1", solution: "s \\boxed{1}", explanation: null, usage: { promptTokens: 3, completionTokens: 4 } },
  });
});

test("cancelled while it waits is terminal at once; a running one is active until it ends", () => {
  expect(view({ cancelledAt: 700 })).toMatchObject({ status: "cancelled", error: { code: "cancelled" }, timestamps: { finishedAt: 700 } });
  expect(view({ cancelledAt: 700, stages: [stage({ state: "active", attempts: 1 })] }).status).toBe("active");
});

test("too late while it waits is failed; completion wins over both", () => {
  expect(view({ data: { ...data, deadlineAt: 999 } })).toMatchObject({ status: "failed", error: { code: "deadline-exceeded" } });
  expect(view({ data: { ...data, deadlineAt: 1001 } }).status).toBe("waiting");
  expect(view({ data: { ...data, deadlineAt: 1 }, cancelledAt: 2, stages: [done] }).status).toBe("completed");
});

test.each([
  ["engine-failed: gone", "completed", null],
  ["cancelled: on request", "cancelled", "cancelled"],
  ["deadline-exceeded: late", "failed", "deadline-exceeded"],
])("a Talker that failed with %j makes the job %s and keeps the solution", (failedReason, status, code) => {
  const talker = stage({ role: "talker", state: "failed", attempts: 1, pickedAt: 400, finishedAt: 500, failedReason });
  const seen = view({ data: { ...data, kind: "explain" }, stages: [done, talker] });
  expect(seen).toMatchObject({ status, result: { answer: "1", explanation: null } });
  expect(seen.error?.code ?? null).toBe(code);
  expect(seen.stages[1]?.error?.code).toBe(failedReason.split(":")[0]);
});

test("a Student that failed fails the whole with its reason, whatever the parent does", () => {
  const student = stage({ state: "failed", attempts: 1, finishedAt: 300, failedReason: "problem-too-long: 900 tokens" });
  const talker = stage({ role: "talker", state: "waiting-children" });
  expect(view({ data: { ...data, kind: "explain" }, stages: [student, talker] })).toMatchObject({
    status: "failed",
    error: { code: "problem-too-long", detail: "900 tokens" },
    result: null,
  });
});

test("a text of BullMQ's own is an internal error", () => {
  expect(view({ stages: [stage({ state: "failed", failedReason: "job stalled more than allowable limit" })] }).error?.code).toBe(
    "internal-error",
  );
});
