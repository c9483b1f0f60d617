import { execFileSync, spawnSync } from "node:child_process";
import path from "node:path";
import { describe, expect, test } from "vitest";

const folder = path.join(import.meta.dirname, "../../workers/engines/vllm-guard");
const hasPython = spawnSync("python3", ["--version"]).status === 0;

/** Sends each request through the guard as vLLM's server would, and tells which of them reached the server behind, or their status. */
const HARNESS = `
import asyncio, json, sys
from mathllm_guard import Guard
reached = []
async def server(scope, receive, send):
    reached.append(True)
async def ask(scope):
    sent = []
    async def send(message):
        sent.append(message)
    reached.clear()
    await guard({"headers": [], **scope, **({"headers": [(n.encode(), v.encode()) for n, v in scope["headers"]]} if "headers" in scope else {})}, None, send)
    return "reached" if reached else sent[0].get("status", sent[0]["type"])
guard = Guard(server)
print(json.dumps([asyncio.run(ask(scope)) for scope in json.loads(sys.argv[1])]))
`;

function statuses(scopes: object[], key = "secret"): unknown[] {
  const env = { ...process.env, PYTHONPATH: folder, PYTHONDONTWRITEBYTECODE: "1", VLLM_API_KEY: key };
  return JSON.parse(execFileSync("python3", ["-c", HARNESS, JSON.stringify(scopes)], { env, encoding: "utf8", stdio: "pipe" }));
}

describe.skipIf(!hasPython)("the guard before vLLM", () => {
  const http = (method: string, address: string, authorization?: string) => ({
    type: "http",
    method,
    path: address,
    headers: authorization === undefined ? [] : [["authorization", authorization]],
  });

  test("without the key nothing but the health check gets through, whatever vLLM itself guards", () => {
    const open = [
      "/v1/models",
      "/invocations",
      "/tokenize",
      "/metrics",
      "/sleep",
      "/wake_up",
      "/collective_rpc",
      "/health/../sleep",
      "//health",
    ];
    expect(new Set(statuses(open.flatMap((address) => ["GET", "POST", "OPTIONS"].map((method) => http(method, address)))))).toEqual(
      new Set([401]),
    );
    expect(statuses([http("GET", "/health"), http("POST", "/health"), { type: "websocket", path: "/v1/realtime" }])).toEqual([
      "reached",
      401,
      "websocket.close",
    ]);
  });

  test("with the key everything does; a part of it, another scheme or two of them are no key", () => {
    expect(statuses([http("POST", "/sleep", "Bearer secret"), { type: "lifespan" }])).toEqual(["reached", "reached"]);
    const two = {
      ...http("GET", "/metrics"),
      headers: [
        ["authorization", "Bearer secret"],
        ["authorization", "Bearer x"],
      ],
    };
    const wrong = ["Bearer secre", "Bearer secrets", "bearer", "", "Basic secret"].map((given) => http("GET", "/metrics", given));
    expect(new Set(statuses([...wrong, two]))).toEqual(new Set([401]));
  });

  test("without a key to ask for it does not start", () => {
    expect(() => statuses([], "")).toThrow(/Expected the server's key in VLLM_API_KEY/);
  });
});
