import type { Role } from "../../queues/names.ts";
import type { ModelRates, PolicySnapshot } from "./policy.ts";
import { type PlannedModel, SwapPlan } from "./swap-plan.ts";

/**
 * A plan is made for rounded rates: the load of both models and the first one's part in it by their logits, ln(x / (1 − x)), in steps of 0.3 and
 * 0.5 (at a load of 0.7 that is ±0.03, at 0.9 ±0.013), ratios of times in steps of 40 %, exponents in tenths.
 */
const LOAD_STEP = 0.3;
const PART_STEP = 0.5;
const TIME_STEP = Math.log(1.4);
const EXPONENT_STEPS = 10;
/** A model without arrivals is taken to have some: those of its jobs that wait now came, too. */
const LEAST_LOAD = 0.02;
const LEAST_PART = 0.01;
/** In overload no mean exists; plans are made for this load at most, both models' together. */
const MOST_LOAD = 0.95;
/** Times are told in those of a Student's job alone, within these bounds. */
const LEAST_TIME = 0.01;
const MOST_TIME = 200;
/** With more slots, so many jobs count as one that a plan has no more than this. */
const MOST_SLOTS = 16;
/** Plans that are kept, the ones used last. */
const KEPT_PLANS = 64;

/** Whether the resident model goes on, with so many jobs waiting on either side and at least one running or waiting. */
export type GoesOn = (resident: Role, own: number, others: number, running: number) => boolean;

/** Whatever was asked before, the same rates get the same plan: what is kept only saves the time to make it again. */
const kept = new Map<string, GoesOn | null>();

/** The plan for these rates; null while nothing is measured of one of the models, or where no plan is found. */
export function planFor(rates: PolicySnapshot["rates"]): GoesOn | null {
  const rounded = rounding(rates);
  if (rounded === null) return null;
  const key = rounded.join(" ");
  let planned = kept.get(key);
  if (planned === undefined) planned = make(rounded, rates);
  else kept.delete(key);
  kept.set(key, planned);
  if (kept.size > KEPT_PLANS) kept.delete(kept.keys().next().value!);
  return planned;
}

/** What tells a plan from another, as whole numbers of steps: load, the Student's part, times, exponents, and the slots. */
type Rounded = readonly [number, number, number, number, number, number, number, number, number];

function rounding({ student, talker }: PolicySnapshot["rates"]): Rounded | null {
  const [first, second] = [aloneMs(student), aloneMs(talker)];
  if (!(first > 0 && second > 0)) return null;
  const loads = [loadOf(student, first), loadOf(talker, second)] as const;
  const load = Math.min(Math.max(loads[0] + loads[1], LEAST_LOAD), MOST_LOAD);
  const part = Math.min(Math.max(loads[0] / (loads[0] + loads[1] || 1), LEAST_PART), 1 - LEAST_PART);
  const time = (ms: number) => Math.round(Math.log(Math.min(Math.max(ms / first, LEAST_TIME), MOST_TIME)) / TIME_STEP);
  const exponent = ({ batchExponent = 1 }: ModelRates) => Math.round(batchExponent * EXPONENT_STEPS);
  return [
    Math.round(logit(load) / LOAD_STEP),
    Math.round(logit(part) / PART_STEP),
    time(second),
    time(loadMs(student)),
    time(loadMs(talker)),
    exponent(student),
    exponent(talker),
    student.slots,
    talker.slots,
  ];
}

function make(rounded: Rounded, rates: Record<Role, ModelRates>): GoesOn | null {
  const [loadSteps, partSteps, time, swap0, swap1, exponent0, exponent1, slots0, slots1] = rounded;
  const group = Math.ceil(Math.max(rates.student.slots, rates.talker.slots) / MOST_SLOTS);
  const [load, part] = [logistic(loadSteps * LOAD_STEP), logistic(partSteps * PART_STEP)];
  const model = (share: number, alone: number, swapTime: number, exponent: number, slots: number): PlannedModel => {
    const places = Math.max(Math.round(slots / group), 1);
    const ends = Float64Array.from({ length: places + 1 }, (_, r) => (r === 0 ? 0 : r ** (exponent / EXPONENT_STEPS) / alone));
    return { arrivals: share * ends[places]!, ends, swapTime, slots: places };
  };

  const plan = new SwapPlan([
    model(load * part, 1, Math.exp(swap0 * TIME_STEP), exponent0, slots0),
    model(load * (1 - part), Math.exp(time * TIME_STEP), Math.exp(swap1 * TIME_STEP), exponent1, slots1),
  ]);
  if (!plan.found) return null;
  const slots = { student: slots0, talker: slots1 };
  return (resident, own, others, running) => {
    const busy = running === 0 ? 0 : Math.min(Math.max(Math.round(running / group), 1), Math.round(slots[resident] / group));
    return plan.excess(resident === "student" ? 0 : 1, Math.ceil(own / group), Math.max(others / group, 1), busy) <= 0;
  };
}

const logit = (share: number): number => Math.log(share / (1 - share));
const logistic = (x: number): number => 1 / (1 + Math.exp(-x));

function aloneMs({ aloneMs: alone, serviceMs }: ModelRates): number {
  return alone || serviceMs;
}

function loadMs({ loadMs: load, swapMs }: ModelRates): number {
  return load || swapMs;
}

/** The share of its time that a model would need for what arrives with all slots busy. */
function loadOf({ arrivalsPerMs, batchExponent = 1, slots }: ModelRates, alone: number): number {
  return (arrivalsPerMs * alone) / slots ** batchExponent;
}
