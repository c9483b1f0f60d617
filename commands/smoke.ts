import type { Command } from "commander";
import { smoke } from "../producers/smoke.ts";
import { apiAt } from "./api-client.ts";
import { number, URL_OPTION } from "./options.ts";
import { EXIT_FAILED, type Run, say } from "./run.ts";

export function addSmoke(program: Command, run: Run): void {
  program
    .command("smoke")
    .description("a handful of problems through both models of a running system: pass or fail")
    .option("--timeout-s <seconds>", "for all of them together", number(1, 86_400), 600)
    .option(...URL_OPTION)
    .option("--json", "print one object")
    .action((options) => run(() => runSmoke(options)));
}

async function runSmoke(options: { timeoutS: number; url?: string; json?: boolean }): Promise<number> {
  const results = await smoke(apiAt(options.url), options.timeoutS * 1000);
  const ok = results.every((result) => result.ok);
  if (options.json) say(`${JSON.stringify({ ok, results })}\n`);
  else {
    for (const result of results) say(`${result.ok ? "ok  " : "FAIL"}  ${result.problem}  ${result.reason ?? result.answer}\n`);
    say(ok ? "passed: both models answer\n" : "failed\n");
  }
  return ok ? 0 : EXIT_FAILED;
}
