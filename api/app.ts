import express, { type Express, type Router } from "express";
import type { Logger } from "pino";
import type { AnswerCache } from "../queues/answer-cache.ts";
import type { ApiDocument } from "../queues/api-document.ts";
import { type ApiKeys, hasRole } from "../queues/api-keys.ts";
import type { Config } from "../queues/config.ts";
import type { MetricCounts } from "../queues/metrics.ts";
import type { Queues } from "../queues/open-queues.ts";
import { BOARD_PATH } from "./access.ts";
import { Admission } from "./admission.ts";
import { AnswerLookup } from "./answer-lookup.ts";
import type { Batches } from "./batches.ts";
import type { GpuEventFeed } from "./gpu-event-feed.ts";
import type { JobCompletions } from "./job-completions.ts";
import { JobLookup } from "./job-lookup.ts";
import type { JobStories } from "./job-stories.ts";
import type { KeyGate } from "./key-gate.ts";
import { audit } from "./middleware/audit.ts";
import { authenticate, keyOf } from "./middleware/authenticate.ts";
import { checkOrigin } from "./middleware/origins.ts";
import { ownJobs } from "./middleware/own-jobs.ts";
import { onlyMethods, problemHandler, unknownAddress } from "./middleware/problems.ts";
import { requestLog } from "./middleware/request-log.ts";
import { securityHeaders } from "./middleware/security-headers.ts";
import { traceRequests } from "./middleware/trace-requests.ts";
import { openaiErrors } from "./openai/errors.ts";
import { openaiRouter } from "./openai/router.ts";
import { batchesRoute } from "./routes/batches.ts";
import { cacheRoute } from "./routes/cache.ts";
import { gpuRoute } from "./routes/gpu.ts";
import { healthRoutes } from "./routes/health.ts";
import { jobEventsRoute } from "./routes/job-events.ts";
import { jobsRoute } from "./routes/jobs.ts";
import { metricsRoute } from "./routes/metrics.ts";
import { openapiRoute } from "./routes/openapi.ts";
import { queuesRoute } from "./routes/queues.ts";
import { solveRoute } from "./routes/solve.ts";
import { webhookRoute } from "./routes/webhook.ts";
import type { Webhooks } from "./webhooks.ts";

export interface AppDeps {
  batches: Batches;
  cache: AnswerCache;
  queues: Queues;
  config: Config;
  completions: JobCompletions;
  stories: JobStories;
  gpuEvents: GpuEventFeed;
  apiKeys: ApiKeys;
  gate: KeyGate;
  webhooks: Webhooks;
  log: Logger;
  /** The board's pages as each may see them, mounted at `/dashboards/queues`. */
  boards?: Record<"local" | "read" | "admin", Router>;
  /** The live page at `/`, and its files. */
  page?: Router;
  /** The pages below `/docs`. */
  docs?: Router;
  document: ApiDocument;
  counts: MetricCounts;
}

const LINKS = {
  solve: "/solve",
  chatCompletions: "/v1/chat/completions",
  models: "/v1/models",
  files: "/v1/files",
  openaiBatches: "/v1/batches",
  batches: "/batches",
  job: "/jobs/{jobId}",
  jobEvents: "/jobs/{jobId}/events",
  gpu: "/gpu",
  gpuHistory: "/gpu/history",
  gpuEvents: "/gpu/events",
  queues: "/queues",
  cache: "/cache",
  metrics: "/metrics",
  openapi: "/openapi.json",
  docs: "/docs",
  health: "/healthz",
  ready: "/readyz",
  board: BOARD_PATH,
};

/** The HTTP application. It never listens and starts nothing. */
export function createApp({
  batches,
  queues,
  config,
  cache,
  completions,
  stories,
  gpuEvents,
  apiKeys,
  gate,
  webhooks,
  log,
  boards,
  page,
  docs,
  document,
  counts,
}: AppDeps): Express {
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  app.set("query parser", "simple");
  app.use(requestLog(log));
  app.use(traceRequests);
  app.use(securityHeaders);
  app.use(checkOrigin(gate, config.corsOrigins));
  app.use(audit(queues.redis, log));
  app.use(authenticate(apiKeys, gate));
  if (boards !== undefined) {
    app.use(BOARD_PATH, (request, response, next) => {
      const key = keyOf(response);
      boards[key === null ? "local" : hasRole(key, "admin") ? "admin" : "read"](request, response, next);
    });
  }
  if (page !== undefined) app.use(page);
  if (docs !== undefined) app.use("/docs", docs);
  app.use("/openapi.json", openapiRoute(document));
  app.get("/", (_request, response) => {
    response.json({ name: "mathllm", links: LINKS });
  });
  app.all("/", onlyMethods("GET"));
  app.all("/docs", onlyMethods("GET"));
  const lookup = new JobLookup(queues, config, cache);
  const submitOptions = { admission: new Admission(queues, config), answers: { lookup: new AnswerLookup(queues.redis, cache), cache } };
  app.use("/solve", solveRoute(queues, config, submitOptions, lookup, webhooks));
  app.use("/jobs/:id", ownJobs(lookup));
  app.use("/jobs", jobEventsRoute(stories));
  app.use("/jobs", webhookRoute(webhooks));
  app.use("/jobs", jobsRoute(queues, lookup, completions));
  app.use("/batches", batchesRoute(batches, config));
  app.use("/cache", cacheRoute(cache));
  app.use("/metrics", metricsRoute(queues, config, cache));
  app.use("/gpu", gpuRoute(queues, config, cache, gpuEvents));
  app.use("/queues", queuesRoute(queues, config));
  app.use(healthRoutes(queues));
  app.use("/v1", openaiRouter({ queues, config, stories, cache, batches, submitOptions, log }));
  app.use(unknownAddress);
  app.use("/v1", openaiErrors(queues.redis, log, counts));
  app.use(problemHandler(queues.redis, log, counts));
  return app;
}
