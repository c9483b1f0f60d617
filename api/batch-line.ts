import { z } from "zod";
import { MAX_CUSTOM_ID_CHARS } from "../queues/batch-contracts.ts";
import { type JobRequest, type SolveRequest, samplingSchema, solveRequestSchema } from "../queues/contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import { parseBody } from "./parse-body.ts";

const { explain, model, priority, samples, cache, timeoutMs, metadata } = solveRequestSchema.shape;

/** What every line is given that does not say otherwise: fields of a request, without their own defaults. */
export const batchDefaultsSchema = z
  .strictObject({
    explain: explain.unwrap(),
    model: model.unwrap(),
    priority: priority.unwrap(),
    sampling: samplingSchema.extend({ temperature: samplingSchema.shape.temperature.unwrap() }).partial(),
    samples: samples.unwrap(),
    cache: cache.unwrap(),
    timeoutMs,
    metadata,
  })
  .partial();
export type BatchDefaults = z.infer<typeof batchDefaultsSchema>;

export const batchMetadataSchema = metadata;

/** Without a word about it a line waits behind everybody else's problems. */
const OWN_DEFAULTS = { priority: "batch" };

export interface BatchRequest {
  customId: string | null;
  request: JobRequest;
}

const lineSchema = z.object({
  custom_id: z.string().min(1).max(MAX_CUSTOM_ID_CHARS).nullish(),
  webhook: z.undefined({ error: "expected none: a batch has no webhooks, its results are at /batches/:id/results" }).optional(),
});

/** Reads lines that are requests of `POST /solve` with a `custom_id`. Throws `invalid-request`. */
export function batchLineParser(defaults: BatchDefaults): (value: unknown) => BatchRequest {
  const given: Record<string, unknown> = { ...OWN_DEFAULTS, ...defaults };
  return (value) => {
    if (!isObject(value))
      throw new MathllmError("invalid-request", `Expected a JSON object; got ${Array.isArray(value) ? "an array" : typeof value}.`);
    const { custom_id: customId } = parseBody(lineSchema, value);
    const { custom_id: _, ...own } = value;
    const merged = { ...given, ...own };
    for (const name of ["sampling", "metadata"]) {
      if (isObject(given[name]) && isObject(own[name])) merged[name] = { ...given[name], ...own[name] };
    }
    const request: SolveRequest = parseBody(solveRequestSchema, merged);
    return { customId: customId ?? null, request };
  };
}

/** The line's `custom_id`, whatever else is wrong with it. */
export function customIdOf(value: unknown): string | null {
  const id = isObject(value) ? value.custom_id : null;
  return typeof id === "string" && id.length <= MAX_CUSTOM_ID_CHARS ? id : null;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}
