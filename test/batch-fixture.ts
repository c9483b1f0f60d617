import { Worker } from "bullmq";
import { pino } from "pino";
import { expect } from "vitest";
import { type RunningApi, startApi } from "../api/main.ts";
import { publishModel } from "../queues/answer-cache.ts";
import {
  type BatchAccepted,
  type BatchResult,
  type BatchView,
  batchAcceptedSchema,
  batchLineErrorSchema,
  batchResultSchema,
  batchViewSchema,
} from "../queues/batch-contracts.ts";
import { type Config, readConfig } from "../queues/config.ts";
import type { JobData, StageResult } from "../queues/contracts.ts";
import { KEY_PREFIX, type Role } from "../queues/names.ts";
import { openQueues, type Queues } from "../queues/open-queues.ts";
import { type RedisFixture, startRedisFixture } from "./redis-fixture.ts";
import { stageResult } from "./stand-in-worker.ts";

export type UploadBody = NonNullable<RequestInit["body"]>;
type UploadOptions = { query?: string; key?: string; type?: string; secret?: string };

/** The Student that the API believes in: what is asked of it may come from the cache, and is computed once. */
export const STUDENT = { modelId: "m", digest: "d", promptVersion: "p", maxTokens: 100 };

/** Redis, an API, and stand-in workers that end jobs when a test says so. */
export class BatchFixture {
  readonly redis: RedisFixture;
  readonly config: Config;
  readonly queues: Queues;
  api: RunningApi;
  #workers: Worker[] = [];

  private constructor(redis: RedisFixture, config: Config, api: RunningApi) {
    this.redis = redis;
    this.config = config;
    this.api = api;
    this.queues = openQueues(redis.connect(), () => {});
  }

  static async start(env: Record<string, string> = {}): Promise<BatchFixture> {
    const redis = await startRedisFixture();
    await publishModel(redis.connect(), "student", { ...STUDENT, settings: "s" });
    const config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir, JOB_ATTEMPTS: "1", JOB_RETENTION_SECONDS: "60", ...env });
    return new BatchFixture(redis, config, await startFor(redis, config));
  }

  async startApi(): Promise<void> {
    this.api = await this.anotherApi();
  }

  anotherApi(): Promise<RunningApi> {
    return startFor(this.redis, this.config);
  }

  /** Ends jobs of a queue from now on, each with its problem as the answer; a problem that begins with "fail" fails. */
  work(role: Role = "student", before: (data: JobData) => Promise<void> = async () => {}): void {
    const processor = async ({ data }: { data: JobData }): Promise<StageResult> => {
      await before(data);
      if (data.problem.startsWith("fail")) throw new Error("engine-refused: it does not like it");
      return { ...stageResult(role), answer: role === "student" ? data.problem : null };
    };
    this.#workers.push(new Worker(role, processor, { connection: this.redis.connect(), prefix: KEY_PREFIX, concurrency: 4 }));
  }

  async clear(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.close(true)));
    this.#workers = [];
    await this.queues.redis.flushall();
    await publishModel(this.queues.redis, "student", { ...STUDENT, settings: "s" });
  }

  async stop(): Promise<void> {
    await this.clear();
    await this.queues.close();
    await this.api.close();
    await this.redis.stop();
  }

  fetch(path: string, init: RequestInit = {}, secret?: string): Promise<Response> {
    const headers = new Headers(init.headers);
    if (secret !== undefined) headers.set("authorization", `Bearer ${secret}`);
    return fetch(this.api.url + path, { ...init, headers });
  }

  upload(body: UploadBody, { query = "", key, type = "application/jsonl", secret }: UploadOptions = {}): Promise<Response> {
    const headers = { "content-type": type, ...(key === undefined ? {} : { "idempotency-key": key }) };
    return this.fetch(`/batches${query}`, { method: "POST", headers, body, duplex: "half" } as RequestInit, secret);
  }

  async accepted(body: UploadBody, options: UploadOptions = {}): Promise<BatchAccepted> {
    const answer = await this.upload(body, options);
    expect(answer.status, await answer.clone().text()).toBe(202);
    const batch = batchAcceptedSchema.parse(await answer.json());
    expect(answer.headers.get("location")).toBe(batch.links.self);
    return batch;
  }

  async view(batchId: string): Promise<BatchView> {
    return batchViewSchema.parse(await (await this.fetch(`/batches/${batchId}`)).json());
  }

  results(batchId: string, query = ""): Promise<BatchResult[]> {
    return this.#lines(`/batches/${batchId}/results${query}`, batchResultSchema);
  }

  errors(batchId: string) {
    return this.#lines(`/batches/${batchId}/errors`, batchLineErrorSchema);
  }

  async #lines<T>(path: string, schema: { parse(value: unknown): T }): Promise<T[]> {
    const response = await this.fetch(path);
    expect([response.status, response.headers.get("content-type")]).toEqual([200, "application/jsonl"]);
    const text = await response.text();
    return text === ""
      ? []
      : text
          .trimEnd()
          .split("\n")
          .map((line) => schema.parse(JSON.parse(line)));
  }

  /** The batch once all its lines have ended. */
  async ended(batchId: string): Promise<BatchView> {
    await until(async () => (await this.view(batchId)).timestamps.finishedAt).not.toBeNull();
    return this.view(batchId);
  }

  async waitingJobs(role: Role = "student"): Promise<number> {
    return (await this.queues[role].getJobCounts("prioritized")).prioritized ?? 0;
  }
}

const startFor = (redis: RedisFixture, config: Config) =>
  startApi({ config, redisUrl: redis.url, log: pino({ level: process.env.TEST_LOG ?? "silent" }) });

export const until = <T>(look: () => Promise<T>) => expect.poll(look, { timeout: 20_000, interval: 20 });

export const jsonl = (lines: (object | string)[]): string =>
  lines.map((line) => (typeof line === "string" ? line : JSON.stringify(line))).join("\n");

export const problems = (count: number, name = "p") =>
  Array.from({ length: count }, (_, i) => ({ custom_id: `${name}${i}`, problem: `${name} ${i}` }));

/** An upload that ends or breaks when a test says so. */
export function unfinished(text: string): { body: ReadableStream<Uint8Array>; end: () => void; break: () => void } {
  let controller: ReadableStreamDefaultController<Uint8Array>;
  const body = new ReadableStream<Uint8Array>({
    start: (given) => {
      controller = given;
      controller.enqueue(new TextEncoder().encode(text));
    },
  });
  return { body, end: () => controller.close(), break: () => controller.error(new Error("the client died")) };
}
