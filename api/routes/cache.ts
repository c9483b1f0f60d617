import { Router } from "express";
import type { AnswerCache } from "../../queues/answer-cache.ts";
import { MathllmError } from "../../queues/errors.ts";
import { cacheEntryOf } from "../../queues/names.ts";
import { onlyMethods } from "../middleware/problems.ts";

/** `GET` and `DELETE /cache` (what it holds; clear it), `DELETE /cache/:jobId` (drop the entry that an answer's id names). */
export function cacheRoute(cache: AnswerCache): Router {
  const router = Router();
  router.get("/", async (_request, response) => {
    response.json(await cache.stats());
  });
  router.delete("/", async (_request, response) => {
    response.json({ dropped: await cache.clear() });
  });
  router.all("/", onlyMethods("GET", "DELETE"));
  router.delete("/:id", async (request, response) => {
    const entry = cacheEntryOf(request.params.id);
    if (entry === undefined || !(await cache.drop(entry.cacheKey))) {
      throw new MathllmError("unknown-job", "No entry has this id: it was never kept, was dropped, or has expired.");
    }
    response.json({ dropped: 1 });
  });
  router.all("/:id", onlyMethods("DELETE"));
  return router;
}
