import type { Command } from "commander";
import { readConfig } from "../queues/config.ts";
import { diagnose } from "../workers/doctor.ts";
import { EXIT_FAILED, type Run, say } from "./run.ts";

export function addDoctor(program: Command, run: Run): void {
  program
    .command("doctor")
    .description("check everything a start needs and say what to do")
    .option("--json", "print the checks as one object")
    .action((options) => run(() => runDoctor(options)));
}

async function runDoctor(options: { json?: boolean }): Promise<number> {
  const checks = await diagnose(readConfig());
  if (options.json) say(`${JSON.stringify({ checks })}\n`);
  else for (const check of checks) say(`${check.ok ? "ok  " : "FAIL"}  ${check.name.padEnd(14)}  ${check.detail}\n`);
  return checks.every((check) => check.ok) ? 0 : EXIT_FAILED;
}
