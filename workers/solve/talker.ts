import type { StageResult } from "../../queues/contracts.ts";
import { cutAfter } from "../../queues/cut-answer.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { StageJob } from "../gpu/manual-worker.ts";
import { explainPrompt, talkPrompt } from "./prompts.ts";
import type { Stage } from "./stage.ts";

/** The Student's solution: its child job's, or one from the cache. */
export async function solutionOf(job: StageJob): Promise<StageResult | undefined> {
  return job.data.solved ?? Object.values(await job.getChildrenValues<StageResult>())[0];
}

/** The Talker explains its Student child's solution, or answers a text that was sent to it directly. */
export const talkerStage: Stage = {
  role: "talker",
  messages: async (job: StageJob) => {
    if (job.data.kind === "talk") return job.data.messages ?? talkPrompt(job.data.problem);
    const solved = await solutionOf(job);
    if (solved === undefined) throw new Error("the Student's solution is not there");
    if (solved.truncated) throw new MathllmError("solution-unfinished", `Expected a whole solution to explain; ${cutAfter(solved)}`);
    return explainPrompt(job.data.problem, solved.text, solved.answer);
  },
  answer: () => null,
};
