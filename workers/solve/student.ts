import { lastBoxed } from "../../maths/answers.ts";
import type { StageJob } from "../gpu/manual-worker.ts";
import { solvePrompt } from "./prompts.ts";
import type { Stage } from "./stage.ts";

/** The Student solves the problem; its answer is what stands in the last `\boxed{}`, null when the text was cut. */
export const studentStage: Stage = {
  role: "student",
  messages: async (job: StageJob) => job.data.messages ?? solvePrompt(job.data.problem),
  answer: (text, truncated) => (truncated ? null : lastBoxed(text)),
};
