import { Router } from "express";
import type { Config } from "../../queues/config.ts";
import type { Accepted } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import { loadJobView } from "../../queues/job-view.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { Admission } from "../admission.ts";
import { jsonBody } from "../middleware/json-body.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { parseSolveRequest } from "../solve-request.ts";
import { submit } from "../submission.ts";

const KEY_PATTERN = /^[\x21-\x7e]{1,255}$/;

/** `POST /solve`: 202 when the job is in Redis. */
export function solveRoute(queues: Queues, config: Config): Router {
  const router = Router();
  const admission = new Admission(queues, config);
  router.post("/", jsonBody(config), async (request, response) => {
    const key = request.get("idempotency-key");
    if (key !== undefined && !KEY_PATTERN.test(key)) {
      throw new MathllmError("invalid-request", "Idempotency-Key: expected 1 to 255 visible ASCII characters.");
    }
    const solveRequest = parseSolveRequest(request.body);
    const { jobId, estimatedWaitMs, replayed } = await submit(queues, config, solveRequest, { idempotencyKey: key, admission });
    const links = { self: `/jobs/${jobId}` };
    const view = replayed ? await loadJobView(queues, jobId) : undefined;
    const status = view?.status ?? "waiting";
    const estimatedStartMs = view === undefined ? estimatedWaitMs : view.estimatedStartMs;
    if (replayed) response.set("Idempotent-Replayed", "true");
    response
      .status(202)
      .location(links.self)
      .json({ jobId, status, estimatedStartMs, links } satisfies Accepted);
  });
  router.all("/", onlyMethods("POST"));
  return router;
}
