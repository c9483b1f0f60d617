import type { Request, RequestHandler, Response } from "express";
import { type ApiKey, type ApiKeys, hasRole } from "../../queues/api-keys.ts";
import { MathllmError } from "../../queues/errors.ts";
import { accessOf } from "../access.ts";
import type { KeyGate } from "../key-gate.ts";
import { onlyMethods, unknownAddress } from "./problems.ts";

/**
 * While API keys are in use: finds the request's key, counts the request against its rate, and checks its role against `ACCESS`. A browser
 * can send a key as the password of HTTP Basic, under any name. Without keys every `Authorization` header is ignored.
 */
export function authenticate(keys: ApiKeys, gate: KeyGate): RequestHandler {
  return async (request, response, next) => {
    if (!gate.closed) return next();
    const access = accessOf(request.method, request.path);
    if (access !== null && "need" in access && access.need === "open") return next();
    const secret = secretOf(request.get("authorization"));
    const admitted = secret === undefined ? undefined : await keys.admit(secret);
    if (admitted === undefined) {
      response.set("WWW-Authenticate", challengeOf(request));
      throw new MathllmError(
        "unauthorized",
        `Expected Authorization: Bearer KEY, or HTTP Basic with the key as its password; got ${secret === undefined ? "none" : "a key that is unknown or revoked"}.`,
      );
    }
    const { key, waitMs } = admitted;
    response.locals.key = key;
    if (waitMs > 0) {
      throw new MathllmError(
        "rate-limited",
        `The key ${key.name} may send ${key.ratePerS} requests a second. Send it again in ${waitMs} ms.`,
        {
          extra: { retryAfterSeconds: Math.ceil(waitMs / 1000) },
        },
      );
    }
    if (access === null) return unknownAddress(request, response, next);
    if ("takes" in access) return onlyMethods(...access.takes)(request, response, next);
    const { need } = access;
    if (need !== "any" && need !== "open" && !hasRole(key, need)) {
      throw new MathllmError(
        "forbidden",
        `${request.method} ${request.path} needs a key with the role ${need}; ${key.name} has ${key.roles.join(" and ")}.`,
        { extra: { needs: need } },
      );
    }
    next();
  };
}

/** Whose request it is; null while no keys are in use: then everybody may do everything. */
export function keyOf(response: Response): ApiKey | null {
  return response.locals.key ?? null;
}

function secretOf(authorization: string | undefined): string | undefined {
  const [, scheme = "", value = ""] = /^(\w+) +(\S+) *$/.exec(authorization ?? "") ?? [];
  if (/^bearer$/i.test(scheme)) return value;
  if (!/^basic$/i.test(scheme)) return undefined;
  const text = Buffer.from(value, "base64").toString();
  return text.slice(text.indexOf(":") + 1);
}

/** A browser asks its user for a key only where a page is opened. */
function challengeOf(request: Request): string {
  const opensPage = request.method === "GET" && /\btext\/html\b/.test(request.get("accept") ?? "");
  return opensPage ? 'Basic realm="mathllm: the API key as password", charset="UTF-8"' : 'Bearer realm="mathllm"';
}
