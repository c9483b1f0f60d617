import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type Request, type RequestHandler, type Response, Router } from "express";
import { z } from "zod";
import { hasRole } from "../../queues/api-keys.ts";
import { type BatchAccepted, type BatchView, SHOWN_LINE_ERRORS } from "../../queues/batch-contracts.ts";
import { MAX_BATCH_LINES } from "../../queues/batch-ids.ts";
import type { Config } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { batchDefaultsSchema, batchLineParser, batchMetadataSchema } from "../batch-line.ts";
import { JSONL_TYPES, jsonLines, requestLines } from "../batch-upload.ts";
import type { Batches } from "../batches.ts";
import { keyOf } from "../middleware/authenticate.ts";
import { jsonBody } from "../middleware/json-body.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { parseBody } from "../parse-body.ts";

const KEY_PATTERN = /^[\x21-\x7e]{1,255}$/;
const MAX_WAIT_SECONDS = 60;
const DEFAULT_LISTED = 20;
const MAX_LISTED = 100;
/** Results are written this many at a time. */
const WRITTEN_AT_ONCE = 50;

export const bodySchema = z.strictObject({
  requests: z.array(z.unknown()).min(1),
  defaults: batchDefaultsSchema.optional(),
  metadata: batchMetadataSchema,
});

/**
 * `POST /batches`: JSON, or JSONL of any size with `defaults` and `metadata` as JSON in the query. 202 when all lines are in Redis or
 * reported. `GET /batches`, `GET` and `DELETE /batches/:id`, `GET /batches/:id/results` and `/errors` as JSONL.
 */
export function batchesRoute(batches: Batches, config: Config): Router {
  const router = Router();
  const parseJson = jsonBody(config);
  const load = async (request: Request): Promise<BatchView> => {
    const view = await batches.view(String(request.params.id));
    if (view === undefined) throw unknownBatch();
    return view;
  };

  router.post(
    "/",
    (request, response, next) => (isJsonl(request) ? next() : parseJson(request, response, next)),
    async (request, response) => {
      const { lines, defaults = {}, metadata = {} } = isJsonl(request) ? streamed(request, config) : whole(request);
      const { batchId, replayed } = await batches.upload(lines, {
        parse: batchLineParser(defaults),
        defaults,
        metadata,
        idempotencyKey: idempotencyKeyOf(request),
        owner: keyOf(response) ?? undefined,
      });
      const view = await batches.view(batchId);
      if (view === undefined) throw unknownBatch();
      if (replayed) response.set("Idempotent-Replayed", "true");
      const errors = await batches.firstErrors(batchId, SHOWN_LINE_ERRORS);
      response
        .status(202)
        .location(view.links.self)
        .json({ ...view, errors } satisfies BatchAccepted);
    },
  );

  router.get("/", async (request, response) => {
    const key = keyOf(response);
    const owner = key === null || hasRole(key, "admin") ? undefined : key.name;
    response.json({ batches: await batches.list(wholeNumberOf(request, "limit", DEFAULT_LISTED, 1, MAX_LISTED), owner) });
  });
  router.all("/", onlyMethods("GET", "POST"));

  router.use("/:id", ownBatches(batches));
  router.get("/:id", async (request, response) => {
    response.json(await load(request));
  });
  router.delete("/:id", async (request, response) => {
    const { batchId, timestamps } = await load(request);
    if (timestamps.finishedAt === null) {
      await batches.cancel(batchId);
      response.status(202);
    }
    response.json(await load(request));
  });
  router.all("/:id", onlyMethods("GET", "DELETE"));

  router.get("/:id/results", async (request, response) => {
    const from = wholeNumberOf(request, "from", 0, 0, MAX_BATCH_LINES);
    const endedOnly = wholeNumberOf(request, "ended", 0, 0, 1) === 1;
    const waitMs = request.query.wait === undefined ? undefined : wholeNumberOf(request, "wait", 0, 0, MAX_WAIT_SECONDS) * 1000;
    const { batchId } = await load(request);
    await sendJsonl(response, (signal) => batches.results(batchId, { from, endedOnly, waitMs, signal }));
  });
  router.all("/:id/results", onlyMethods("GET"));

  router.get("/:id/errors", async (request, response) => {
    const from = wholeNumberOf(request, "from", 0, 0, MAX_BATCH_LINES);
    const limit = wholeNumberOf(request, "limit", MAX_BATCH_LINES, 1, MAX_BATCH_LINES);
    const { batchId } = await load(request);
    await sendJsonl(response, () => firstOf(batches.errors(batchId, from), limit));
  });
  router.all("/:id/errors", onlyMethods("GET"));
  return router;
}

