import type { KeyRole } from "../queues/api-keys.ts";

/** `open`: nobody needs a key. `any`: every key; what belongs to a key is shown to it alone. Else the role that a key needs. */
export type Need = "open" | "any" | KeyRole;

/** Below it everything belongs to Bull Board. */
export const BOARD_PATH = "/dashboards/queues";

type Methods = Partial<Record<"GET" | "POST" | "PUT" | "DELETE" | "PATCH", Need>>;

/**
 * What each address needs while API keys are in use. An address or method that does not stand here does not exist for anybody: a new route
 * needs its line. Changes that need `admin` are audited.
 */
export const ACCESS: Record<string, Methods> = {
  "/": { GET: "any" },
  "/live/:name": { GET: "any" },
  "/solve": { POST: "submit" },
  "/jobs/:id": { GET: "any", DELETE: "submit" },
  "/jobs/:id/events": { GET: "any" },
  "/jobs/:id/webhook": { GET: "any" },
  "/batches": { GET: "any", POST: "submit" },
  "/batches/:id": { GET: "any", DELETE: "submit" },
  "/batches/:id/results": { GET: "any" },
  "/batches/:id/errors": { GET: "any" },
  "/gpu": { GET: "read" },
  "/gpu/history": { GET: "read" },
  "/gpu/events": { GET: "read" },
  "/gpu/drain": { POST: "admin" },
  "/gpu/resume": { POST: "admin" },
  "/gpu/swap": { POST: "admin" },
  "/gpu/release": { POST: "admin" },
  "/gpu/reset": { POST: "admin" },
  "/queues": { GET: "read" },
  "/queues/:model/rate-limit": { PUT: "admin", DELETE: "admin" },
  "/cache": { GET: "read", DELETE: "admin" },
  "/cache/:id": { DELETE: "admin" },
  "/v1/models": { GET: "any" },
  "/v1/models/:id": { GET: "any" },
  "/v1/chat/completions": { POST: "submit" },
  "/v1/files": { GET: "any", POST: "submit" },
  "/v1/files/:id": { GET: "any", DELETE: "submit" },
  "/v1/files/:id/content": { GET: "any" },
  "/v1/batches": { GET: "any", POST: "submit" },
  "/v1/batches/:id": { GET: "any" },
  "/v1/batches/:id/cancel": { POST: "submit" },
  "/metrics": { GET: "read" },
  "/openapi.json": { GET: "any" },
  "/docs": { GET: "any" },
  "/docs/:name": { GET: "any" },
  "/healthz": { GET: "open" },
  "/readyz": { GET: "open" },
  [BOARD_PATH]: { GET: "read", POST: "admin", PUT: "admin", PATCH: "admin", DELETE: "admin" },
};

const PATTERNS = Object.entries(ACCESS).map(([address, methods]) => {
  const source = address.replace(/:\w+/g, "[^/]+").replace(/\/$/, "");
  return { address, pattern: new RegExp(`^${source}${address === BOARD_PATH ? "(/.*)?" : "/?"}$`, "i"), methods };
});

/** The address of `ACCESS` that a path is one of. */
export function addressOf(path: string): string | undefined {
  return PATTERNS.find(({ pattern }) => pattern.test(path))?.address;
}

/** What a request needs; the methods that its address takes, when this one is not among them; null when there is no such address. */
export function accessOf(method: string, path: string): { need: Need } | { takes: string[] } | null {
  const found = PATTERNS.find(({ pattern }) => pattern.test(path));
  if (found === undefined) return null;
  const need = found.methods[(method === "HEAD" ? "GET" : method) as keyof Methods];
  return need === undefined ? { takes: Object.keys(found.methods) } : { need };
}
