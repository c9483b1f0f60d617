import { Command } from "commander";
import { addBatch } from "./batch.ts";
import { addCompletion } from "./completion.ts";
import { addDemo } from "./demo.ts";
import { addDoctor } from "./doctor.ts";
import { addGpu } from "./gpu.ts";
import { addGrade } from "./grade.ts";
import { addHealthcheck } from "./healthcheck.ts";
import { addKeys } from "./keys.ts";
import { addLoad } from "./load.ts";
import { addPerf } from "./perf.ts";
import { addPlan } from "./plan.ts";
import { addProblems } from "./problems.ts";
import { addReport } from "./report.ts";
import type { Run } from "./run.ts";
import { addServe } from "./serve.ts";
import { addSimulate } from "./simulate.ts";
import { addSmoke } from "./smoke.ts";
import { addSolve } from "./solve.ts";
import { addStart } from "./start.ts";
import { VERSION } from "./system.ts";
import { addTop } from "./top.ts";

/** All commands. */
export function createProgram(run: Run): Command {
  const program = new Command("mathllm")
    .version(VERSION)
    .description("Maths problems in, solutions and explanations out: one GPU, two models, never both at once.")
    .exitOverride()
    .showHelpAfterError("(--help shows what is expected)")
    .addHelpText(
      "after",
      "\nExit codes: 0 ok, 1 failed, 2 wrong usage or configuration.\nEvery setting is an environment variable: see .env.example.",
    );
  addDemo(program, run);
  addStart(program, run);
  addSolve(program, run);
  addBatch(program, run);
  addProblems(program, run);
  addGrade(program, run);
  addPerf(program, run);
  addGpu(program, run);
  addTop(program, run);
  addKeys(program, run);
  addLoad(program, run);
  addPlan(program, run);
  addServe(program, run);
  addHealthcheck(program, run);
  addSmoke(program, run);
  addSimulate(program, run);
  addReport(program, run);
  addDoctor(program, run);
  addCompletion(program, run);
  return program;
}
