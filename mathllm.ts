import { existsSync } from "node:fs";
import { CommanderError } from "commander";
import { createProgram } from "./commands/program.ts";
import { EXIT_FAILED, EXIT_USAGE } from "./commands/run.ts";
import { MathllmError } from "./queues/errors.ts";

/** The command line. With `commands/` it alone composes: the API, the worker, the producers and the dashboards don't know each other. */

async function main(): Promise<number> {
  if (existsSync(".env")) process.loadEnvFile(".env");
  let code = 0;
  try {
    await createProgram(async (action) => {
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