function unknownBatch(): MathllmError {
  return new MathllmError("unknown-batch", "No batch has this id: it was never accepted here, or it ended and has expired.");
}

/** Another key's batch does not exist for this one, unless it is an admin's. */
function ownBatches(batches: Batches): RequestHandler<{ id: string }> {
  return async (request, response, next) => {
    const key = keyOf(response);
    if (key === null || hasRole(key, "admin") || (await batches.isVisibleTo(key.name, request.params.id))) return next();
    throw unknownBatch();
  };
}

function isJsonl(request: Request): boolean {
  return typeof request.is(JSONL_TYPES) === "string";
}

function whole(request: Request) {
  const { requests, defaults, metadata } = parseBody(bodySchema, request.body);
  return { lines: requestLines(requests), defaults, metadata };
}

function streamed(request: Request, config: Config) {
  const encoding = request.get("content-encoding") ?? "identity";
  if (encoding !== "identity") {
    throw new MathllmError("unsupported-media-type", `Expected JSONL without a Content-Encoding; got ${encoding.slice(0, 100)}.`);
  }
  const { defaults, metadata } = request.query;
  return {
    lines: jsonLines(request, config.bodyLimitBytes),
    defaults: parseBody(batchDefaultsSchema.optional(), jsonOf("defaults", defaults)),
    metadata: parseBody(batchMetadataSchema, jsonOf("metadata", metadata)),
  };
}

function jsonOf(name: string, value: unknown): unknown {
  if (value === undefined) return undefined;
  try {
    return JSON.parse(String(value));
  } catch {
    throw new MathllmError("invalid-request", `${name}: expected a JSON object in the query; got ${JSON.stringify(value).slice(0, 100)}.`);
  }
}

function idempotencyKeyOf(request: Request): string | undefined {
  const key = request.get("idempotency-key");
  if (key === undefined || KEY_PATTERN.test(key)) return key;
  throw new MathllmError("invalid-request", "Idempotency-Key: expected 1 to 255 visible ASCII characters.");
}

function wholeNumberOf(request: Request, name: string, fallback: number, low: number, high: number): number {
  const value = request.query[name];
  if (value === undefined) return fallback;
  const number = typeof value === "string" && /^\d{1,10}$/.test(value) ? Number(value) : Number.NaN;
  if (number >= low && number <= high) return number;
  throw new MathllmError(
    "invalid-request",
    `${name}: expected a whole number from ${low} to ${high}; got ${JSON.stringify(value).slice(0, 100)}.`,
  );
}

async function* firstOf<T>(items: AsyncIterable<T>, count: number): AsyncGenerator<T> {
  let left = count;
  for await (const item of items) {
    yield item;
    if (--left === 0) return;
  }
}

/** Takes from `items` only as fast as the client reads. */
async function sendJsonl(response: Response, items: (signal: AbortSignal) => AsyncIterable<unknown>): Promise<void> {
  const left = new AbortController();
  response.on("close", () => left.abort());
  response.type("application/jsonl");
  async function* texts() {
    let held: string[] = [];
    for await (const item of items(left.signal)) {
      if (held.push(`${JSON.stringify(item)}\n`) < WRITTEN_AT_ONCE) continue;
      yield held.join("");
      held = [];
    }
    if (held.length > 0) yield held.join("");
  }
  try {
    await pipeline(Readable.from(texts()), response);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ERR_STREAM_PREMATURE_CLOSE") throw error;
  }
}
