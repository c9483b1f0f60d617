import { Readable } from "node:stream";
import type { z } from "zod";
import {
  type BatchAccepted,
  type BatchLineError,
  type BatchResult,
  type BatchView,
  batchAcceptedSchema,
  batchLineErrorSchema,
  batchResultSchema,
  batchViewSchema,
} from "../queues/batch-contracts.ts";
import { MathllmError } from "../queues/errors.ts";
import type { ApiClient } from "./submit.ts";

export const ERRORS_PAGE = 1000;

/** What an upload came to: the batch, or how long to wait before it goes on. */
export type UploadOutcome = { batch: BatchAccepted } | { retryAfterSeconds: number; detail: string };

/** Batches of the API at the other end of `api`. */
export class BatchClient {
  readonly #api: ApiClient;
  readonly #signal: AbortSignal | undefined;

  constructor(api: ApiClient, signal?: AbortSignal) {
    this.#api = api;
    this.#signal = signal;
  }

  /** Sends lines as they are read. `lines` is begun anew by the caller when it has to be sent again. */
  async upload(lines: AsyncIterable<string>, idempotencyKey: string, defaults: object): Promise<UploadOutcome> {
    const response = await this.#api.request(`/batches?defaults=${encodeURIComponent(JSON.stringify(defaults))}`, {
      method: "POST",
      headers: { "content-type": "application/jsonl", "idempotency-key": idempotencyKey },
      body: Readable.toWeb(Readable.from(lines, { objectMode: false })) as unknown as ReadableStream,
      signal: this.#signal,
      duplex: "half",
    } as RequestInit);
    // A server in between, or one that stops, answers without a problem document.
    const body = (await response.json().catch(() => ({}))) as { title?: string; detail?: string };
    if (response.ok) return { batch: batchAcceptedSchema.parse(body) };
    if ([408, 429, 503].includes(response.status)) {
      const detail = `${body.title ?? response.statusText}: ${body.detail ?? "the upload was cut."}`;
      return { retryAfterSeconds: Number(response.headers.get("retry-after") ?? 1), detail };
    }
    throw new MathllmError("invalid-request", `${body.title ?? response.statusText}: ${body.detail ?? ""}`);
  }

  async view(batchId: string): Promise<BatchView> {
    return batchViewSchema.parse(await this.#api.json(`/batches/${batchId}`, { signal: this.#signal }));
  }

  /** Lines that have not ended won't run. */
  async cancel(batchId: string): Promise<void> {
    await this.#api.json(`/batches/${batchId}`, { method: "DELETE", signal: this.#signal });
  }

  /** The lines from `from` on as they end, in order, up to the first that hasn't after `waitSeconds` in all. */
  results(batchId: string, from: number, waitSeconds: number): AsyncGenerator<BatchResult> {
    return this.#lines(`/batches/${batchId}/results?from=${from}&wait=${waitSeconds}`, batchResultSchema);
  }

  /** The first lines with an index from `from` on that were not accepted; fewer than `ERRORS_PAGE` when they are the last. */
  async errorsPage(batchId: string, from: number): Promise<BatchLineError[]> {
    const page: BatchLineError[] = [];
    const path = `/batches/${batchId}/errors?from=${from}&limit=${ERRORS_PAGE}`;
    for await (const error of this.#lines(path, batchLineErrorSchema)) page.push(error);
    return page;
  }

  async *#lines<T extends z.ZodType>(path: string, schema: T): AsyncGenerator<z.infer<T>> {
    const response = await this.#api.request(path, { signal: this.#signal });
    if (!response.ok) {
      const { title, detail } = (await response.json()) as { title?: string; detail?: string };
      throw new MathllmError("invalid-request", `${title ?? response.statusText}: ${detail ?? ""}`);
    }
    let rest = "";
    for await (const text of response.body!.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + text).split("\n");
      rest = lines.pop()!;
      for (const line of lines) yield schema.parse(JSON.parse(line));
    }
  }
}
