import { parseArgs } from "node:util";
import Table from "cli-table3";
import { KILL_TARGETS, PAUSE_TARGETS, runStorm, type StormReport } from "./storm.ts";
import { runScript, UsageError, wholeNumber } from "./usage.ts";

/** npm run test:faults: the long fault storm. Exit code 0 without violations, 1 with, 2 on wrong usage. */

const HELP = `npm run test:faults -- [options]
  --seed N       settles jobs and faults (1)
  --jobs N       how many jobs (2000)
  --kills N      of each of ${KILL_TARGETS.join(", ")} (5); or only some: worker=3,redis=1
  --pauses N     of each of ${PAUSE_TARGETS.join(", ")} (2); or only some: worker=3
  --every-s N    seconds between two faults (12)
  --bound-s N    the longest a job may take from acceptance to end (240)
`;
const SHOWN_VIOLATIONS = 50;

function counts<T extends string>(name: string, text: string, targets: readonly T[]): Record<T, number> {
  const each = /^\d+$/.test(text) ? wholeNumber(name, text) : undefined;
  const result = Object.fromEntries(targets.map((target) => [target, each ?? 0])) as Record<T, number>;
  if (each !== undefined) return result;
  for (const part of text.split(",")) {
    const [target, count] = part.split("=");
    if (!targets.includes(target as T))
      throw new UsageError(`${name}: expected a number, or ${targets.join(", ")}, each with = and a number; got ${part}`);
    result[target as T] = wholeNumber(name, count ?? "");
  }
  return result;
}

function options() {
  return parseArgs({
    options: {
      seed: { type: "string", default: "1" },
      jobs: { type: "string", default: "2000" },
      kills: { type: "string", default: "5" },
      pauses: { type: "string", default: "2" },
      "every-s": { type: "string", default: "12" },
      "bound-s": { type: "string", default: "240" },
      help: { type: "boolean", default: false },
    },
  }).values;
}

function print(report: StormReport): void {
  const seconds = (ms: number | null) => (ms === null ? "never" : `${(ms / 1000).toFixed(1)} s`);
  const faults = new Table({ head: ["fault", "at", "in flight", "next completed after", "outcome"], style: { head: [], border: [] } });
  for (const { name, at, inFlight, recoveredMs, outcome } of report.faults) {
    faults.push([name, new Date(at).toISOString().slice(11, 23), inFlight, seconds(recoveredMs), outcome]);
  }
  const sum = new Table({ style: { head: [], border: [] } });
  const accepted = Object.entries(report.accepted).map(([kind, count]) => `${count} ${kind}`);
  const retries = Object.entries(report.submitRetries).map(([why, count]) => `${why} ${count}`);
  sum.push(
    { accepted: accepted.join(", ") },
    { "completed jobs": report.completed },
    { "completed stages": report.stagesCompleted },
    { "stages begun more than once": report.retriedStages },
    { "submissions tried again": retries.join(", ") || "none" },
    { "stored though their first POST got no answer": report.foundAgain },
    { "loads of a model": report.swaps },
    { "longest job": seconds(report.longestJobMs) },
    { "longest from a fault to the next completed": seconds(report.longestRecoveryMs) },
    { "exits not ours": report.ownExits.length },
    { "looks at /proc": `${report.sampler.samples}, longest gap ${Math.round(report.sampler.longestGapMs)} ms` },
    { "most model servers at once": report.sampler.maxLive },
    { took: seconds(report.tookMs) },
    { violations: report.violations.length },
  );
  process.stdout.write(`${faults.toString()}\n${sum.toString()}\n`);
}

async function main(): Promise<number> {
  const values = options();
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const interrupted = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => interrupted.abort(new Error(`interrupted by ${signal}`)));
  const startedAt = Date.now();
  const report = await runStorm({
    seed: wholeNumber("--seed", values.seed),
    jobs: wholeNumber("--jobs", values.jobs),
    kills: counts("--kills", values.kills, KILL_TARGETS),
    pauses: counts("--pauses", values.pauses, PAUSE_TARGETS),
    faultEveryMs: 1000 * wholeNumber("--every-s", values["every-s"]),
    boundMs: 1000 * wholeNumber("--bound-s", values["bound-s"]),
    log: (line) => process.stdout.write(`${((Date.now() - startedAt) / 1000).toFixed(1).padStart(6)} s  ${line}\n`),
    signal: interrupted.signal,
  });
  print(report);
  for (const violation of report.violations.slice(0, SHOWN_VIOLATIONS)) process.stdout.write(`VIOLATION  ${violation}\n`);
  if (report.violations.length > SHOWN_VIOLATIONS) process.stdout.write(`and ${report.violations.length - SHOWN_VIOLATIONS} more\n`);
  if (report.folder !== null) process.stdout.write(`logs and telemetry: ${report.folder}\n`);
  const flags = (["seed", "jobs", "kills", "pauses", "every-s", "bound-s"] as const).map((name) => `--${name} ${values[name]}`);
  process.stdout.write(`again: npm run test:faults -- ${flags.join(" ")}\n`);
  return report.violations.length === 0 ? 0 : 1;
}

await runScript(HELP, main);
