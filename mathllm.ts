import { existsSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { addBatch } from "./commands/batch.ts";
import { addDemo } from "./commands/demo.ts";
import { addDoctor } from "./commands/doctor.ts";
import { addGpu } from "./commands/gpu.ts";
import { addGrade } from "./commands/grade.ts";
import { addHealthcheck } from "./commands/healthcheck.ts";
import { addKeys } from "./commands/keys.ts";
import { addLoad } from "./commands/load.ts";
import { addPerf } from "./commands/perf.ts";
import { addPlan } from "./commands/plan.ts";
import { addProblems } from "./commands/problems.ts";
import { addReport } from "./commands/report.ts";
import { EXIT_FAILED, EXIT_USAGE, type Run } from "./commands/run.ts";
import { addServe } from "./commands/serve.ts";
import { addSimulate } from "./commands/simulate.ts";
import { addSmoke } from "./commands/smoke.ts";
import { addSolve } from "./commands/solve.ts";
import { addStart } from "./commands/start.ts";
import { MathllmError } from "./queues/errors.ts";

/** The command line. With `commands/` it alone composes: the API, the worker, the producers and the dashboards don't know each other. */

function cli(run: Run): Command {
  const program = new Command("mathllm")
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
  addKeys(program, run);
  addLoad(program, run);
  addPlan(program, run);
  addServe(program, run);
  addHealthcheck(program, run);
  addSmoke(program, run);
  addSimulate(program, run);
  addReport(program, run);
  addDoctor(program, run);
  return program;
}

async function main(): Promise<number> {
  if (existsSync(".env")) process.loadEnvFile(".env");
  let code = 0;
  try {
    await cli(async (action) => {
      code = await action();
    }).parseAsync();
    return code;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    if (error instanceof MathllmError) {
      process.stderr.write(`${error.message}\n`);
      return error.code === "invalid-configuration" ? EXIT_USAGE : EXIT_FAILED;
    }
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    return EXIT_FAILED;
  }
}

process.exit(await main());
