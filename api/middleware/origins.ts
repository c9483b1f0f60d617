import type { Request, RequestHandler } from "express";
import { MathllmError } from "../../queues/errors.ts";
import { isLoopback, type KeyGate } from "../key-gate.ts";

const SAFE_METHODS = ["GET", "HEAD", "OPTIONS"];
const PREFLIGHT_SECONDS = "600";

/**
 * Which web pages may use the API: those of its own address and of `allowed`; all others get no CORS headers.
 *
 * While no keys are in use, Host has to be a loopback name, since otherwise any page could reach the API by a name that resolves to 127.0.0.1,
 * and Origin the very address that was asked: a page of another port is a stranger's program, too. With keys a page of another origin may
 * change nothing, since the browser would send the key for it; its own may be served over TLS by a proxy, so its scheme is not compared.
 *
 * A browser tells with `Sec-Fetch-Site` also of requests that carry no Origin. Of those for pages of others only the opening of a page by a
 * link is heard.
 */
export function checkOrigin(gate: KeyGate, allowed: string[]): RequestHandler {
  return (request, response, next) => {
    const { host = "", origin } = request.headers;
    if (allowed.length > 0) response.vary("Origin");
    if (!gate.closed && !isLoopback(host)) {
      throw new MathllmError(
        "forbidden-origin",
        `Expected Host to be localhost or a loopback address, got ${shortened(host)}. Other names need API keys (mathllm keys add).`,
      );
    }
    if (origin !== undefined && allowed.includes(origin)) {
      response.set({
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
      });
      if (request.method === "OPTIONS" && request.get("access-control-request-method") !== undefined) {
        response.set({
          "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
          "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID",
          "Access-Control-Max-Age": PREFLIGHT_SECONDS,
        });
        response.status(204).end();
        return;
      }
      return next();
    }
    const own = (gate.closed ? ["http", "https"] : ["http"]).map((scheme) => `${scheme}://${host.toLowerCase()}`);
    const isOwn = origin === undefined || own.includes(origin.toLowerCase());
    if (!isOwn && !(gate.closed && SAFE_METHODS.includes(request.method))) {
      throw new MathllmError(
        "forbidden-origin",
        `Expected Origin to be this address, ${shortened(own[0]!)}, or one of CORS_ORIGINS; got ${shortened(origin)}.`,
      );
    }
    const site = request.get("sec-fetch-site");
    if ((site === "cross-site" || site === "same-site") && !opensPage(request)) {
      throw new MathllmError(
        "forbidden-origin",
        `Expected a request of this address's own pages, a link to it, or an Origin of CORS_ORIGINS; got one that the browser calls ${site}.`,
      );
    }
    next();
  };
}

/** By a link, in a tab of its own: the page that it stands on sees nothing of it. */
function opensPage(request: Request): boolean {
  return request.method === "GET" && request.get("sec-fetch-mode") === "navigate" && request.get("sec-fetch-dest") === "document";
}

function shortened(text: string): string {
  return JSON.stringify(text.slice(0, 100));
}
