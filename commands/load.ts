import path from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { FAMILIES, type Family } from "../maths/generator.ts";
import { findKnee, kneeOfSteps } from "../producers/load/knee.ts";
import { LiveView } from "../producers/load/live-view.ts";
import type { ArrivalOptions, LoadOptions } from "../producers/load/load-options.ts";
import { parsePlan, runLoad } from "../producers/load/load-run.ts";
import { REQUEST_KINDS } from "../producers/load/record.ts";
import { FILES, recordedRun } from "../producers/load/recorder.ts";
import { parseSlo } from "../producers/load/slo.ts";
import type { LoadSummary } from "../producers/load/summary.ts";
import { kneeText, summaryText } from "../producers/load/summary-text.ts";
import { readConfig } from "../queues/config.ts";
import { MathllmError } from "../queues/errors.ts";
import { PRIORITY_CLASSES } from "../queues/names.ts";
import { number, oneOf, wholeNumber } from "./options.ts";
import { EXIT_FAILED, EXIT_MISSED, type Run, say } from "./run.ts";

const PATTERNS = ["constant", "poisson", "gamma", "ramp", "steps", "replay"] as const;
/** What `--resume` may be given beside; the plan comes from the folder. */
const BESIDE_RESUME = ["resume", "output", "url", "json"];

export function addLoad(program: Command, run: Run): void {
  program
    .command("load")
    .description("send problems at a rate, or so many at once, and measure what a user would feel")
    .addHelpText(
      "after",
      `
Latency counts from the time a request was to be sent, so that a stall shows. Figures are of the steady part alone.
An SLO is limits with commas between: e2e-p95<1500,ttft-p95<500,queue-wait-p99<2s,errors<1%,accuracy>90%,throughput>=20.
Exit codes: 0 ok, 1 failed or interrupted, 2 wrong usage, 3 the SLO is missed or the run INVALID.

  mathllm load --rate 5 --duration-s 60 --warm-up-s 5 --mix student:0.7,explain:0.3 --slo "e2e-p95<1500,errors<1%"
  mathllm load --concurrency 4 --requests 200
  mathllm load --find-knee 1:50 --duration-s 30 --slo "e2e-p95<1500"
  mathllm load --target openai --url http://127.0.0.1:8009/v1 --rate 2 --requests 100`,
    )
    .option("--rate <per-second>", "requests a second; with ramp FROM:TO", rates)
    .option("--arrivals <pattern>", `${PATTERNS.join(", ")} (default: poisson)`, oneOf(PATTERNS))
    .option("--burstiness <shape>", "shape of gamma gaps: 1 is poisson, below comes in bursts", number(0.01, 1000))
    .option("--steps <rates>", "rates one after the other, like 1,2,4", rateList)
    .option("--replay <file>", "times, kinds and classes of a telemetry file or a requests.jsonl")
    .option("--concurrency <count>", "closed loop: so many requests at once", wholeNumber(1, 10_000))
    .option("--duration-s <seconds>", "warm-up and cool-down included", number(0.1, 86_400))
    .option("--requests <count>", "a number of requests instead of a duration", wholeNumber(1, 10_000_000))
    .option("--warm-up-s <seconds>", "left out of the figures at the beginning", number(0, 86_400))
    .option("--cool-down-s <seconds>", "left out of the figures at the end", number(0, 86_400))
    .option("--mix <shares>", "kinds, like student:0.7,explain:0.2,talker:0.1 (default: student)", shares(REQUEST_KINDS))
    .option("--classes <shares>", "priorities, like interactive:0.2,normal:0.8 (default: normal)", shares(PRIORITY_CLASSES))
    .option("--max-tokens <count>", "the longest answer", wholeNumber(1, 131_072))
    .option("--prompt-tokens <count>", "fill problems up to about so many tokens", wholeNumber(16, 131_072))
    .addOption(new Option("--from <bank>", "problems of a bank (JSONL or CSV) instead of made ones").conflicts(["hard", "families"]))
    .option("--hard", "made problems with numbers outside the trained ranges")
    .option("--families <names>", "made problems of these families only, like addition,fraction sum", familyList)
    .option("--distinct <count>", "repeat over so many problems (default: each is sent once)", wholeNumber(1, 1_000_000))
    .option("--temperature <number>", "of the sampling (default: 0)", number(0, 2))
    .option("--samples <count>", "solutions drawn for each problem, of which the majority answers", wholeNumber(1, 32))
    .option("--cache <mode>", "off, auto, on, refresh (default: off)", oneOf(["off", "auto", "on", "refresh"] as const))
    .option("--seed <number>", "of times, kinds and problems (default: 1)", wholeNumber(0, 4_294_967_295))
    .option("--slo <limits>", "exit with 3 when one is missed", slo)
    .option("--allow-truncated", "an answer cut by the token limit doesn't count against the SLO")
    .option("--tolerated-delay-ms <ms>", "how late the generator may be before the run is INVALID (default: 25)", number(1, 60_000))
    .option("--timeout-s <seconds>", "how long a request may take (default: 300)", number(0.1, 3600))
    .option("--url <url>", "the API's address (default: from HOST and PORT), or the server's with --target openai")
    .option("--target <kind>", "api, or openai: any OpenAI-compatible server (default: api)", oneOf(["api", "openai"] as const))
    .option("--model <name>", "its model's name (default: the first it lists)")
    .addOption(
      new Option("--find-knee <low:high>", "bisect between these rates for the highest that meets the SLO")
        .argParser(span)
        .conflicts(["steps", "replay", "concurrency", "rate", "resume"]),
    )
    .option("-o, --output <folder>", "where the records go (default: load-<time>)")
    .option("--resume", "go on with the run in the folder of -o")
    .option("--json", "print the summary as one object, everything else on stderr")
    .action((options, command: Command) => run(() => runLoadCommand(options, command)));
}

