import { Router } from "express";
import { MathllmError } from "../../queues/errors.ts";
import { roleOfJobId } from "../../queues/names.ts";
import { onlyMethods } from "../middleware/problems.ts";
import type { Webhooks } from "../webhooks.ts";

/** `GET /jobs/:id/webhook`: what became of the job's webhook, with its attempts. */
export function webhookRoute(webhooks: Webhooks): Router {
  const router = Router();
  router.get("/:id/webhook", async (request, response) => {
    const { id } = request.params;
    // A delivery of an answer from the cache has an id that follows from a key's name and its Idempotency-Key, and belongs to nobody here.
    const view = roleOfJobId(id) === undefined ? undefined : await webhooks.view(id);
    if (view === undefined) throw new MathllmError("unknown-job", "No job with this id asked for a webhook, or it has expired.");
    response.json(view);
  });
  router.all("/:id/webhook", onlyMethods("GET"));
  return router;
}
