import express, { type Express, type Router } from "express";
import type { Logger } from "pino";
import type { Config } from "../queues/config.ts";
import type { Queues } from "../queues/open-queues.ts";
import type { GpuEventFeed } from "./gpu-event-feed.ts";
import type { JobCompletions } from "./job-completions.ts";
import { onlyMethods, problemHandler, unknownAddress } from "./middleware/problems.ts";
import { loopbackOnly, requestLog, securityHeaders } from "./middleware/request-log.ts";
import { gpuRoute } from "./routes/gpu.ts";
import { healthRoutes } from "./routes/health.ts";
import { jobsRoute } from "./routes/jobs.ts";
import { queuesRoute } from "./routes/queues.ts";
import { solveRoute } from "./routes/solve.ts";

export interface AppDeps {
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
  health: "/healthz",
  ready: "/readyz",
  board: BOARD_PATH,
};

/** The HTTP application. It never listens and starts nothing. */
export function createApp({ queues, config, completions, gpuEvents, log, board }: AppDeps): Express {
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
  app.use("/solve", solveRoute(queues, config));
  app.use("/jobs", jobsRoute(queues, completions));
  app.use("/gpu", gpuRoute(queues, config, gpuEvents));
  app.use("/queues", queuesRoute(queues, config));
  app.use(healthRoutes(queues));
  app.use(unknownAddress);
  app.use(problemHandler(queues.redis, log));
  return app;
}
