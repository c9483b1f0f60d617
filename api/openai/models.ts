import { Router } from "express";
import { ROLES, type Role } from "../../queues/names.ts";
import { onlyMethods } from "../middleware/problems.ts";
import { modelNamed } from "./chat-request.ts";

/** `GET /v1/models` and `/v1/models/:id`: the two roles, whichever is resident. */
export function modelsRoute(): Router {
  const router = Router();
  const created = Math.floor(Date.now() / 1000);
  const modelOf = (id: Role) => ({ id, object: "model", created, owned_by: "mathllm" });
  router.get("/", (_request, response) => {
    response.json({ object: "list", data: ROLES.map(modelOf) });
  });
  router.all("/", onlyMethods("GET"));
  router.get("/:id", (request, response) => {
    response.json(modelOf(modelNamed(request.params.id)));
  });
  router.all("/:id", onlyMethods("GET"));
  return router;
}
