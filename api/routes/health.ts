import { Router } from "express";
import type { WorkerStatus } from "../../queues/contracts.ts";
import { ROLES } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { liveWorkers, unavailability } from "../../queues/worker-status.ts";
import { onlyMethods } from "../middleware/problems.ts";

const READY_TIMEOUT_MS = 1000;

/**
 * `/healthz`: this process lives. `/readyz`: Redis answers and a worker is alive; never later than a second. What is accepted then is kept
 * and served, also the jobs of a model that no worker can load at the moment: the reason says which, and why.
 */
export function healthRoutes(queues: Queues): Router {
  const router = Router();
  router.get("/healthz", (_request, response) => {
    response.json({ status: "ok" });
  });
  router.get("/readyz", async (_request, response) => {
    const workers = await workersInTime(queues);
    const ready = workers !== undefined && workers.length > 0;
    const reason = workers === undefined ? "redis-unavailable" : workers.length === 0 ? "no-worker" : unavailableModels(workers);
    response.status(ready ? 200 : 503).json({
      ready,
      redis: workers !== undefined,
      workers: workers?.length ?? 0,
      residentModel: workers?.find((worker) => worker.residentModel !== null)?.residentModel ?? null,
      reason,
    });
  });
  router.all(["/healthz", "/readyz"], onlyMethods("GET"));
  return router;
}

/** null when each model can be loaded, or is, by some worker. */
function unavailableModels(workers: WorkerStatus[]): string | null {
  const reasons = ROLES.flatMap((role) => unavailability(workers, role)?.detail ?? []);
  return reasons.length === 0 ? null : reasons.join("; ");
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
