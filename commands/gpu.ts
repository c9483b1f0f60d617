import { type Command, InvalidArgumentError } from "commander";
import { commandGpus, gpuReport, gpuView, limitQueue, type OperatorCommand, parseRateLimit } from "../producers/operator.ts";
import { ROLES, type Role } from "../queues/names.ts";
import type { RateLimit } from "../queues/rate-limits.ts";
import { apiAt } from "./api-client.ts";
import { oneOf, URL_OPTION } from "./options.ts";
import { type Run, say } from "./run.ts";

/** What an operator tells the GPUs and the queues: `gpu …`, `limit`. */
export function addGpu(program: Command, run: Run): void {
  const gpu = program.command("gpu").description("look at the GPUs of a running system, or tell their workers what to do");
  const gpuCommand = (name: OperatorCommand | "show", description: string) =>
    gpu
      .command(name, { isDefault: name === "show" })
      .description(description)
      .option("--gpu <id>", "only this GPU (default: all)")
      .option(...URL_OPTION)
      .option("--json", "print one object");
  gpuCommand("show", "resident models, what was decided and why, queues, guardrails").action((options) =>
    run(() => runGpu("show", options)),
  );
  gpuCommand("drain", "take no more jobs until resumed; running ones end").action((options) => run(() => runGpu("drain", options)));
  gpuCommand("resume", "take jobs again").action((options) => run(() => runGpu("resume", options)));
  gpuCommand("release", "unload the model; the next job loads one again").action((options) => run(() => runGpu("release", options)));
  gpuCommand("reset", "forget the answers to out-of-memory and close the circuits").action((options) =>
    run(() => runGpu("reset", options)),
  );
  gpuCommand("swap", "load this model next, whatever the policy says")
    .argument("<model>", ROLES.join(" or "), oneOf(ROLES))
    .action((model, options) => run(() => runGpu("swap", { ...options, model })));
  program
    .command("limit")
    .description("limit how many jobs of a queue are begun, from now on and through restarts")
    .argument("<queue>", ROLES.join(" or "), oneOf(ROLES))
    .argument("<rate>", "10/s, 100/min, 5/h, or off", rateLimit)
    .option(...URL_OPTION)
    .option("--json", "print one object")
    .action((role, limit, options) => run(() => runLimit(role, limit, options)));
}

async function runGpu(
  command: OperatorCommand | "show",
  options: { url?: string; gpu?: string; model?: Role; json?: boolean },
): Promise<number> {
  const api = apiAt(options.url);
  if (command !== "show") {
    const gpuIds = await commandGpus(api, command, { gpuId: options.gpu, model: options.model });
    say(options.json ? `${JSON.stringify({ command, gpuIds })}\n` : `${command}: told ${gpuIds.join(", ")}\n`);
    return 0;
  }
  const view = await gpuView(api);
  say(options.json ? `${JSON.stringify(view)}\n` : gpuReport(view));
  return 0;
}

async function runLimit(role: Role, limit: RateLimit | null, options: { url?: string; json?: boolean }): Promise<number> {
  await limitQueue(apiAt(options.url), role, limit);
  if (options.json) say(`${JSON.stringify({ queue: role, rateLimit: limit })}\n`);
  else say(limit === null ? `${role}: no rate limit\n` : `${role}: ${limit.max} jobs within ${limit.durationMs} ms\n`);
  return 0;
}

function rateLimit(text: string): RateLimit | null {
  const limit = parseRateLimit(text);
  if (limit === undefined) throw new InvalidArgumentError("Expected a rate such as 10/s, 100/min or 5/h, or off.");
  return limit;
}
