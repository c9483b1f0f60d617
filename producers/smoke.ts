import type { JobView } from "../queues/contracts.ts";
import type { ApiClient } from "./submit.ts";

/** Problems that any Student should solve, the shipped one too. */
const PROBLEMS = [
  { problem: "What is 17 + 25?", answer: "42" },
  { problem: "What is 96 - 38?", answer: "58" },
  { problem: "What is 12 * 7?", answer: "84" },
  { problem: "Grace buys 8 shells for 4 dollars each. How many dollars does Grace pay?", answer: "32" },
];

export interface SmokeResult {
  problem: string;
  expected: string;
  answer: string | null;
  explained: boolean;
  ok: boolean;
  /** Why not; null when ok. */
  reason: string | null;
}

/** A handful of problems through both models of a running system, at once. A wrong answer, no explanation or an error fails. */
export async function smoke(api: ApiClient, timeoutMs: number): Promise<SmokeResult[]> {
  return Promise.all(
    PROBLEMS.map(async ({ problem, answer }): Promise<SmokeResult> => {
      const { jobId } = await api.submit({ problem, explain: true, priority: "interactive" });
      const ended = await api.finished(jobId, AbortSignal.timeout(timeoutMs)).catch(() => api.job(jobId));
      return judged(problem, answer, ended, timeoutMs);
    }),
  );
}

function judged(problem: string, expected: string, view: JobView, timeoutMs: number): SmokeResult {
  const answer = view.result?.answer ?? null;
  const explained = (view.result?.explanation ?? "").trim() !== "";
  const error = view.error ?? view.stages.find((stage) => stage.error !== null)?.error ?? null;
  const reason =
    error !== null
      ? `${error.title}: ${error.detail}`
      : view.status !== "completed"
        ? `still ${view.status} after ${timeoutMs / 1000} s${view.reason === null ? "" : ` (${view.reason})`}`
        : answer !== expected
          ? `answered ${answer ?? "nothing"}`
          : explained
            ? null
            : "no explanation";
  return { problem, expected, answer, explained, ok: reason === null, reason };
}
