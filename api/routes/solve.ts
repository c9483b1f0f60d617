import { Router } from "express";
import type { Config } from "../../queues/config.ts";
import type { Accepted } from "../../queues/contracts.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { Queues } from "../../queues/open-queues.ts";
import type { JobLookup } from "../job-lookup.ts";
import { keyOf } from "../middleware/authenticate.ts";
import { jsonBody } from "../middleware/json-body.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { parseSolveRequest } from "../solve-request.ts";
import { type SubmitOptions, submit } from "../submission.ts";
import type { Webhooks } from "../webhooks.ts";

const KEY_PATTERN = /^[\x21-\x7e]{1,255}$/;

/** `POST /solve`: 202 when the job is in Redis, 200 with the finished view when the answer was in the cache. */
export function solveRoute(
  queues: Queues,
  config: Config,
  submitOptions: Pick<SubmitOptions, "admission" | "answers">,
  lookup: JobLookup,
  webhooks: Webhooks,
): Router {
  const router = Router();
  router.post("/", jsonBody(config), async (request, response) => {
    const key = request.get("idempotency-key");
    if (key !== undefined && !KEY_PATTERN.test(key)) {
      throw new MathllmError("invalid-request", "Idempotency-Key: expected 1 to 255 visible ASCII characters.");
    }
    const solveRequest = parseSolveRequest(request.body);
    const { jobId, estimatedWaitMs, replayed, cached } = await submit(queues, config, solveRequest, {
      idempotencyKey: key,
      owner: keyOf(response) ?? undefined,
      webhooks,
      ...submitOptions,
    });
    response.locals.jobId = jobId;
    const links = { self: `/jobs/${jobId}` };
    if (replayed) response.set("Idempotent-Replayed", "true");
    if (cached !== null) {
      response.location(cached.links.self).json(cached);
      return;
    }
    const view = replayed ? await lookup.view(jobId) : undefined;
    const status = view?.status ?? "waiting";
    const estimatedStartMs = view === undefined ? estimatedWaitMs : view.estimatedStartMs;
    response
      .status(202)
      .location(links.self)
      .json({ jobId, status, estimatedStartMs, links } satisfies Accepted);
  });
  router.all("/", onlyMethods("POST"));
  return router;
}
