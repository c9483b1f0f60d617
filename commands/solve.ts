import type { Command } from "commander";
import { PRIORITY_CLASSES, type PriorityClass } from "../queues/names.ts";
import { apiAt } from "./api-client.ts";
import { oneOf, URL_OPTION } from "./options.ts";
import { EXIT_FAILED, type Run, say } from "./run.ts";

export function addSolve(program: Command, run: Run): void {
  program
    .command("solve")
    .description("send one problem to a running API and print its solution")
    .argument("<problem>", "the problem's text")
    .option("--explain", "let the Talker explain the solution")
    .option("--priority <class>", PRIORITY_CLASSES.join(", "), oneOf(PRIORITY_CLASSES))
    .option(...URL_OPTION)
    .option("--json", "print the finished job view")
    .action((problem, options) => run(() => runSolve(problem, options)));
}

async function runSolve(
  problem: string,
  options: { url?: string; explain?: boolean; priority?: PriorityClass; json?: boolean },
): Promise<number> {
  const api = apiAt(options.url);
  const { jobId } = await api.submit({ problem, explain: options.explain ?? false, priority: options.priority ?? "interactive" });
  const interrupted = new AbortController();
  process.once("SIGINT", () => interrupted.abort(new Error(`Stopped waiting; the job goes on: ${api.baseUrl}/jobs/${jobId}`)));
  const view = await api.finished(jobId, interrupted.signal, (reason) => process.stderr.write(`It waits: ${reason}\n`));
  if (options.json) {
    say(`${JSON.stringify(view)}\n`);
  } else {
    const failed = view.error ?? view.stages.find((stage) => stage.error !== null)?.error;
    if (view.result) say(`${view.result.solution ?? ""}\n\nAnswer: ${view.result.answer ?? "none"}\n`);
    if (view.result?.explanation) say(`\n${view.result.explanation}\n`);
    if (failed) process.stderr.write(`${failed.title}: ${failed.detail}\n`);
  }
  return view.status === "completed" ? 0 : EXIT_FAILED;
}
