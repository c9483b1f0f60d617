import { seededRandom } from "../../maths/seeded-random.ts";
import { PRIORITY_CLASSES, type PriorityClass, type Role } from "../../queues/names.ts";
import { exponentialDraw, gammaDraw, lognormalDraw } from "./random-times.ts";
import type { SimulatedJob } from "./simulator.ts";

/** Swaps have their own source of random numbers, apart from the jobs'. */
const SWAP_SEED = 0x5eed;

/** One value for both models, or each its own. */
export type PerModel = number | Record<Role, number>;

export interface TrafficOptions {
  jobs: number;
  /** Mean service time of a job alone, milliseconds. */
  serviceMs: PerModel;
  /** Coefficient of variation of the service time: 1 exponential, 0 constant, else lognormal. */
  serviceCv: number;
  /** Service times to draw from instead of `serviceMs` and `serviceCv`, milliseconds; at least one for each model that has jobs. */
  lengthsMs?: Record<Role, number[]>;
  slots: number;
  /** a: r jobs at once are together r^a times as fast as one. Absent: 1. */
  batchExponent?: PerModel;
  /** The Student's share. */
  mix: number;
  /** Offered load ρ = λ · service / slots^a; null: all jobs are there at time 0. */
  load: number | null;
  /** Jobs that arrive together: 1 is Poisson, n a Poisson stream of groups of n. */
  burst: number;
  /** Each class's share, together 1. */
  classes: Partial<Record<PriorityClass, number>>;
  seed: number;
}

/** Jobs of a seeded random stream, by arrival. */
export function syntheticTraffic(options: TrafficOptions): SimulatedJob[] {
  const { jobs, serviceCv, lengthsMs, slots, batchExponent = 1, mix, load, burst, classes, seed } = options;
  const random = seededRandom(seed);
  // Classes have their own source: the same seed gives the same jobs at the same times whatever the mix of classes.
  const randomClass = seededRandom(~seed);
  const exponential = exponentialDraw(random);
  const meanMs =
    lengthsMs === undefined ? perModel(options.serviceMs) : { student: meanOf(lengthsMs.student), talker: meanOf(lengthsMs.talker) };
  const service = serviceDraw(serviceCv, random);
  const exponents = perModel(batchExponent);
  // What a job takes of a card whose slots are all busy, in the mean; a model without jobs has no say.
  const share = (role: Role, part: number) => (part === 0 ? 0 : (part * meanMs[role]) / slots ** exponents[role]);
  const perJobMs = share("student", mix) + share("talker", 1 - mix);
  let arrivalMs = 0;
  return Array.from({ length: jobs }, (_, i) => {
    if (load !== null && i % burst === 0) arrivalMs += exponential((burst * perJobMs) / load);
    const role = random() < mix ? "student" : "talker";
    const serviceMs = lengthsMs === undefined ? service(meanMs[role]) : lengthsMs[role][Math.floor(random() * lengthsMs[role].length)]!;
    return { role, class: classDraw(classes, randomClass), arrivalMs, serviceMs };
  });
}

/** How long a swap takes of a mean: gamma, so Erlang-k for a coefficient of variation of 1/√k; 0: just as long. The same seed draws the same. */
export function swapDraw(cv: number, seed: number): (meanMs: number) => number {
  return cv === 0 ? (meanMs) => meanMs : gammaDraw(cv, seededRandom(seed + SWAP_SEED));
}

export function perModel(value: PerModel): Record<Role, number> {
  return typeof value === "number" ? { student: value, talker: value } : value;
}

function serviceDraw(cv: number, random: () => number): (meanMs: number) => number {
  if (cv === 0) return (meanMs) => meanMs;
  return cv === 1 ? exponentialDraw(random) : lognormalDraw(cv, random);
}

function meanOf(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
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
