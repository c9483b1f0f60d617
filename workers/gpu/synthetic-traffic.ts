import { readFileSync } from "node:fs";
import { seededRandom } from "../../maths/seeded-random.ts";
import { MathllmError } from "../../queues/errors.ts";
import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";
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
  class: PriorityClass;
  seed: number;
}

/** Jobs of a seeded random stream, by arrival. */
export function syntheticTraffic({
  jobs,
  serviceMs,
  serviceCv,
  slots,
  mix,
  load,
  burst,
  class: name,
  seed,
}: TrafficOptions): SimulatedJob[] {
  const random = seededRandom(seed);
  const exponential = (mean: number) => -mean * Math.log(1 - random());
  const service = serviceDraw(serviceMs, serviceCv, random, exponential);
  let arrivalMs = 0;
  return Array.from({ length: jobs }, (_, i) => {
    if (load !== null && i % burst === 0) arrivalMs += exponential((burst * serviceMs) / (load * slots));
    return { role: random() < mix ? "student" : "talker", class: name, arrivalMs, serviceMs: service() };
  });
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
    if (!PRIORITY_CLASSES.includes(name as PriorityClass)) return [];
    return [
      {
        role: role === "talker" ? "talker" : ("student" satisfies Role),
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
