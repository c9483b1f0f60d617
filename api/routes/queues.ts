import { type Request, Router } from "express";
import type { Config } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { loadQueueViews } from "../../queues/gpu-view.ts";
import { ROLES, type Role } from "../../queues/names.ts";
import type { Queues } from "../../queues/open-queues.ts";
import { rateLimitSchema, setRateLimit } from "../../queues/rate-limits.ts";
import { jsonBody } from "../middleware/json-body.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { parseBody } from "../parse-body.ts";

/** `GET /queues`, and `PUT` and `DELETE /queues/:model/rate-limit`, which hold from the next pick on and through restarts. */
export function queuesRoute(queues: Queues, config: Config): Router {
  const router = Router();
  router.get("/", async (_request, response) => {
    response.json(await loadQueueViews(queues, config));
  });
  router.all("/", onlyMethods("GET"));
  router.put("/:model/rate-limit", jsonBody(config), async (request, response) => {
    const role = roleOf(request);
    await setRateLimit(queues, role, parseBody(rateLimitSchema, request.body));
    response.json((await loadQueueViews(queues, config))[role]);
  });
  router.delete("/:model/rate-limit", async (request, response) => {
    const role = roleOf(request);
    await setRateLimit(queues, role, null);
    response.json((await loadQueueViews(queues, config))[role]);
  });
  router.all("/:model/rate-limit", onlyMethods("PUT", "DELETE"));
  return router;
}

function roleOf(request: Request): Role {
  const { model } = request.params;
  const role = ROLES.find((each) => each === model);
  if (role === undefined)
    throw new MathllmError("not-found", `There is no queue ${JSON.stringify(model)}; there are ${ROLES.join(" and ")}.`);
  return role;
}
