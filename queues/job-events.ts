import { z } from "zod";
import { jobViewSchema } from "./contracts.ts";
import { ROLES } from "./names.ts";

const textSchema = { model: z.enum(ROLES), attempt: z.number(), sample: z.number().nullable() };

/**
 * The story of one job as `GET /jobs/:id/events` tells it, each with its schema:
 *
 *   state ─ position* ─ ( model ─ token* )* ─ result
 *
 * `state` and `position` tell how it stands now: at the beginning, and between the others whenever it has changed. `model` begins the text of a stage, or
 * begins it anew: what came of this model (and sample) before is void. Everything from `model` to `result` is told from the job's start, to a late
 * listener too; with `result` each model's text put together (the one without a sample) is the result's `solution` or `explanation`.
 *
 * `token` and `result` carry an id, and a listener that comes back with the last one as `Last-Event-ID` gets what follows it, once. After
 * `result` the stream ends, and who comes back then hears 204.
 */
export const JOB_EVENTS = {
  state: jobViewSchema.pick({ jobId: true, status: true, model: true, priority: true, stages: true, reason: true, timestamps: true }),
  /** While it waits. */
  position: jobViewSchema.pick({ position: true, estimatedStartMs: true }),
  /** `attempt` 1 is the first; 0: the text comes from the cache. `sample`: which one of a vote, whose texts may come mixed; null otherwise. */
  model: z.object(textSchema),
  token: z.object({ ...textSchema, text: z.string() }),
  result: jobViewSchema,
} as const;

export type JobEventName = keyof typeof JOB_EVENTS;
type Data<N extends JobEventName> = z.infer<(typeof JOB_EVENTS)[N]>;
export type JobEvent = { [N in JobEventName]: { event: N; id?: string; data: Data<N> } }[JobEventName];
/** The part of the story that never changes. */
export type TextEvent = Extract<JobEvent, { event: "model" | "token" }>;

/** A position in the stream of tokens, or behind it: what no stream holds, and the end. */
export const LAST_EVENT_ID = /^(\d{1,16}-\d{1,16}|rest-(student|talker)|end)$/;
export const END_ID = "end";
