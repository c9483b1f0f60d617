import path from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import type { Settings } from "../producers/perf/settings.ts";
import { SETTING_NAMES } from "../queues/settings.ts";
import { wholeNumber } from "./options.ts";
import { EXIT_FAILED, EXIT_MISSED, type Run, say } from "./run.ts";
import { MAIN, VERSION } from "./system.ts";

interface PerfOptions {
  output: string;
  quick?: boolean;
  strict?: boolean;
  seed: number;
  seqs: number[];
  talkerB: Settings;
  json?: boolean;
}

export function addPerf(program: Command, run: Run): void {
  program
    .command("perf")
    .description("measure the whole system, phase by phase, and write a report with a grade")
    .argument(
      "[phases...]",
      "such as A C, or A-D (default: all): A baseline, B sequences, C speculation, D Talker, E sustained, F cache, G policies",
    )
    .requiredOption("-o, --output <folder>", "where report and evidence go; a folder with an interrupted run goes on with it")
    .option("--quick", "fewer requests: minutes instead of an hour, with wider intervals")
    .option("--strict", "exit 3 when a target was missed")
    .option("--seed <number>", "of problems and arrivals", wholeNumber(0, 4_294_960_000), 1)
    .option("--seqs <counts>", "phase B: the numbers of sequences to try", countList, [8, 10, 12])
    .option("--talker-b <name=value>", "phase D: a setting of option B; may be given several times", addSetting, {})
    .option("--json", "print the report as one object, everything else on stderr")
    .addHelpText("after", "\nExit codes: 0 everything asked for was measured, 1 not, 3 a target was missed (--strict).")
    .action((phases, options) => run(() => runPerf(phases, options)));
}

async function runPerf(texts: string[], options: PerfOptions): Promise<number> {
  // The generator's and the charts' libraries take a while to load: only this command pays for them.
  const { PerformanceRun, parsePhases } = await import("../producers/perf/performance-run.ts");
  const { renderReport } = await import("../producers/report/render.ts");
  const { writeReport } = await import("../producers/report/report.ts");
  const phases = parsePhases(texts);
  const interrupted = new AbortController();
  const onSignal = () => interrupted.abort(new Error("Interrupted; the same command goes on."));
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  const print = options.json ? (text: string) => process.stderr.write(text) : say;
  const startedAt = performance.now();
  const minutes = () => ((performance.now() - startedAt) / 60_000).toFixed(1).padStart(5);
  const report = await new PerformanceRun({
    main: MAIN,
    outDir: options.output,
    phases,
    quick: options.quick ?? false,
    seed: options.seed,
    choices: { maxNumSeqs: options.seqs, talkerB: options.talkerB },
    env: process.env,
    command: ["mathllm", ...process.argv.slice(2)].join(" "),
    version: VERSION,
    say: (line) => void print(`${minutes()} min  ${line}\n`),
    signal: interrupted.signal,
  }).run();
  await writeReport(options.output, report);
  await renderReport(options.output);
  if (options.json) say(`${JSON.stringify(report)}\n`);
  else {
    const { grade, verdict } = report;
    say(`\nGrade ${grade.points}/${grade.of}. ${verdict.headline}\n`);
    for (const { id, point, reason } of grade.phases) say(`  ${point ? "✓" : "✗"} ${id}  ${reason}\n`);
    say(`\n${path.join(options.output, "report.html")}\n`);
  }
  if (report.phases.some(({ id, status }) => phases.includes(id) && status === "failed") || interrupted.signal.aborted) return EXIT_FAILED;
  const isMissed = report.phases.some(({ id, targets }) => phases.includes(id) && targets.some(({ pass }) => !pass));
  return options.strict && isMissed ? EXIT_MISSED : 0;
}

function countList(text: string): number[] {
  const counts = text.split(",").map((part) => Number(part.trim()));
  if (!counts.every((count) => Number.isInteger(count) && count >= 1 && count <= 256))
    throw new InvalidArgumentError("Expected whole numbers from 1 to 256, like 8,10,12.");
  return [...new Set(counts)];
}

function addSetting(text: string, before: Settings): Settings {
  const [, name, value] = /^(\w+)=(.*)$/.exec(text) ?? [];
  if (name === undefined || !SETTING_NAMES.includes(name))
    throw new InvalidArgumentError("Expected a setting of .env.example, like TALKER_THREADS=8.");
  return { ...before, [name]: value! };
}
