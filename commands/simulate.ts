import { type Command, InvalidArgumentError, Option } from "commander";
import { PRIORITY_CLASSES, type PriorityClass } from "../queues/names.ts";
import { leastMeans } from "../workers/gpu/least-means.ts";
import type { OptimumProgress } from "../workers/gpu/optimum.ts";
import { DEFAULT_SWAP_CV, OPTIMUM_TABLE, playSetting, readSettings, type Setting } from "../workers/gpu/optimum-table.ts";
import { POLICIES } from "../workers/gpu/policies.ts";
import { DEFAULT_DEADLINES_MS } from "../workers/gpu/policy.ts";
import { recordedLengths, recordedTraffic } from "../workers/gpu/recorded-traffic.ts";
import { leastMeansReport, settingsReport } from "../workers/gpu/setting-reports.ts";
import { simulationReport } from "../workers/gpu/simulation-report.ts";
import { simulate } from "../workers/gpu/simulator.ts";
import {
  type PerModel,
  parseClassMix,
  perModel,
  swapDraw,
  syntheticTraffic,
  type TrafficOptions,
} from "../workers/gpu/synthetic-traffic.ts";
import { number, numberPerModel, oneOf, wholeNumber } from "./options.ts";
import { type Run, say } from "./run.ts";

const CLASS_MIX_EXAMPLE = "interactive:0.2,normal:0.5,batch:0.3";
const JOBS = 20_000;
const JOBS_AGAINST = 60_000;

/** Options of random streams and policies; the optimum is that of exponential service and one class. */
const UNKNOWN_TO_OPTIMAL = [
  ...["policy", "jobs", "seed", "seeds", "backlog", "burst", "replay", "lengths", "serviceCv"],
  ...["class", "classes", "deadlineMs", "admission"],
];

export function addSimulate(program: Command, run: Run): void {
  program
    .command("simulate")
    .description("play a swap policy against synthetic or recorded traffic, without a GPU")
    .option("--policy <name>", Object.keys(POLICIES).join(", "), oneOf(Object.keys(POLICIES) as (keyof typeof POLICIES)[]), "least-wait")
    .option("--jobs <count>", `how many jobs (default: ${JOBS}, with --against ${JOBS_AGAINST})`, wholeNumber(1, 10_000_000))
    .option("--service-ms <ms>", "mean time of a job alone on its model, or student=MS,talker=MS", numberPerModel(0.001, 86_400_000), 4000)
    .option("--service-cv <number>", "its coefficient of variation: 1 exponential, 0 constant", number(0, 20), 1)
    .addOption(
      new Option("--lengths <file>", "draw the times of jobs from those of a telemetry file instead").conflicts(["serviceMs", "serviceCv"]),
    )
    .option("--batch-exponent <a>", "r jobs at once are together r^a times as fast as one, or student=A,talker=A", numberPerModel(0, 1), 1)
    .option("--swap-ms <ms>", "mean time of a swap, or of one to each model: student=MS,talker=MS", numberPerModel(0, 86_400_000), 10_000)
    .option("--swap-cv <number>", "its coefficient of variation, gamma distributed (default: 0, constant)", number(0, 5))
    .option("--slots <count>", "jobs at once", wholeNumber(1, 256), 1)
    .option("--mix <share>", "the Student's share of the jobs", number(0, 1), 0.5)
    .option("--load <rho>", "offered load: arrival rate · service time / slots^a", number(0.001, 100), 0.7)
    .option("--backlog", "all jobs are there at time 0 (instead of --load)")
    .option("--burst <count>", "jobs that arrive together", wholeNumber(1, 100_000), 1)
    .option("--class <name>", `class of the jobs: ${PRIORITY_CLASSES.join(", ")}`, oneOf(PRIORITY_CLASSES), "normal")
    .addOption(
      new Option("--classes <mix>", `classes of the jobs, like ${CLASS_MIX_EXAMPLE} (instead of --class)`)
        .argParser(classMix)
        .conflicts(["class", "deadlineMs"]),
    )
    .option("--deadline-ms <ms>", "that class's deadline (default: the class's)", number(0, 86_400_000))
    .option("--admission", "turn away jobs whose estimated wait is beyond their deadline, as the API does")
    .addOption(new Option("--replay <file>", "the jobs of a telemetry file instead of synthetic ones").conflicts("lengths"))
    .option("--against [file]", "play each setting of a file and compare with the least possible (default: the table that ships)")
    .addOption(
      new Option(
        "--optimal",
        "no policy: the least means that any policy can reach, of these options or of each setting of --against",
      ).conflicts(UNKNOWN_TO_OPTIMAL),
    )
    .option("--limit-s <seconds>", "the longest that --optimal takes for one", number(0.1, 86_400), 120)
    .option("--seeds <count>", "random streams of each setting, with --against", wholeNumber(1, 1000), 3)
    .option("--seed <number>", "of the random traffic", wholeNumber(0, 4_294_967_295), 1)
    .option("--json", "print one object")
    .action((options) =>
      run(async () => {
        if (options.optimal) return runOptimal(options);
        return options.against === undefined ? runOne(options) : runAgainst(options);
      }),
    );
}

