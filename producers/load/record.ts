import { z } from "zod";
import { PRIORITY_CLASSES } from "../../queues/names.ts";

/** What a request asks for: the Student's solution, that and the Talker's explanation, or the Talker alone. */
export const REQUEST_KINDS = ["student", "explain", "talker"] as const;
export type RequestKind = (typeof REQUEST_KINDS)[number];

/** By its scheduled time. Only `steady` is measured: a request that was scheduled in the warm-up stays out, whenever it ended. */
export const PHASES = ["warm-up", "steady", "cool-down"] as const;
export type Phase = (typeof PHASES)[number];

/** `refused`: turned away with 429. `failed`: everything else that isn't an answer. */
export const REQUEST_STATUSES = ["completed", "failed", "refused"] as const;
export type RequestStatus = (typeof REQUEST_STATUSES)[number];

/**
 * One request, one line of `requests.jsonl`, written when it has ended. Time stamps are epoch milliseconds with fractions, on the
 * generator's clock (those of a server on another host are corrected by `clockOffsetMs`); durations are milliseconds. null: not
 * measured, or there is none. metrics.ts has the formulas. A request that was cut off by an interruption has no line.
 */
export const loadRecordSchema = z.object({
  /** Its place in the plan: the same seed and options give the same request. */
  index: z.number().int().min(0),
  /** 0, and one more with each `--resume`. */
  session: z.number().int().min(0),
  kind: z.enum(REQUEST_KINDS),
  priorityClass: z.enum(PRIORITY_CLASSES),
  phase: z.enum(PHASES),
  /** Which of the rates of `--steps`, from 0. */
  step: z.number().int().nullable(),
  problemId: z.string(),
  /** Scheduled time from the beginning of the plan, without the pauses between sessions. */
  offsetMs: z.number(),
  scheduledAt: z.number(),
  sentAt: z.number(),
  /** `sentAt − scheduledAt`: how late the generator was. */
  dispatchDelayMs: z.number(),
  /** By the server: when our API had stored it. */
  acceptedAt: z.number().nullable(),
  /** By the server: when a worker first took it. */
  pickedAt: z.number().nullable(),
  firstTokenAt: z.number().nullable(),
  /** When the generator had the whole answer, or knew that there is none. */
  finishedAt: z.number(),
  e2eMs: z.number(),
  queueWaitMs: z.number().nullable(),
  swapWaitMs: z.number().nullable(),
  ttftMs: z.number().nullable(),
  /** The gaps between streamed pieces of text, in order; null where the target doesn't stream. */
  itlMs: z.array(z.number()).nullable(),
  tpotMs: z.number().nullable(),
  tokensIn: z.number().nullable(),
  tokensOut: z.number().nullable(),
  status: z.enum(REQUEST_STATUSES),
  /** A code of queues/errors.ts, `http-<status>`, `timeout`, `connection` or `broken-stream`; null when completed. */
  errorClass: z.string().nullable(),
  errorDetail: z.string().nullable(),
  /** The token limit cut the answer. */
  truncated: z.boolean(),
  /** It came from the API's cache; such a request has no waits and no first token of its own. */
  cached: z.boolean(),
  /** It was computed for an identical request in flight; as with `cached`. */
  coalesced: z.boolean(),
  /** Of its answer against the known one; null where one of them is missing. */
  verdict: z.enum(["equal", "different", "undecided"]).nullable(),
  /** What answered: the role at our API, the model's name at an OpenAI-compatible server. */
  model: z.string().nullable(),
  /** Server's clock minus the generator's, as known when the request ended; 0 on the same host. */
  clockOffsetMs: z.number(),
});
export type LoadRecord = z.infer<typeof loadRecordSchema>;
