import { type Response, Router } from "express";
import { z } from "zod";
import { hasRole } from "../../queues/api-keys.ts";
import type { BatchStatus, BatchView } from "../../queues/batch-contracts.ts";
import type { Config } from "../../queues/config.ts";
import { solveRequestSchema } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { BatchRequest } from "../batch-line.ts";
import { jsonLines } from "../batch-upload.ts";
import type { Batches } from "../batches.ts";
import { keyOf } from "../middleware/authenticate.ts";
import { jsonBody } from "../middleware/json-body.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { outputFileId } from "./batch-output.ts";
import { parse, parseChatRequest } from "./chat-request.ts";
import { RequestRefused } from "./errors.ts";
import type { FileStore } from "./file-store.ts";
import { listForm, seconds } from "./files.ts";

const ENDPOINT = "/v1/chat/completions";
const WINDOW_MS = 86_400_000;
const SHOWN_ERRORS = 100;
const MAX_LISTED = 100;
/** The latest batches, among which a page of the list is looked for. */
const KEPT_LISTED = 10_000;

export const createSchema = z.object({
  input_file_id: z.string(),
  endpoint: z.literal(ENDPOINT, `expected ${ENDPOINT}`),
  completion_window: z.literal("24h", "expected 24h"),
  metadata: solveRequestSchema.shape.metadata.nullable(),
});
const lineSchema = z.object({
  custom_id: z.string("expected a text that no other line has").min(1).max(512),
  method: z.literal("POST", "expected POST"),
  url: z.literal(ENDPOINT, `expected ${ENDPOINT}`),
  body: z.record(z.string(), z.unknown()),
});
const listSchema = z.object({ limit: z.coerce.number().int().min(1).max(MAX_LISTED).default(20), after: z.string().optional() });

/** A batch that came this way carries what the OpenAI form says of it beside the user's metadata. */
const OWN = { file: "openai:input_file_id", window: "openai:completion_window" };

const STATUSES: Record<BatchStatus, string> = {
  ingesting: "validating",
  running: "in_progress",
  completed: "completed",
  cancelling: "cancelling",
  cancelled: "cancelled",
};

/**
 * `POST /v1/batches`, `GET` of the list and of one, `POST /v1/batches/:id/cancel`. The answer comes when all lines of the file are in Redis: what
 * can't be taken whole for now is refused, and cancelled. A line that is wrong in itself ends in the error file.
 */
