import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { type Request, type Response, Router } from "express";
import type { ApiDocument } from "../../queues/api-document.ts";
import { errorsPage, metricsPage, routesPage } from "./pages.ts";

interface File {
  type: string;
  text: string;
  etag: string;
}

/**
 * The pages below `/docs`, made once from the OpenAPI document: no script, and nothing from other servers. `policy`: their
 * Content-Security-Policy.
 */
export function createDocs(document: ApiDocument, policy: string): Router {
  const css = readFileSync(path.join(import.meta.dirname, "page.css"), "utf8");
  const files = new Map([
    ["", fileOf("text/html; charset=utf-8", routesPage(document))],
    ["errors", fileOf("text/html; charset=utf-8", errorsPage(document))],
    ["metrics", fileOf("text/html; charset=utf-8", metricsPage(document))],
    ["page.css", fileOf("text/css; charset=utf-8", css)],
  ]);
  const send = (name: string, request: Request, response: Response): boolean => {
    const file = files.get(name);
    if (file === undefined) return false;
    response.set({ "Content-Type": file.type, ETag: file.etag, "Cache-Control": "no-cache", "Content-Security-Policy": policy });
    if (request.fresh) response.status(304).end();
    else response.end(file.text);
    return true;
  };
  const router = Router();
  router.get("/", (request, response) => {
    send("", request, response);
  });
  router.get("/:name", (request, response, next) => {
    if (!send(request.params.name, request, response)) next();
  });
  return router;
}

function fileOf(type: string, text: string): File {
  return { type, text, etag: `"${createHash("sha256").update(text).digest("base64url").slice(0, 22)}"` };
}
