import { createHash, timingSafeEqual } from "node:crypto";
import type http from "node:http";
import { RequestError } from "./completion-request.ts";

/** Throws a `RequestError` for a request that this server must not answer. */
export type RequestGuard = (request: http.IncomingMessage) => void;

const LOOPBACK_HOST = /^(127\.0\.0\.1|localhost|\[::1\])(:\d+)?$/i;

/**
 * Who may talk to the embedded engine's server: other users of the machine lack the key; a web page has an Origin, or, by a name that
 * was rebound to this machine, a foreign Host, and can't post JSON without being asked first. Only the health check needs no key.
 */
export function createRequestGuard(apiKey: string): RequestGuard {
  const expected = digestOf(`Bearer ${apiKey}`);
  return ({ method, url, headers }) => {
    if (!LOOPBACK_HOST.test(headers.host ?? "")) {
      throw new RequestError(403, "forbidden_host", `Expected the Host 127.0.0.1 or localhost; got ${headers.host ?? "none"}.`);
    }
    if (headers.origin !== undefined) {
      throw new RequestError(403, "forbidden_origin", `Expected no web page to ask; got the Origin ${headers.origin}.`);
    }
    if (method === "GET" && url === "/health") return;
    if (!timingSafeEqual(digestOf(headers.authorization ?? ""), expected)) {
      throw new RequestError(401, "invalid_api_key", "Expected Authorization: Bearer and this server's key.");
    }
    if (method === "POST" && !/^application\/json\s*(;|$)/i.test(headers["content-type"] ?? "")) {
      throw new RequestError(415, null, `Expected the content type application/json; got ${headers["content-type"] ?? "none"}.`);
    }
  };
}

/** Digests are of one length, whatever is compared. */
function digestOf(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
