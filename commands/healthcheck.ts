import type { Command } from "commander";
import { checkHealth } from "../producers/healthcheck.ts";
import { readConfig } from "../queues/config.ts";
import { type Run, say } from "./run.ts";

export function addHealthcheck(program: Command, run: Run): void {
  program
    .command("healthcheck")
    .description("ask an OpenAI-compatible model server for its models and for one token")
    .argument("<url>", "http://localhost:8009/v1")
    .option("--json", "print one object")
    .action((url, options) => run(() => runHealthcheck(url, options)));
}

async function runHealthcheck(url: string, options: { json?: boolean }): Promise<number> {
  const health = await checkHealth(url, readConfig().modelApiKey);
  say(
    options.json
      ? `${JSON.stringify(health)}\n`
      : `${health.url} serves ${health.models.join(", ")}; one token took ${health.oneTokenMs.toFixed(0)} ms\n`,
  );
  return 0;
}
