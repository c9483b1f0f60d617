import type { Command } from "commander";
import type { JobView } from "../queues/contracts.ts";
import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../queues/names.ts";
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
    const { solution, answer, explanation } = view.result ?? {};
    if (view.result) say(`${solution ?? ""}\n\nAnswer: ${answer ?? (isCut(view, "student") ? "none, since it was cut" : "none")}\n`);
    if (explanation) say(`\n${explanation}\n`);
    if (failed) process.stderr.write(`${failed.title}: ${failed.detail}\n`);
    else for (const role of ROLES) if (isCut(view, role)) process.stderr.write(`${cutWords(view, role)}\n`);
  }
  return view.status === "completed" && !isCut(view, "student") ? 0 : EXIT_FAILED;
}

const isCut = ({ stages }: JobView, role: Role): boolean => stages.some(({ model, truncated }) => model === role && truncated === true);

/** The tokens are told where one stage alone wrote them. */
function cutWords({ stages, result }: JobView, role: Role): string {
  const text = role === "student" ? "solution" : "explanation";
  const after = stages.length === 1 ? `after ${result!.usage.completionTokens} tokens` : "by its token limit";
  return `The ${text} was cut ${after}; raise ${role.toUpperCase()}_MAX_TOKENS.`;
}
