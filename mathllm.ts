import { enableCompileCache } from "node:module";
import { ownCacheFolder } from "./queues/ownership.ts";

/** The command line. With `commands/` it alone composes: the API, the worker, the producers and the dashboards don't know each other. */

// Before anything else is loaded: compiled code is kept from one command to the next, which saves a third of the time to start. What lies
// there is run, and Node doesn't look whose it is, so it is a folder of ours or none.
const compileCache = ownCacheFolder("compile");
if (compileCache !== undefined) enableCompileCache(compileCache);
const { CommanderError } = await import("commander");
const { loadEnvFile } = await import("./commands/env-file.ts");
const { createProgram } = await import("./commands/program.ts");
const { EXIT_FAILED, EXIT_USAGE } = await import("./commands/run.ts");
const { MathllmError } = await import("./queues/errors.ts");

async function main(): Promise<number> {
  let code = 0;
  try {
    loadEnvFile();
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
