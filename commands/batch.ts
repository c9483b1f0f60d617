import type { Command } from "commander";
import type { FieldMap } from "../maths/banks.ts";
import { type BatchSummary, errorsFileOf, runBatch } from "../producers/batch.ts";
import { BatchProgressView } from "../producers/batch-progress.ts";
import { MAX_SAMPLES, type SolveRequest } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { PRIORITY_CLASSES, ROLES } from "../queues/names.ts";
import { apiAt } from "./api-client.ts";
import { growHeapSlowly } from "./heap.ts";
import { number, oneOf, URL_OPTION, wholeNumber } from "./options.ts";
import { fieldMap } from "./problems.ts";
import { EXIT_FAILED, type Run, say } from "./run.ts";

const CACHE_MODES = ["auto", "on", "off", "refresh"] as const;

export function addBatch(program: Command, run: Run): void {
  program
    .command("batch")
    .description("have the problems of a file solved: JSONL or CSV in, JSONL out in the same order")
    .argument("<file>", "a bank (GSM8K, MATH, or problem and answer), or requests of POST /solve with a custom_id")
    .requiredOption("-o, --output <file>", "results; what fails goes to FILE.errors.jsonl")
    .option("--map <fields>", "what its fields are called, like problem=q,answer=a,id=n", fieldMap)
    .option("--explain", "let the Talker explain the solutions")
    .option("--model <name>", ROLES.join(", "), oneOf(ROLES))
    .option("--priority <class>", `${PRIORITY_CLASSES.join(", ")} (default: batch)`, oneOf(PRIORITY_CLASSES))
    .option("--samples <count>", "solutions drawn for each problem, of which the majority answers", wholeNumber(1, MAX_SAMPLES))
    .option("--temperature <number>", "of the sampling", number(0, 2))
    .option("--max-tokens <count>", "the longest answer", wholeNumber(1, 131_072))
    .option("--cache <mode>", CACHE_MODES.join(", "), oneOf(CACHE_MODES))
    .option(...URL_OPTION)
    .option("--json", "print the summary as one object")
    .addHelpText(
      "after",
      `
It can be stopped or killed at any point: the same command again goes on where it stopped, and computes nothing twice, unless a model was
changed meanwhile: then all is computed anew. Until the output is whole FILE.batch.json stands beside it. Run on a
finished output it sends only what is missing there, such as lines that had failed. Options are for lines that don't say otherwise.
Exit codes: 0 ok, 1 lines failed or interrupted, 2 wrong usage.`,
    )
    .action((file, options) => run(() => runBatchCommand(file, options)));
}

interface CommandOptions {
  output: string;
  map?: FieldMap;
  explain?: boolean;
  model?: SolveRequest["model"];
  priority?: SolveRequest["priority"];
  samples?: number;
  temperature?: number;
  maxTokens?: number;
  cache?: SolveRequest["cache"];
  url?: string;
  json?: boolean;
}

async function runBatchCommand(file: string, options: CommandOptions): Promise<number> {
  const { output, map, explain, model, priority, samples, temperature, maxTokens, cache } = options;
  if (explain && model === "talker") {
    throw new MathllmError(
      "invalid-configuration",
      "Expected --explain with --model student: the Talker explains what the Student solved.",
    );
  }
  const given = { explain, model, priority, samples, cache };
  const sampling = Object.fromEntries(Object.entries({ temperature, maxTokens }).filter(([, value]) => value !== undefined));
  const defaults = {
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
    ...(Object.keys(sampling).length === 0 ? {} : { sampling }),
  };
  growHeapSlowly();
  const interrupted = new AbortController();
  const stop = () => interrupted.abort(new Error("Stopped. What was sent goes on; the same command again fetches the results."));
  process.once("SIGINT", stop).once("SIGTERM", stop);
  const view = new BatchProgressView(process.stderr);
  try {
    const summary = await runBatch(
      apiAt(options.url),
      { file, output, map, defaults },
      (progress) => view.show(progress),
      interrupted.signal,
    );
    view.stop();
    say(options.json ? `${JSON.stringify(summary)}\n` : summaryText(summary, output));
    return summary.failed === 0 ? 0 : EXIT_FAILED;
  } catch (error) {
    interrupted.signal.throwIfAborted();
    throw error;
  } finally {
    view.stop();
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
}

function summaryText(summary: BatchSummary, output: string): string {
  const { lines, completed, before, cached, coalesced, truncated, failed, accuracy } = summary;
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const details = [
    [before, "from an earlier run"],
    [cached, "from the cache"],
    [coalesced, "with an identical one"],
    [truncated, "cut by the token limit: raise STUDENT_MAX_TOKENS"],
  ].flatMap(([count, text]) => (count === 0 ? [] : [`${count} ${text}`]));
  return [
    `${completed} of ${lines} completed${details.length === 0 ? "" : ` (${details.join(", ")})`}: ${output}\n`,
    accuracy === null
      ? ""
      : `${accuracy.equal} of ${accuracy.graded} right: ${percent(accuracy.accuracy ?? 0)} (95 % interval ${percent(accuracy.low)} to ${percent(accuracy.high)})\n`,
    failed === 0 ? "" : `${failed} failed: ${errorsFileOf(output)}\n`,
  ].join("");
}
