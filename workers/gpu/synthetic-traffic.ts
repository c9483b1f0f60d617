import { readFileSync } from "node:fs";
import { seededRandom } from "../../maths/seeded-random.ts";
import { MathllmError } from "../../queues/errors.ts";
import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "../../queues/names.ts";
import type { SimulatedJob } from "./simulator.ts";

export interface TrafficOptions {
  jobs: number;
  /** Mean service time of both models, milliseconds. */
  serviceMs: number;
  /** Coefficient of variation of the service time: 1 exponential, 0 constant, else lognormal. */
  serviceCv: number;
  slots: number;
  /** The Student's share. */
  mix: number;
  /** Offered load ρ = λ · service / slots; null: all jobs are there at time 0. */
  load: number | null;
  /** Jobs that arrive together: 1 is Poisson, n a Poisson stream of groups of n. */
  burst: number;
  /** Each class's share, together 1. */
  classes: Partial<Record<PriorityClass, number>>;
  seed: number;
}

/** Jobs of a seeded random stream, by arrival. */
export function syntheticTraffic({ jobs, serviceMs, serviceCv, slots, mix, load, burst, classes, seed }: TrafficOptions): SimulatedJob[] {
  const random = seededRandom(seed);
  // Classes have their own source: the same seed gives the same jobs at the same times whatever the mix of classes.
  const randomClass = seededRandom(~seed);
  const exponential = (mean: number) => -mean * Math.log(1 - random());
  const service = serviceDraw(serviceMs, serviceCv, random, exponential);
  let arrivalMs = 0;
  return Array.from({ length: jobs }, (_, i) => {
    if (load !== null && i % burst === 0) arrivalMs += exponential((burst * serviceMs) / (load * slots));
    return { role: random() < mix ? "student" : "talker", class: classDraw(classes, randomClass), arrivalMs, serviceMs: service() };
  });
}

function classDraw(classes: TrafficOptions["classes"], random: () => number): PriorityClass {
  const at = random();
  const present = PRIORITY_CLASSES.filter((name) => (classes[name] ?? 0) > 0);
  const upTo = (i: number) => present.slice(0, i + 1).reduce((sum, name) => sum + classes[name]!, 0);
  // The last one also takes what rounding leaves.
  return present.find((_, i) => at < upTo(i)) ?? present.at(-1)!;
}

/** A mix like `interactive:0.2,normal:0.5,batch:0.3`; null when it isn't one. Shares must add up to 1, give or take a rounding. */
export function parseClassMix(text: string): TrafficOptions["classes"] | null {
  const mix: TrafficOptions["classes"] = {};
  for (const part of text.split(",")) {
    const [name, share, ...rest] = part.split(":").map((word) => word.trim());
    const known = PRIORITY_CLASSES.find((each) => each === name);
    if (known === undefined || known in mix || rest.length > 0 || !share || !(Number(share) >= 0)) return null;
    mix[known] = Number(share);
  }
  const sum = Object.values(mix).reduce((total, share) => total + share, 0);
  return Math.abs(sum - 1) < 0.001 ? mix : null;
}

function serviceDraw(mean: number, cv: number, random: () => number, exponential: (mean: number) => number): () => number {
  if (cv === 0) return () => mean;
  if (cv === 1) return () => exponential(mean);
  const variance = Math.log(1 + cv * cv);
  // Box and Muller's transform: two uniform numbers give a normal one.
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  return () => mean * Math.exp(Math.sqrt(variance) * normal() - variance / 2);
}

/** The finished jobs of a telemetry file, shifted to begin at 0. Throws `invalid-configuration` when there are none. */
export function recordedTraffic(file: string): SimulatedJob[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new MathllmError("invalid-configuration", `--replay: expected a telemetry file; ${(error as Error).message}.`);
  }
  const jobs = text.split("\n").flatMap((line): SimulatedJob[] => {
    if (!line.includes('"kind":"job"')) return [];
    const record = parseLine(line);
    const { queuedAt, pickedAt, doneAt, role, class: name } = record;
    if (typeof queuedAt !== "number" || typeof pickedAt !== "number" || typeof doneAt !== "number" || record.outcome !== "completed")
      return [];
    if (!PRIORITY_CLASSES.includes(name as PriorityClass) || !ROLES.includes(role as Role)) return [];
    return [
      {
        role: role as Role,
        class: name as PriorityClass,
        arrivalMs: queuedAt,
        serviceMs: doneAt - pickedAt,
      },
    ];
  });
  if (jobs.length === 0)
    throw new MathllmError("invalid-configuration", `--replay: ${file} has no line of kind job with outcome completed.`);
  const startMs = Math.min(...jobs.map((job) => job.arrivalMs));
  return jobs.map((job) => ({ ...job, arrivalMs: job.arrivalMs - startMs })).sort((a, b) => a.arrivalMs - b.arrivalMs);
}

/** A line that a crash cut short is no record. */
function parseLine(line: string): Record<string, unknown> {
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    return {};
  }
}
