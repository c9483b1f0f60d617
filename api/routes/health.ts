import { Router } from "express";
import type { WorkerStatus } from "../../queues/contracts.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { liveWorkers } from "../../queues/worker-status.ts";
import { onlyMethods } from "../middleware/problems.ts";

const READY_TIMEOUT_MS = 1000;

/** `/healthz`: this process lives. `/readyz`: Redis answers and a worker is alive; never later than a second. */
export function healthRoutes(queues: Queues): Router {
  const router = Router();
  router.get("/healthz", (_request, response) => {
    response.json({ status: "ok" });
  });
  router.get("/readyz", async (_request, response) => {
    const workers = await workersInTime(queues);
    const ready = workers !== undefined && workers.length > 0;
    response.status(ready ? 200 : 503).json({
      ready,
      redis: workers !== undefined,
      workers: workers?.length ?? 0,
      residentModel: workers?.find((worker) => worker.residentModel !== null)?.residentModel ?? null,
      reason: workers === undefined ? "redis-unavailable" : workers.length === 0 ? "no-worker" : null,
    });
  });
  router.all(["/healthz", "/readyz"], onlyMethods("GET"));
  return router;
}

async function workersInTime(queues: Queues): Promise<WorkerStatus[] | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), READY_TIMEOUT_MS);
  });
  try {
    return await Promise.race([liveWorkers(queues.redis).catch(() => undefined), late]);
  } finally {
    clearTimeout(timer);
  }
}
