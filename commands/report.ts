import type { Command } from "commander";
import { number, wholeNumber } from "./options.ts";
import { EXIT_MISSED, type Run, say } from "./run.ts";

export function addReport(program: Command, run: Run): void {
  const report = program.command("report").description("render a performance report again, or compare two runs");
  report
    .command("render")
    .description("write report.md, report.html and the graphs from a folder's report.json")
    .argument("<folder>", "where report.json is")
    .action((folder) => run(() => runRender(folder)));
  report
    .command("schema")
    .description("print the JSON Schema of report.json")
    .action(() => run(runSchema));
  report
    .command("compare")
    .description("say what changed from one run to another, and whether it is real or noise")
    .argument("<a>", "a folder of mathllm perf or mathllm load, or a requests.jsonl")
    .argument("<b>", "the other one")
    .option("--threshold <share>", "the smallest change that matters", number(0, 10), 0.05)
    .option("--seed <number>", "of the resampling", wholeNumber(0, 4_294_967_295), 1)
    .option("--strict", "exit with 3 when something is really worse")
    .option("--json", "print one object")
    .action((a, b, options) => run(() => runCompare(a, b, options)));
}

// The charts' library takes a while to load: only these commands pay for it.
async function runRender(folder: string): Promise<number> {
  const { renderReport } = await import("../producers/report/render.ts");
  for (const file of await renderReport(folder)) say(`${file}\n`);
  return 0;
}

async function runSchema(): Promise<number> {
  const { reportJsonSchema } = await import("../producers/report/json-schema.ts");
  say(`${JSON.stringify(reportJsonSchema(), null, 2)}\n`);
  return 0;
}

interface CompareCommandOptions {
  threshold: number;
  seed: number;
  strict?: boolean;
  json?: boolean;
}

async function runCompare(a: string, b: string, { threshold, seed, strict, json }: CompareCommandOptions): Promise<number> {
  const { compareFolders } = await import("../producers/report/recorded-runs.ts");
  const { comparisonText } = await import("../producers/report/comparison-text.ts");
  const comparison = await compareFolders(a, b, { threshold, seed });
  say(json ? `${JSON.stringify(comparison)}\n` : comparisonText(comparison));
  return strict === true && comparison.worse > 0 ? EXIT_MISSED : 0;
}