interface SimulateOptions extends Omit<TrafficOptions, "jobs" | "load" | "classes" | "lengthsMs" | "batchExponent"> {
  jobs?: number;
  class: PriorityClass;
  classes?: TrafficOptions["classes"];
  policy: keyof typeof POLICIES;
  load: number;
  lengths?: string;
  batchExponent: PerModel;
  backlog?: boolean;
  swapMs: PerModel;
  swapCv?: number;
  deadlineMs?: number;
  admission?: boolean;
  replay?: string;
  against?: string | true;
  optimal?: boolean;
  limitS: number;
  seeds: number;
  json?: boolean;
}

function runOne(options: SimulateOptions): number {
  const { policy, slots, swapMs, swapCv = 0, deadlineMs, admission, replay, lengths, backlog, load, seed } = options;
  const { jobs: count = JOBS, classes = { [options.class]: 1 } } = options;
  const batchExponent = perModel(options.batchExponent);
  const lengthsMs = lengths === undefined ? undefined : recordedLengths(lengths, batchExponent, options.mix);
  const jobs =
    replay === undefined
      ? syntheticTraffic({ ...options, jobs: count, lengthsMs, classes, load: backlog ? null : load })
      : recordedTraffic(replay, batchExponent);
  const deadlinesMs = { ...DEFAULT_DEADLINES_MS, ...(deadlineMs === undefined ? {} : { [options.class]: deadlineMs }) };
  const result = simulate({
    jobs,
    policy: POLICIES[policy],
    slots,
    batchExponent,
    swapMs: perModel(swapMs),
    drawSwapMs: swapDraw(swapCv, seed),
    deadlinesMs,
    admission,
    leavesEarly: policy === "least-wait",
  });
  say(options.json ? `${JSON.stringify({ policy, ...result })}\n` : simulationReport(policy, result));
  return 0;
}

function runAgainst({ policy, against, jobs = JOBS_AGAINST, seeds, json }: SimulateOptions): number {
  const settings = settingsOf(against!);
  const results = settings.map((setting, i) => {
    const result = playSetting(setting, POLICIES[policy], jobs, seeds);
    process.stderr.write(`${i + 1} of ${settings.length} settings played\n`);
    return result;
  });
  const ratios = results.flatMap(({ ratio }) => ratio ?? []);
  const meanRatio = ratios.length === 0 ? null : ratios.reduce((sum, ratio) => sum + ratio, 0) / ratios.length;
  const summary = { policy, jobs, seeds, meanRatio, maxRatio: ratios.length === 0 ? null : Math.max(...ratios) };
  say(json ? `${JSON.stringify({ ...summary, settings: results })}\n` : settingsReport(summary, results));
  return 0;
}

/** With JSON: one object for the options' setting, or one with all `settings` of a file. */
function runOptimal({
  against,
  slots,
  load,
  mix,
  serviceMs,
  swapMs,
  swapCv = DEFAULT_SWAP_CV,
  batchExponent,
  limitS,
  json,
}: SimulateOptions): number {
  const asked: Setting = { slots, load, mix, serviceMs, serviceCv: 1, swapMs, swapCv, batchExponent };
  const settings = against === undefined ? [asked] : settingsOf(against);
  const results = settings.map((setting, i) =>
    leastMeans(setting, { limitMs: 1000 * limitS, onProgress: progressLine(`${i + 1} of ${settings.length}`) }),
  );
  if (process.stderr.isTTY) process.stderr.write("\r\u001b[K");
  say(json ? `${JSON.stringify(against === undefined ? results[0] : { settings: results })}\n` : leastMeansReport(results));
  return 0;
}

function settingsOf(file: string | true): Setting[] {
  return readSettings(file === true ? OPTIMUM_TABLE : file);
}

/** On a terminal a line that is written over, elsewhere one every few seconds. */
function progressLine(which: string): (state: OptimumProgress) => void {
  let printedAt = performance.now();
  return ({ meanMs, lowMs, highMs }) => {
    const now = performance.now();
    if (now - printedAt < (process.stderr.isTTY ? 200 : 5000)) return;
    printedAt = now;
    const [mean, low, high] = [meanMs, lowMs, highMs].map((ms) => (ms / 1000).toFixed(1));
    const text = `${which}: about ${mean} s, between ${low} and ${high} s`;
    process.stderr.write(process.stderr.isTTY ? `\r\u001b[K${text}` : `${text}\n`);
  };
}

function classMix(text: string): TrafficOptions["classes"] {
  const mix = parseClassMix(text);
  if (mix === null) throw new InvalidArgumentError(`Expected shares that add up to 1, like ${CLASS_MIX_EXAMPLE}.`);
  return mix;
}
