import { type Command, InvalidArgumentError, Option } from "commander";
import { PRIORITY_CLASSES, type PriorityClass } from "../queues/names.ts";
import { DEFAULT_DEADLINES_MS, POLICIES } from "../workers/gpu/policy.ts";
import { simulationReport } from "../workers/gpu/simulation-report.ts";
import { simulate } from "../workers/gpu/simulator.ts";
import { parseClassMix, recordedTraffic, syntheticTraffic, type TrafficOptions } from "../workers/gpu/synthetic-traffic.ts";
import { number, oneOf, wholeNumber } from "./options.ts";
import { type Run, say } from "./run.ts";

const CLASS_MIX_EXAMPLE = "interactive:0.2,normal:0.5,batch:0.3";

export function addSimulate(program: Command, run: Run): void {
  program
    .command("simulate")
    .description("play a swap policy against synthetic or recorded traffic, without a GPU")
    .option("--policy <name>", Object.keys(POLICIES).join(", "), oneOf(Object.keys(POLICIES) as (keyof typeof POLICIES)[]), "ge")
    .option("--jobs <count>", "how many jobs", wholeNumber(1, 10_000_000), 20_000)
    .option("--service-ms <ms>", "mean time of a job on its model", number(0.001, 86_400_000), 4000)
    .option("--service-cv <number>", "its coefficient of variation: 1 exponential, 0 constant", number(0, 20), 1)
    .option("--swap-ms <ms>", "time of a swap", number(0, 86_400_000), 10_000)
    .option("--slots <count>", "jobs at once", wholeNumber(1, 256), 1)
    .option("--mix <share>", "the Student's share of the jobs", number(0, 1), 0.5)
    .option("--load <rho>", "offered load: arrival rate · service time / slots", number(0.001, 100), 0.7)
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
    .option("--replay <file>", "the jobs of a telemetry file instead of synthetic ones")
    .option("--seed <number>", "of the random traffic", wholeNumber(0, 4_294_967_295), 1)
    .option("--json", "print one object")
    .action((options) => run(() => runSimulate(options)));
}

interface SimulateOptions extends Omit<TrafficOptions, "load" | "classes"> {
  class: PriorityClass;
  classes?: TrafficOptions["classes"];
  policy: keyof typeof POLICIES;
  load: number;
  backlog?: boolean;
  swapMs: number;
  deadlineMs?: number;
  admission?: boolean;
  replay?: string;
  json?: boolean;
}

async function runSimulate(options: SimulateOptions): Promise<number> {
  const { policy, slots, swapMs, deadlineMs, admission, replay, backlog, load, classes = { [options.class]: 1 } } = options;
  const jobs = replay === undefined ? syntheticTraffic({ ...options, classes, load: backlog ? null : load }) : recordedTraffic(replay);
  const deadlinesMs = { ...DEFAULT_DEADLINES_MS, ...(deadlineMs === undefined ? {} : { [options.class]: deadlineMs }) };
  const result = simulate({ jobs, policy: POLICIES[policy], slots, swapMs: { student: swapMs, talker: swapMs }, deadlinesMs, admission });
  say(options.json ? `${JSON.stringify({ policy, ...result })}\n` : simulationReport(policy, result));
  return 0;
}

function classMix(text: string): TrafficOptions["classes"] {
  const mix = parseClassMix(text);
  if (mix === null) throw new InvalidArgumentError(`Expected shares that add up to 1, like ${CLASS_MIX_EXAMPLE}.`);
  return mix;
}
