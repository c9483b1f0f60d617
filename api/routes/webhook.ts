import { Router } from "express";
import { MathllmError } from "../../queues/errors.ts";
import { onlyMethods } from "../middleware/problems.ts";
import type { Webhooks } from "../webhooks.ts";

/** `GET /jobs/:id/webhook`: what became of the job's webhook, with its attempts. */
export function webhookRoute(webhooks: Webhooks): Router {
  const router = Router();
  router.get("/:id/webhook", async (request, response) => {
    const view = await webhooks.view(request.params.id);
    if (view === undefined) throw new MathllmError("unknown-job", "No job with this id asked for a webhook, or it has expired.");
    response.json(view);
  });
  router.all("/:id/webhook", onlyMethods("GET"));
  return router;
}
