import { z } from "zod";
import { JOB_STATUSES, jobViewSchema, publishedModelSchema } from "./contracts.ts";
import { ROLES } from "./names.ts";

/** What `POST /batches` and its results agree on. Field names of a line are those of the OpenAI batch files where both have them. */

/** `ingesting`: its lines are still being taken. `cancelling`: some of them have not ended yet. */
export const BATCH_STATUSES = ["ingesting", "running", "completed", "cancelling", "cancelled"] as const;
export type BatchStatus = (typeof BATCH_STATUSES)[number];

export const MAX_CUSTOM_ID_CHARS = 512;

export const batchCountsSchema = z.object({
  /** All lines that have been read; the sum of `invalid`, `waiting`, `active`, `completed`, `failed` and `cancelled`. */
  total: z.number(),
  invalid: z.number(),
  waiting: z.number(),
  active: z.number(),
  completed: z.number(),
  failed: z.number(),
  cancelled: z.number(),
  /** Of the completed ones, those whose answer was in the cache when they came. */
  cached: z.number(),
  /** Lines that follow an identical request that was in flight, of this batch or outside of it. */
  coalesced: z.number(),
});
export type BatchCounts = z.infer<typeof batchCountsSchema>;

export const batchViewSchema = z.object({
  batchId: z.string(),
  status: z.enum(BATCH_STATUSES),
  counts: batchCountsSchema,
  /** Of the completed lines with `expected`; `low` and `high` are Wilson's 95 % interval. Null while nothing is graded. */
  accuracy: z
    .object({
      graded: z.number(),
      equal: z.number(),
      different: z.number(),
      undecided: z.number(),
      accuracy: z.number().nullable(),
      low: z.number(),
      high: z.number(),
    })
    .nullable(),
  /** Milliseconds until its last waiting line is begun, as expected now; null when nothing waits or nothing has been measured. */
  etaMs: z.number().nullable(),
  /** Epoch milliseconds. `uploadedAt`: all lines have been taken. `finishedAt`: all have ended. `expiresAt`: what is known of it is forgotten. */
  timestamps: z.object({
    createdAt: z.number(),
    uploadedAt: z.number().nullable(),
    cancelledAt: z.number().nullable(),
    finishedAt: z.number().nullable(),
    expiresAt: z.number().nullable(),
  }),
  /**
   * Those that answer for the roles that its lines need, each that has been there since it was opened: several of a role when it was changed
   * meanwhile, none when no worker has loaded any. `current`: it would answer now.
   */
  models: z.array(publishedModelSchema.extend({ role: z.enum(ROLES), current: z.boolean() })),
  metadata: z.record(z.string(), z.string()),
  links: z.object({ self: z.string(), results: z.string(), errors: z.string() }),
});
export type BatchView = z.infer<typeof batchViewSchema>;

/** A line that was not accepted. */
export const batchLineErrorSchema = z.object({
  /** In the upload, from 1, blank lines counted; of a JSON body the place in `requests`. */
  line: z.number(),
  /** Among the lines that are not blank, from 0. */
  index: z.number(),
  custom_id: z.string().nullable(),
  error: z.object({ code: z.string(), title: z.string(), detail: z.string() }),
});
export type BatchLineError = z.infer<typeof batchLineErrorSchema>;

/** The most of them that an answer shows; the rest are at `/batches/:id/errors`. */
export const SHOWN_LINE_ERRORS = 100;

/** The answer to `POST /batches`. */
export const batchAcceptedSchema = batchViewSchema.extend({ errors: z.array(batchLineErrorSchema) });
export type BatchAccepted = z.infer<typeof batchAcceptedSchema>;

/** One line of `/batches/:id/results`, also of one that has not ended. */
export const batchResultSchema = z.object({
  custom_id: z.string().nullable(),
  index: z.number(),
  jobId: z.string(),
  status: z.enum(JOB_STATUSES),
  result: jobViewSchema.shape.result,
  error: jobViewSchema.shape.error,
});
export type BatchResult = z.infer<typeof batchResultSchema>;