export function openaiBatchesRoute(batches: Batches, files: FileStore, config: Config): Router {
  const router = Router();

  router.post("/", jsonBody(config), async (request, response) => {
    const { input_file_id, completion_window, metadata } = parse(createSchema, request.body);
    const key = keyOf(response);
    const file = await files.read(input_file_id);
    const isVisible = file !== undefined && (key === null || hasRole(key, "admin") || file.owner === key.name);
    if (!isVisible) {
      throw new RequestRefused(404, `input_file_id: no file has the id ${JSON.stringify(input_file_id.slice(0, 100))}.`, "input_file_id");
    }
    const own = { [OWN.file]: input_file_id, [OWN.window]: completion_window };
    const content = files.content(file);
    try {
      const { batchId } = await batches.upload(jsonLines(content, config.bodyLimitBytes), {
        parse: parseLine,
        defaults: {},
        metadata: { ...metadata, ...own },
        owner: key ?? undefined,
      });
      response.json(await formOf((await batches.view(batchId))!));
    } catch (error) {
      const { batchId } = error instanceof MathllmError ? error.extra : {};
      if (typeof batchId !== "string") throw error;
      await batches.cancel(batchId);
      throw new MathllmError((error as MathllmError).code, `${reasonOf(error as MathllmError)} The batch was cancelled.`, {
        extra: (error as MathllmError).extra,
      });
    } finally {
      content.destroy();
    }
  });

  router.get("/", async (request, response) => {
    const { limit, after } = parse(listSchema, request.query);
    const key = keyOf(response);
    const owner = key === null || hasRole(key, "admin") ? undefined : key.name;
    const known = (await batches.list(KEPT_LISTED, owner)).filter(isOurs);
    const page = listForm(known, ({ batchId }) => ({ id: batchId }), { limit, after });
    const shown = new Set(page.data.map(({ id }) => id));
    response.json({ ...page, data: await Promise.all(known.filter(({ batchId }) => shown.has(batchId)).map(formOf)) });
  });
  router.all("/", onlyMethods("GET", "POST"));

  router.get("/:id", async (request, response) => {
    response.json(await formOf(await load(request.params.id, response)));
  });
  router.all("/:id", onlyMethods("GET"));

  router.post("/:id/cancel", async (request, response) => {
    const { batchId } = await load(request.params.id, response);
    await batches.cancel(batchId);
    response.json(await formOf(await load(batchId, response)));
  });
  router.all("/:id/cancel", onlyMethods("POST"));

  /** Throws a 404. Another key's batch does not exist for this one. */
  async function load(id: string, response: Response): Promise<BatchView> {
    const key = keyOf(response);
    const view = await batches.view(id);
    const isVisible = key === null || hasRole(key, "admin") || (await batches.isVisibleTo(key.name, id));
    if (view !== undefined && isOurs(view) && isVisible) return view;
    throw new RequestRefused(404, `No batch has the id ${JSON.stringify(id.slice(0, 100))}: it was never here, or it has expired.`, "id");
  }

  async function formOf({ batchId, status, counts, timestamps, metadata }: BatchView) {
    const { [OWN.file]: input_file_id, [OWN.window]: completion_window, ...own } = metadata;
    const { createdAt, uploadedAt, cancelledAt, finishedAt } = timestamps;
    const at = (ms: number | null) => (ms === null ? null : seconds(ms));
    const errors = counts.invalid === 0 ? [] : await batches.firstErrors(batchId, SHOWN_ERRORS);
    const failed = counts.invalid + counts.failed;
    const fileOf = (kind: "output" | "errors", lines: number) => (finishedAt === null || lines === 0 ? null : outputFileId(kind, batchId));
    return {
      id: batchId,
      object: "batch",
      endpoint: ENDPOINT,
      errors:
        errors.length === 0
          ? null
          : { object: "list", data: errors.map(({ line, error }) => ({ code: error.code, line, message: error.detail, param: null })) },
      input_file_id,
      completion_window,
      status: STATUSES[status],
      output_file_id: fileOf("output", counts.completed),
      error_file_id: fileOf("errors", failed + counts.cancelled),
      created_at: seconds(createdAt),
      in_progress_at: at(uploadedAt),
      expires_at: seconds(createdAt + WINDOW_MS),
      finalizing_at: at(finishedAt),
      completed_at: cancelledAt === null ? at(finishedAt) : null,
      failed_at: null,
      expired_at: null,
      cancelling_at: at(cancelledAt),
      cancelled_at: cancelledAt === null ? null : at(finishedAt),
      request_counts: { total: counts.total, completed: counts.completed, failed },
      metadata: own,
    };
  }

  return router;
}

const isOurs = ({ metadata }: BatchView) => OWN.file in metadata;

/** Throws `invalid-request`. */
function parseLine(value: unknown): BatchRequest {
  try {
    const { custom_id: customId, body } = parse(lineSchema, value);
    const { job, stream } = parseChatRequest(body, {});
    if (stream) throw new RequestRefused(400, "body.stream: expected false: a batch's answers are read from its output file.");
    return { customId, request: { ...job, priority: "batch", timeoutMs: WINDOW_MS } };
  } catch (error) {
    if (error instanceof RequestRefused) throw new MathllmError("invalid-request", error.message);
    throw error;
  }
}

/** The core's first sentence: what it says of going on does not hold here. */
function reasonOf({ message }: MathllmError): string {
  return message.split(" The first ")[0]!;
}