interface LoadCommandOptions {
  rate?: { from: number; to: number | null };
  arrivals?: (typeof PATTERNS)[number];
  burstiness?: number;
  steps?: number[];
  replay?: string;
  concurrency?: number;
  durationS?: number;
  requests?: number;
  warmUpS?: number;
  coolDownS?: number;
  mix?: LoadOptions["mix"];
  classes?: LoadOptions["classes"];
  maxTokens?: number;
  promptTokens?: number;
  from?: string;
  hard?: boolean;
  families?: Family[];
  distinct?: number;
  temperature?: number;
  samples?: number;
  cache?: LoadOptions["cache"];
  seed?: number;
  slo?: string;
  allowTruncated?: boolean;
  toleratedDelayMs?: number;
  timeoutS?: number;
  url?: string;
  target?: LoadOptions["target"];
  model?: string;
  findKnee?: { from: number; to: number };
  output?: string;
  resume?: boolean;
  json?: boolean;
}

async function runLoadCommand(options: LoadCommandOptions, command: Command): Promise<number> {
  const config = readConfig();
  const print = options.json ? (text: string) => process.stderr.write(text) : say;
  const out = options.json ? process.stderr : process.stdout;
  const live = new LiveView({ print, terminal: out.isTTY === true });
  const interrupted = new AbortController();
  const onSignal = () => {
    // What is recorded is on disk; --resume goes on from there.
    if (interrupted.signal.aborted) process.exit(EXIT_FAILED);
    live.stop();
    print("Stopping: nothing more is sent, what runs gets a few seconds. Again to stop at once.\n");
    interrupted.abort(new Error("Interrupted."));
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  const base = await loadOptions(options, command);
  const run = async (over: Partial<LoadOptions> = {}): Promise<LoadSummary> => {
    try {
      return await runLoad(
        { url: options.url ?? `http://${config.host}:${config.port}`, ...base, apiKey: config.apiKey, command: commandLine(), ...over },
        { signal: interrupted.signal, onTick: (tick) => live.tick(tick) },
      );
    } finally {
      live.stop();
    }
  };
  if (options.findKnee !== undefined) return runFindKnee(options, base, { run, print });
  const summary = await run();
  const knee = kneeOfSteps(summary);
  if (options.json) say(`${JSON.stringify(summary)}\n`);
  else {
    say(summaryText(summary));
    if (knee !== null) say(kneeText(knee));
    say(`Records and summary: ${base.outDir}${summary.interrupted ? `. Go on with: mathllm load --resume -o ${base.outDir}` : ""}\n`);
  }
  if (summary.interrupted) return EXIT_FAILED;
  return summary.validity.valid && summary.slo?.met !== false ? 0 : EXIT_MISSED;
}

type Base = Omit<LoadOptions, "url"> & { url?: string; outDir: string };

async function runFindKnee(
  { findKnee: rates, arrivals, burstiness, json }: LoadCommandOptions,
  base: Base,
  { run, print }: { run: (over: Partial<LoadOptions>) => Promise<LoadSummary>; print: (text: string) => void },
): Promise<number> {
  if (base.slo === undefined)
    throw new MathllmError("invalid-configuration", "Expected --slo with --find-knee: the knee is where it is first missed.");
  const result = await findKnee({
    lowPerS: rates!.from,
    highPerS: rates!.to,
    measure: async (ratePerS, index) => {
      const folder = `rate-${ratePerS.toFixed(3)}`;
      print(`${ratePerS.toFixed(2)} requests/s …\n`);
      const seed = ((base.seed ?? 1) + index) >>> 0;
      const summary = await run({
        arrivals: openLoop(arrivals ?? "poisson", ratePerS, burstiness),
        seed,
        outDir: path.join(base.outDir, folder),
      });
      return { summary, folder };
    },
    onPoint: ({ sloMet, valid, e2eP95Ms }) =>
      print(`  E2E p95 ${e2eP95Ms?.toFixed(0) ?? "–"} ms: ${valid ? (sloMet ? "met" : "missed") : "INVALID"}\n`),
  });
  say(json ? `${JSON.stringify(result)}\n` : kneeText(result));
  if (result.interrupted) return EXIT_FAILED;
  return result.highestMetPerS !== null && result.points.every(({ valid }) => valid) ? 0 : EXIT_MISSED;
}

const commandLine = () =>
  ["mathllm", ...process.argv.slice(2)].map((word) => (/^[\w./:,=%@+-]+$/.test(word) ? word : `'${word}'`)).join(" ");

/** The library's options, or with `--resume` those of the recorded run. */
async function loadOptions(options: LoadCommandOptions, command: Command): Promise<Base> {
  if (options.resume) {
    const given = command.options.map((option) => option.attributeName()).filter((name) => command.getOptionValueSource(name) === "cli");
    const refused = given.filter((name) => !BESIDE_RESUME.includes(name));
    if (options.output === undefined || refused.length > 0) {
      throw new MathllmError(
        "invalid-configuration",
        `Expected -o FOLDER with --resume, and no option of the plan, which ${FILES.run} in it has; came ${refused.length > 0 ? refused.join(", ") : "no folder"}.`,
      );
    }
    const { plan, url } = await recordedRun(options.output);
    return { url, ...(options.url === undefined ? {} : { url: options.url }), ...plan, outDir: options.output, resume: true };
  }
  const {
    rate,
    steps,
    replay,
    concurrency,
    burstiness,
    output,
    from,
    hard,
    families,
    findKnee,
    json: _,
    arrivals: _pattern,
    ...same
  } = options;
  const base: Base = {
    ...same,
    arrivals: findKnee === undefined ? arrivalsOf(options) : { pattern: "poisson", ratePerS: findKnee.from },
    problems: from === undefined ? { source: "generator", hard: hard ?? false, families } : { source: "bank", file: from },
    outDir: output ?? `load-${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}`,
  };
  parsePlan(base);
  return base;
}

function arrivalsOf(options: LoadCommandOptions): ArrivalOptions {
  const { rate, arrivals, burstiness, steps, replay, concurrency } = options;
  const wrong = (text: string) => new MathllmError("invalid-configuration", text);
  const ways = [rate, steps, replay, concurrency].filter((way) => way !== undefined).length;
  if (ways !== 1)
    throw wrong(`Expected one of --rate, --steps, --replay and --concurrency; came ${ways === 0 ? "none" : `${ways} of them`}.`);
  const pattern = arrivals ?? (steps ? "steps" : replay ? "replay" : rate?.to != null ? "ramp" : "poisson");
  if (concurrency !== undefined) {
    if (arrivals !== undefined)
      throw wrong("Expected no --arrivals with --concurrency: a closed loop sends when another request has ended.");
    return { pattern: "closed", concurrency };
  }
  if (burstiness !== undefined && pattern !== "gamma") throw wrong("Expected --arrivals gamma with --burstiness.");
  if ((pattern === "steps") !== (steps !== undefined)) throw wrong("Expected --steps RATE,RATE,… and --arrivals steps together.");
  if ((pattern === "replay") !== (replay !== undefined)) throw wrong("Expected --replay FILE and --arrivals replay together.");
  if (steps !== undefined) return { pattern: "steps", ratesPerS: steps };
  if (replay !== undefined) return { pattern: "replay", file: replay };
  if ((pattern === "ramp") !== (rate!.to !== null)) throw wrong("Expected --rate FROM:TO and --arrivals ramp together.");
  if (pattern === "ramp") return { pattern: "ramp", fromPerS: rate!.from, toPerS: rate!.to! };
  return openLoop(pattern, rate!.from, burstiness);
}

function openLoop(pattern: (typeof PATTERNS)[number], ratePerS: number, burstiness: number | undefined): ArrivalOptions {
  if (pattern === "gamma") return { pattern, ratePerS, burstiness: burstiness ?? 0.5 };
  if (pattern === "constant" || pattern === "poisson") return { pattern, ratePerS };
  throw new MathllmError("invalid-configuration", `Expected --arrivals constant, poisson or gamma; came ${pattern}.`);
}

const rate = number(0.001, 100_000);

function rates(text: string): { from: number; to: number | null } {
  const [from, to, ...rest] = text.split(":");
  if (rest.length > 0) throw new InvalidArgumentError("Expected a rate, or FROM:TO.");
  return { from: to === undefined ? rate(from!) : number(0, 100_000)(from!), to: to === undefined ? null : number(0, 100_000)(to) };
}

function span(text: string): { from: number; to: number } {
  const { from, to } = rates(text);
  if (to === null || !(from > 0 && from < to)) throw new InvalidArgumentError("Expected two rates, the lower one first, like 1:50.");
  return { from, to };
}

const rateList = (text: string): number[] => text.split(",").map(rate);

function shares<T extends string>(names: readonly T[]) {
  return (text: string): Partial<Record<T, number>> => {
    const mix: Partial<Record<T, number>> = {};
    for (const part of text.split(",")) {
      const [name, share = "1", ...rest] = part.split(":").map((word) => word.trim());
      const known = names.find((each) => each === name);
      if (known === undefined || known in mix || rest.length > 0 || share === "" || !(Number(share) >= 0)) {
        throw new InvalidArgumentError(`Expected shares of ${names.join(", ")} that add up to 1, like ${names[0]}:0.7,${names[1]}:0.3.`);
      }
      mix[known] = Number(share);
    }
    return mix;
  };
}

function familyList(text: string): Family[] {
  const names = text.split(",").map((name) => name.trim());
  const unknown = names.find((name) => !FAMILIES.includes(name as Family));
  if (unknown !== undefined) throw new InvalidArgumentError(`Expected families among ${FAMILIES.join(", ")}; came "${unknown}".`);
  return names as Family[];
}

function slo(text: string): string {
  try {
    parseSlo(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
  return text;
}
