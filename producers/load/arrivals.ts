import { readFile } from "node:fs/promises";
import { z } from "zod";
import { seededRandom } from "../../maths/seeded-random.ts";
import { MathllmError } from "../../queues/errors.ts";
import { PRIORITY_CLASSES, type PriorityClass } from "../../queues/names.ts";
import type { ArrivalOptions } from "./load-options.ts";
import { REQUEST_KINDS, type RequestKind } from "./record.ts";

/** When a request is to be sent, from the beginning of the plan. A replayed one also says what it was. */
export interface Arrival {
  offsetMs: number;
  step: number | null;
  kind?: RequestKind;
  priorityClass?: PriorityClass;
}

type ScheduledOptions = Exclude<ArrivalOptions, { pattern: "replay" | "closed" }>;

/** The endless, or for ramp and steps `durationS` long, seeded stream of arrivals in order. */
export function* arrivals(options: ScheduledOptions, seed: number, durationS = Number.POSITIVE_INFINITY): Generator<Arrival, void, void> {
  switch (options.pattern) {
    case "constant":
      for (let n = 0; ; n++) yield { offsetMs: (1000 * n) / options.ratePerS, step: null };
    case "poisson":
      return yield* spaced(gammaDraw(1, seededRandom(seed)), options.ratePerS);
    case "gamma":
      return yield* spaced(gammaDraw(options.burstiness, seededRandom(seed)), options.ratePerS * options.burstiness);
    case "ramp":
      return yield* ramp(options.fromPerS, options.toPerS, durationS);
    case "steps":
      return yield* steps(options.ratesPerS, durationS);
  }
}

/** `gap` is drawn in units of 1 / `scalePerS`. */
function* spaced(gap: () => number, scalePerS: number): Generator<Arrival, void, void> {
  for (let offsetMs = 0; ; ) {
    offsetMs += (1000 * gap()) / scalePerS;
    yield { offsetMs, step: null };
  }
}

/** The n-th request comes when the rate's integral a·t + (b − a)·t²/2D reaches n. */
function* ramp(from: number, to: number, durationS: number): Generator<Arrival, void, void> {
  const total = ((from + to) / 2) * durationS;
  const slope = (to - from) / durationS;
  for (let n = 0; n < total; n++) {
    // The root that also holds for a slope of 0.
    const atS = n === 0 ? 0 : (2 * n) / (from + Math.sqrt(Math.max(from * from + 2 * slope * n, 0)));
    yield { offsetMs: 1000 * atS, step: null };
  }
}

function* steps(ratesPerS: readonly number[], durationS: number): Generator<Arrival, void, void> {
  const stepS = durationS / ratesPerS.length;
  for (const [step, rate] of ratesPerS.entries()) {
    for (let n = 0; n < rate * stepS; n++) yield { offsetMs: 1000 * (step * stepS + n / rate), step };
  }
}

/**
 * Draws from the gamma distribution with this shape and scale 1. Shape 1 is the exponential; else G. Marsaglia and W. W. Tsang, "A
 * simple method for generating gamma variables", ACM TOMS 26 (2000), below 1 by way of shape + 1.
 */
export function gammaDraw(shape: number, random: () => number): () => number {
  if (shape === 1) return () => -Math.log(1 - random());
  if (shape < 1) {
    const larger = gammaDraw(shape + 1, random);
    return () => larger() * (1 - random()) ** (1 / shape);
  }
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  // Box and Muller's transform: two uniform numbers give a normal one.
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  return () => {
    for (;;) {
      const x = normal();
      const v = (1 + c * x) ** 3;
      if (v > 0 && Math.log(1 - random()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
    }
  };
}

const priorityClass = z.enum(PRIORITY_CLASSES);
/** One line a stage: the kind of the whole job stands at the front of its id. */
const telemetryLine = z
  .object({ kind: z.literal("job"), jobId: z.string(), acceptedAt: z.number(), class: priorityClass })
  .transform(({ jobId, acceptedAt, class: name }) => ({ id: jobId, at: acceptedAt, kind: kindOfJob(jobId), priorityClass: name }));
const requestLine = z
  .object({ index: z.number(), offsetMs: z.number(), kind: z.enum(REQUEST_KINDS), priorityClass })
  .transform(({ index, offsetMs, kind, priorityClass }) => ({ id: String(index), at: offsetMs, kind, priorityClass }));
const traceLine = z.union([telemetryLine, requestLine]);

function kindOfJob(jobId: string): RequestKind {
  return jobId.startsWith("explain-") ? "explain" : jobId.startsWith("talk-") ? "talker" : "student";
}

/** Times, kinds and classes of a recorded trace, shifted to begin at 0. Lines of other kinds, or cut short by a crash, are left out. */
export async function recordedArrivals(file: string): Promise<Arrival[]> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw new MathllmError("invalid-request", `Expected a trace at ${file}; ${(error as Error).message}.`, { cause: error });
  }
  const found = new Map<string, z.output<typeof traceLine>>();
  for (const line of text.split("\n")) {
    const record = traceLine.safeParse(parsed(line));
    if (record.success) found.set(record.data.id, record.data);
  }
  if (found.size === 0) {
    throw new MathllmError("invalid-request", `Expected telemetry with lines of kind job, or a requests.jsonl, in ${file}; came neither.`);
  }
  const inOrder = [...found.values()].sort((a, b) => a.at - b.at);
  return inOrder.map(({ at, kind, priorityClass }) => ({ offsetMs: at - inOrder[0]!.at, step: null, kind, priorityClass }));
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
