import type { RequestHandler } from "express";
import { MathllmError } from "../../queues/errors.ts";
import { isLoopback, type KeyGate } from "../key-gate.ts";

const SAFE_METHODS = ["GET", "HEAD", "OPTIONS"];
const PREFLIGHT_SECONDS = "600";

/**
 * Which web pages may use the API: those of its own address and of `allowed`; all others get no CORS headers. While no keys are in use Host
 * and Origin have to be loopback names, since otherwise any page could reach the API through the user's browser, by a name that resolves to
 * 127.0.0.1 or by a plain form. With keys a page of another origin may still change nothing: the browser would send the key for it.
 */
export function checkOrigin(gate: KeyGate, allowed: string[]): RequestHandler {
  return (request, response, next) => {
    const { host = "", origin } = request.headers;
    if (allowed.length > 0) response.vary("Origin");
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
    const [, originHost = ""] = /^https?:\/\/(.+)$/.exec(origin ?? "") ?? [];
    if (gate.closed) {
      const isForeign = origin !== undefined && originHost.toLowerCase() !== host.toLowerCase();
      if (isForeign && !SAFE_METHODS.includes(request.method)) {
        throw new MathllmError(
          "forbidden-origin",
          `Expected Origin to be this address, ${shortened(host)}, or one of CORS_ORIGINS; got ${shortened(origin)}.`,
        );
      }
      return next();
    }
    const foreign = !isLoopback(host) ? host : origin !== undefined && !isLoopback(originHost) ? origin : null;
    if (foreign !== null) {
      throw new MathllmError(
        "forbidden-origin",
        `Expected Host and Origin to be localhost or a loopback address, got ${shortened(foreign)}. Other names need API keys (mathllm keys add), other origins CORS_ORIGINS.`,
      );
    }
    next();
  };
}

function shortened(text: string): string {
  return JSON.stringify(text.slice(0, 100));
}
