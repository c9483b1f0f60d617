import { type Request, type Response, Router } from "express";
import { assetOf } from "./assets.ts";

/**
 * The live page at `/`, for those who ask for HTML as browsers do, and its files below `/live`. Whoever asks for JSON, or for anything at
 * all, is passed on. `policy`: the page's Content-Security-Policy.
 */
export function createLivePage(policy: string): Router {
  const router = Router();
  router.get("/", (request, response, next) => {
    response.vary("Accept");
    if (request.accepts(["json", "html"]) !== "html") return next();
    response.set("Content-Security-Policy", policy);
    send(request, response, "index.html");
  });
  router.get("/live/:name", (request, response, next) => {
    if (!send(request, response, request.params.name)) next();
  });
  return router;
}

function send(request: Request, response: Response, name: string): boolean {
  const asset = assetOf(name);
  if (asset === undefined) return false;
  response.vary("Accept-Encoding");
  response.set({ "Content-Type": asset.type, ETag: asset.etag, "Cache-Control": "no-cache" });
  if (request.fresh) {
    response.status(304).end();
    return true;
  }
  const gzip = request.acceptsEncodings(["gzip", "identity"]) === "gzip";
  if (gzip) response.set("Content-Encoding", "gzip");
  response.end(gzip ? asset.gzipped : asset.body);
  return true;
}
