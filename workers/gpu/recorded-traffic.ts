import { readFileSync } from "node:fs";
import { MathllmError } from "../../queues/errors.ts";
import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../../queues/names.ts";
import type { SimulatedJob } from "./simulator.ts";

interface RecordedJob {
  role: Role;
  class: PriorityClass;
  queuedAt: number;
  pickedAt: number;
  doneAt: number;
  completed: boolean;
}

/**
 * The completed jobs of a telemetry file, shifted to begin at 0. The file tells how long each held its place; what it would have taken alone
 * follows from how many of its model's jobs ran beside it at each moment, r of them being together r^a times as fast as one.
 * Throws `invalid-configuration` when there are none.
 */
export function recordedTraffic(file: string, batchExponent: Record<Role, number> = { student: 1, talker: 1 }): SimulatedJob[] {
  const ran = jobRecords(file);
  const jobs = ROLES.flatMap((role) => {
    const ofRole = ran.filter((job) => job.role === role);
    const serviceMs = aloneMs(ofRole, batchExponent[role]);
    return ofRole.flatMap(({ class: name, queuedAt, completed }, i) =>
      completed ? [{ role, class: name, arrivalMs: queuedAt, serviceMs: serviceMs[i]! }] : [],
    );
  });
  if (jobs.length === 0)
    throw new MathllmError("invalid-configuration", `--replay, --lengths: ${file} has no line of kind job with outcome completed.`);
  const startMs = jobs.reduce((least, job) => Math.min(least, job.arrivalMs), Number.POSITIVE_INFINITY);
  return jobs.map((job) => ({ ...job, arrivalMs: job.arrivalMs - startMs })).sort((a, b) => a.arrivalMs - b.arrivalMs);
}

/**
 * How long the completed jobs of a telemetry file would have taken alone, by model, milliseconds. Throws `invalid-configuration` where a model
 * that is to have jobs (`mix`: the Student's share) has none.
 */
export function recordedLengths(file: string, batchExponent: Record<Role, number>, mix: number): Record<Role, number[]> {
  const jobs = recordedTraffic(file, batchExponent);
  const of = (role: Role, share: number) => {
    const lengths = jobs.filter((job) => job.role === role).map((job) => job.serviceMs);
    if (lengths.length > 0 || share === 0) return lengths;
    throw new MathllmError("invalid-configuration", `--lengths: ${file} has no completed job of the ${role}; --mix leaves a model out.`);
  };
  return { student: of("student", mix), talker: of("talker", 1 - mix) };
}

/** What each of one model's jobs would have taken alone, milliseconds. */
function aloneMs(jobs: RecordedJob[], batchExponent: number): number[] {
  const changes = jobs.flatMap(({ pickedAt, doneAt }, index) => [
    { at: pickedAt, index, by: 1 },
    { at: doneAt, index, by: -1 },
  ]);
  changes.sort((a, b) => a.at - b.at);
  const alone = new Array<number>(jobs.length).fill(0);
  let [running, work, last] = [0, 0, 0];
  for (const { at, index, by } of changes) {
    // The work that each of those running has got since the beginning.
    if (running > 0) work += (at - last) * running ** (batchExponent - 1);
    alone[index]! -= by * work;
    running += by;
    last = at;
  }
  return alone;
}

/** Every job that ran, by model; those that didn't complete took part of the card as well. */
function jobRecords(file: string): RecordedJob[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new MathllmError("invalid-configuration", `--replay, --lengths: expected a telemetry file; ${(error as Error).message}.`);
  }
  return text.split("\n").flatMap((line): RecordedJob[] => {
    if (!line.includes('"kind":"job"')) return [];
    const { queuedAt, pickedAt, doneAt, role, class: name, outcome } = parseLine(line);
    if (typeof queuedAt !== "number" || typeof pickedAt !== "number" || typeof doneAt !== "number") return [];
    const [known, knownRole] = [PRIORITY_CLASSES.find((each) => each === name), ROLES.find((each) => each === role)];
    if (known === undefined || knownRole === undefined) return [];
    return [{ role: knownRole, class: known, queuedAt, pickedAt, doneAt, completed: outcome === "completed" }];
  });
}

/** A line that a crash cut short is no record. */
function parseLine(line: string): Record<string, unknown> {
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    return {};
  }
}
