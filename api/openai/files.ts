import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type Response, Router } from "express";
import { z } from "zod";
import { hasRole } from "../../queues/api-keys.ts";
import type { BatchView } from "../../queues/batch-contracts.ts";
import type { Batches } from "../batches.ts";
import { keyOf } from "../middleware/authenticate.ts";
import { onlyMethods } from "../middleware/problems.ts";
import type { BatchOutput, OutputFile } from "./batch-output.ts";
import { parse } from "./chat-request.ts";
import { RequestRefused } from "./errors.ts";
import type { FileStore, StoredFile } from "./file-store.ts";
import { readUpload } from "./file-upload.ts";

const listSchema = z.object({
  purpose: z.string().optional(),
  limit: z.coerce.number().int().min(1).max(10_000).default(10_000),
  order: z.enum(["asc", "desc"]).default("desc"),
  after: z.string().optional(),
});

/** `POST /v1/files` (multipart), `GET` of the list, of one and of its content, and `DELETE`: what batches take, and the two files that each leaves. */
export function filesRoute(files: FileStore, batches: Batches, output: BatchOutput): Router {
  const router = Router();

  router.post("/", async (request, response) => {
    const owner = keyOf(response)?.name ?? null;
    const { stored, fields } = await readUpload(request, (source, filename) => files.store(source, { filename, owner }));
    const purpose = fields.get("purpose");
    if (purpose !== "batch") {
      await files.delete(stored.id);
      throw new RequestRefused(400, `purpose: expected batch; got ${JSON.stringify(purpose ?? null)}.`, "purpose");
    }
    response.json(fileForm(stored));
  });

  router.get("/", async (request, response) => {
    const { purpose, limit, order, after } = parse(listSchema, request.query);
    const known = (await files.list()).filter(({ owner }) => isVisible(response, owner) && (purpose ?? "batch") === "batch");
    response.json(listForm(order === "asc" ? known.toReversed() : known, fileForm, { limit, after }));
  });
  router.all("/", onlyMethods("GET", "POST"));

  router.get("/:id", async (request, response) => {
    const found = await find(request.params.id, response);
    response.json("file" in found ? fileForm(found.file) : await outputForm(found.output, found.batch));
  });
  router.delete("/:id", async (request, response) => {
    const found = await find(request.params.id, response);
    await ("file" in found ? files.delete(found.file.id) : output.delete(found.output));
    response.json({ id: request.params.id, object: "file", deleted: true });
  });
  router.all("/:id", onlyMethods("GET", "DELETE"));

  router.get("/:id/content", async (request, response) => {
    const found = await find(request.params.id, response);
    response.type("application/jsonl");
    const content =
      "file" in found ? files.content(found.file) : Readable.from(texts(output.lines(found.output, found.batch.timestamps.createdAt)));
    await pipeline(content, response).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ERR_STREAM_PREMATURE_CLOSE") throw error;
    });
  });
  router.all("/:id/content", onlyMethods("GET"));

  /** Throws a 404. Another key's file does not exist for this one. */
  async function find(id: string, response: Response): Promise<{ file: StoredFile } | { output: OutputFile; batch: BatchView }> {
    const file = await files.read(id);
    if (file !== undefined && isVisible(response, file.owner)) return { file };
    const made = await output.find(id);
    const batch = made && (await batches.view(made.batchId));
    const key = keyOf(response);
    const isOthers = key !== null && !hasRole(key, "admin") && made !== undefined && !(await batches.isVisibleTo(key.name, made.batchId));
    if (made === undefined || batch === undefined || batch.timestamps.finishedAt === null || isOthers) {
      throw new RequestRefused(
        404,
        `No file has the id ${JSON.stringify(id.slice(0, 100))}: it was never here, or it was deleted or has expired.`,
        "id",
      );
    }
    return { output: made, batch };
  }

  async function outputForm(made: OutputFile, { timestamps }: BatchView) {
    return {
      id: made.id,
      object: "file",
      bytes: await output.bytes(made, timestamps.createdAt),
      created_at: seconds(timestamps.finishedAt!),
      expires_at: timestamps.expiresAt === null ? null : seconds(timestamps.expiresAt),
      filename: `${made.batchId}_${made.kind}.jsonl`,
      purpose: "batch_output",
      status: "processed",
    };
  }

  return router;
}

function isVisible(response: Response, owner: string | null): boolean {
  const key = keyOf(response);
  return key === null || hasRole(key, "admin") || key.name === owner;
}

function fileForm({ id, bytes, createdAt, expiresAt, filename }: StoredFile) {
  const times = { created_at: seconds(createdAt), expires_at: seconds(expiresAt) };
  return { id, object: "file", bytes, ...times, filename, purpose: "batch", status: "processed" };
}

/** A page of a list, after the entry with the id `after`. */
export function listForm<T, F extends { id: string }>(
  items: T[],
  formOf: (item: T) => F,
  { limit, after }: { limit: number; after?: string },
) {
  const forms = items.map(formOf);
  const from = after === undefined ? 0 : forms.findIndex(({ id }) => id === after) + 1;
  const data = forms.slice(from, from + limit);
  return {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: from + limit < forms.length,
  };
}

export const seconds = (ms: number) => Math.floor(ms / 1000);

async function* texts(lines: AsyncIterable<string>): AsyncGenerator<string> {
  for await (const line of lines) yield `${line}\n`;
}
