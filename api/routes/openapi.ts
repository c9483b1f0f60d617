import { Router } from "express";
import type { ApiDocument } from "../../queues/api-document.ts";
import { onlyMethods } from "../middleware/problems.ts";

/** `GET /openapi.json`. */
export function openapiRoute(document: ApiDocument): Router {
  const router = Router();
  const text = JSON.stringify(document);
  router.get("/", (_request, response) => {
    response.type("json").send(text);
  });
  router.all("/", onlyMethods("GET"));
  return router;
}
