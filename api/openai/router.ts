import path from "node:path";
import { Router } from "express";
import type { Logger } from "pino";
import type { AnswerCache } from "../../queues/answer-cache.ts";
import type { Config } from "../../queues/config.ts";
import type { Usage } from "../../queues/contracts.ts";
import { cacheEntryOf } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import type { Batches } from "../batches.ts";
import type { JobStories } from "../job-stories.ts";
import type { SubmitOptions } from "../submission.ts";
import { BatchOutput } from "./batch-output.ts";
import { openaiBatchesRoute } from "./batches.ts";
import { chatCompletionsRoute } from "./chat-completions.ts";
import { FileStore } from "./file-store.ts";
import { filesRoute } from "./files.ts";
import { modelsRoute } from "./models.ts";

export interface OpenaiDeps {
  queues: Queues;
  config: Config;
  stories: JobStories;
  cache: AnswerCache;
  batches: Batches;
  submitOptions: Pick<SubmitOptions, "admission" | "answers">;
  log: Logger;
}

/** What stands under `/v1`, in the forms of the OpenAI API. */
export function openaiRouter({ queues, config, stories, cache, batches, submitOptions, log }: OpenaiDeps): Router {
  const { fileLimitBytes, filesMaxBytes, jobRetentionSeconds: retentionSeconds } = config;
  const files = new FileStore(path.join(config.dataDir, "files"), { fileLimitBytes, filesMaxBytes, retentionSeconds });
  /** An answer from the cache cost nothing now, but has its size. */
  const usageOf = async (jobId: string, usage: Usage): Promise<Usage> => {
    const entry = cacheEntryOf(jobId);
    return (entry && (await cache.get(entry.cacheKey)))?.result.usage ?? usage;
  };
  const router = Router();
  router.use("/models", modelsRoute());
  router.use("/chat/completions", chatCompletionsRoute({ queues, config, stories, submitOptions, usageOf, log }));
  router.use("/files", filesRoute(files, batches, new BatchOutput(batches, queues.redis, { retentionSeconds, usageOf })));
  router.use("/batches", openaiBatchesRoute(batches, files, config));
  return router;
}
