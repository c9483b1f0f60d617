import express, { type Express, type Router } from "express";
import type { Logger } from "pino";
import type { AnswerCache } from "../queues/answer-cache.ts";
import type { Config } from "../queues/config.ts";
import type { Queues } from "../queues/open-queues.ts";
import { AnswerLookup } from "./answer-lookup.ts";
import type { GpuEventFeed } from "./gpu-event-feed.ts";
import type { JobCompletions } from "./job-completions.ts";
import { JobLookup } from "./job-lookup.ts";
import { onlyMethods, problemHandler, unknownAddress } from "./middleware/problems.ts";
import { loopbackOnly, requestLog, securityHeaders } from "./middleware/request-log.ts";
import { cacheRoute } from "./routes/cache.ts";
import { gpuRoute } from "./routes/gpu.ts";
import { healthRoutes } from "./routes/health.ts";
import { jobsRoute } from "./routes/jobs.ts";
import { metricsRoute } from "./routes/metrics.ts";
import { queuesRoute } from "./routes/queues.ts";
import { solveRoute } from "./routes/solve.ts";

export interface AppDeps {
  cache: AnswerCache;
  queues: Queues;
  config: Config;
  completions: JobCompletions;
  gpuEvents: GpuEventFeed;
  log: Logger;
  /** The board's pages, mounted at `/dashboards/queues`. */
  board?: Router;
}

export const BOARD_PATH = "/dashboards/queues";

const LINKS = {
  solve: "/solve",
  job: "/jobs/{jobId}",
  gpu: "/gpu",
  gpuEvents: "/gpu/events",
  queues: "/queues",
  cache: "/cache",
  metrics: "/metrics",
  health: "/healthz",
  ready: "/readyz",
  board: BOARD_PATH,
};

/** The HTTP application. It never listens and starts nothing. */
export function createApp({ queues, config, cache, completions, gpuEvents, log, board }: AppDeps): Express {
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  app.set("query parser", "simple");
  app.use(requestLog(log));
  app.use(loopbackOnly(config.host));
  if (board !== undefined) app.use(BOARD_PATH, board);
  app.use(securityHeaders);
  app.get("/", (_request, response) => {
    response.json({ name: "mathllm", links: LINKS });
  });
  app.all("/", onlyMethods("GET"));
  const lookup = new JobLookup(queues, config, cache);
  app.use("/solve", solveRoute(queues, config, { lookup: new AnswerLookup(queues.redis, cache), cache }, lookup));
  app.use("/jobs", jobsRoute(queues, lookup, completions));
  app.use("/cache", cacheRoute(cache));
  app.use("/metrics", metricsRoute(queues, config, cache));
  app.use("/gpu", gpuRoute(queues, config, cache, gpuEvents));
  app.use("/queues", queuesRoute(queues, config));
  app.use(healthRoutes(queues));
  app.use(unknownAddress);
  app.use(problemHandler(queues.redis, log));
  return app;
}
