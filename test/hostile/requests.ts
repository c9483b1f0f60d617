import { ACCESS, BOARD_PATH } from "../../api/access.ts";

/** One request as bytes on the wire, since clients would not send most of these. */
export interface HostileRequest {
  /** What it tries. */
  kind: string;
  method: string;
  target: string;
  head: string;
  body: Buffer;
  /** It stops in the middle and says no more. */
  isCutOff: boolean;
}

type Random = () => number;

const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "get", "X"];
/** A well-formed body of each address that takes one. */
const BODIES: Record<string, unknown> = {
  "/solve": {
    problem: "1 + 0",
    explain: true,
    model: "student",
    priority: "batch",
    sampling: { temperature: 0.5, topP: 0.9, topK: 5, minP: 0.1, seed: 1, maxTokens: 9, stop: ["x"] },
    expected: "1",
    cache: "off",
    timeoutMs: 60_000,
    metadata: { a: "b" },
    webhook: { url: "https://example.org/" },
  },
  "/gpu/swap": { model: "talker", gpuId: "g" },
  "/queues/:model/rate-limit": { max: 1_000_000, durationMs: 1 },
  "/v1/chat/completions": {
    model: "student",
    messages: [
      { role: "system", content: "s" },
      { role: "user", content: [{ type: "text", text: "1 + 0" }] },
    ],
    stream: false,
    max_tokens: 5,
    temperature: 0,
    stop: ["x"],
    n: 1,
    seed: 1,
  },
  "/batches": { requests: [{ custom_id: "a", problem: "1 + 0" }], metadata: { a: "b" } },
};
const BOARD_ADDRESSES = [
  "",
  "/api/queues",
  "/api/queues/student/pause",
  "/api/queues/student/add",
  "/api/queues/student/:id",
  "/api/queues/:name/:id/flow",
  "/api/queues/:name/:id/logs",
  "/api/redis/stats",
  "/queue/:name",
  "/static/:name",
];
const ADDRESSES = [
  ...Object.keys(ACCESS).filter((address) => address !== BOARD_PATH),
  ...BOARD_ADDRESSES.map((address) => BOARD_PATH + address),
  "/:nothing",
];

/** Ids that try to leave their place, to be another key of Redis, or to upset a decoder. */
const IDS = [
  "..",
  ".",
  "..%2f..%2fetc%2fpasswd",
  "....//....//etc/passwd",
  "%2e%2e%2f%2e%2e%2fapi",
  "..%5c..%5cwindows",
  "%00",
  "solve-0%0d%0aX-Injected:%201",
  "%E0%A4%A",
  "%ff%fe",
  "__proto__",
  "constructor",
  "prototype",
  "toString",
  "solve-00000000000000000000000000000000",
  "talk-ffffffffffffffffffffffffffffffff-solve",
  "explain-00000000000000000000000000000000:lock",
  "cached-solve-00000000000000000000000000000000",
  "cached-solve-../../../../",
  "solve-00000000000000000000000000000000%2f..",
  "{mathllm}:student:meta",
  "*",
  "%2a",
  "a".repeat(4000),
  "%F0%9F%92%A9",
  "💩",
  "1e309",
  "-1",
  "student",
  "'%20OR%201=1--",
  "<script>alert(1)</script>",
  "$" + "{7*7}",
  "%25%32%65",
  ";a=b",
  "//",
];
const QUERIES = [
  "",
  "",
  "?wait=0",
  "?wait=1e309",
  "?wait[]=1",
  "?wait=%ff",
  "?__proto__[x]=1",
  `?a=${"b".repeat(3000)}`,
  "?wait=0&wait=0",
  "?%",
  "?page=-1&jobsPerPage=1e9&activeQueue=student",
  "#x",
];

const nest = (depth: number, open: string, close: string) => open.repeat(depth) + close.repeat(depth);
const VALUES = [
  "null",
  "true",
  "-0",
  "1e999",
  "-1e999",
  "9007199254740993",
  "0.1e-400",
  '""',
  '"\\u0000"',
  '"\\ud800"',
  '"\\udc00\\ud800"',
  '"\\u202e\\ufeff\\u2028"',
  JSON.stringify("x".repeat(40_000)),
  JSON.stringify("{{constructor.constructor('return 1')()}}"),
  '"$where"',
  "[]",
  "{}",
  nest(50, "[", "]"),
  nest(30_000, "[", "]"),
  `${'{"a":'.repeat(10_000)}1${"}".repeat(10_000)}`,
  '{"__proto__":{"polluted":true}}',
  '{"constructor":{"prototype":{"polluted":true}}}',
  '{"toJSON":1,"toString":1,"valueOf":1,"then":1,"length":-1}',
  `[${"1,".repeat(20_000)}1]`,
  `{${Array.from({ length: 5000 }, (_, i) => `"k${i}":${i}`).join()}}`,
];
const NAMES = [
  "__proto__",
  "constructor",
  "prototype",
  "toString",
  "hasOwnProperty",
  "",
  "\u0000",
  "problem",
  "then",
  "length",
  "a".repeat(2000),
];
const TYPES = [
  "application/json",
  "application/json",
  "application/json",
  "application/json; charset=utf-16",
  "application/json; charset=x-nothing",
  "application/json;charset=",
  "application/x-ndjson",
  "application/jsonl",
  "text/plain",
  "text/html",
  "application/x-www-form-urlencoded",
  "multipart/form-data",
  "multipart/form-data; boundary=x",
  "application/octet-stream",
  "application/vnd.api+json",
  "*/*",
  "application/",
  ";;;",
  "",
];
const HEADERS = [
  "Idempotency-Key: a\r\nX-Injected: 1",
  "Idempotency-Key: a\nX-Injected: 1",
  "Idempotency-Key: \u00e4\u0001",
  `Idempotency-Key: ${"k".repeat(5000)}`,
  "Last-Event-ID: 0-0\r\nX-Injected: 1",
  "Last-Event-ID: -",
  "Last-Event-ID: 99999999999999999999-0",
  "Authorization: Bearer",
  "Authorization: Basic %%%",
  `Authorization: Bearer ${"x".repeat(8000)}`,
  "Origin: null",
  "Origin: http://localhost.evil.example",
  "Origin: https://evil.example",
  "Content-Encoding: gzip",
  "Content-Encoding: br, gzip",
  "Expect: 100-continue",
  "Expect: 200-ok",
  "Range: bytes=0-1,5-2,-9",
  "If-None-Match: *",
  "If-Modified-Since: yesterday",
  "X-HTTP-Method-Override: DELETE",
  "X-Forwarded-For: ' OR 1=1",
  "X-Forwarded-Host: evil.example",
  "Accept: ;;;q=9",
  "Accept: text/html",
  "Upgrade: h2c\r\nConnection: Upgrade",
  "Upgrade: websocket\r\nConnection: Upgrade",
  "Transfer-Encoding: chunked",
  "Transfer-Encoding: gzip, chunked",
  "Transfer-Encoding: \u000bchunked",
  "Content-Length: -1",
  "Content-Length: 99999999999999999999",
  "Host: evil.example",
  "Host:",
  `X-Large: ${"x".repeat(20_000)}`,
  Array.from({ length: 1500 }, (_, i) => `X-${i}: ${i}`).join("\r\n"),
  "No colon at all",
  ": no name",
  "Bad Name: x",
  "Nul: \u0000",
];

/** A seeded stream of requests, no two of which need to be alike. */
export function* hostileRequests(random: Random, authorization: string | null): Generator<HostileRequest> {
  const pick = <T>(values: readonly T[]): T => values[Math.floor(random() * values.length)]!;
  for (;;) yield hostileRequest(random, pick, authorization);
}

function hostileRequest(random: Random, pick: <T>(values: readonly T[]) => T, authorization: string | null): HostileRequest {
  const address = pick(ADDRESSES);
  const taken = Object.keys(ACCESS[address] ?? {});
  const method = random() < 0.75 && taken.length > 0 ? pick(taken) : pick(METHODS);
  const target = address.replace(/:\w+/g, () => pick(IDS)) + (random() < 0.2 ? "/" : "") + pick(QUERIES);
  const [kind, body] = bodyOf(address, method, random, pick);
  const isCutOff = body.length > 10 && random() < 0.02;
  const lines = [`Host: localhost`, "Connection: close"];
  if (authorization !== null && random() < 0.95) lines.push(`Authorization: ${authorization}`);
  if (body.length > 0) lines.push(`Content-Type: ${pick(TYPES)}`, `Content-Length: ${body.length}`);
  const injected = random() < 0.3 ? pick(HEADERS) : null;
  if (injected !== null) lines.push(injected);
  return {
    kind: injected === null ? kind : `${kind}, header ${injected.slice(0, 24).split("\r")[0]}`,
    method,
    target,
    head: `${method} ${target} HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`,
    body: isCutOff ? body.subarray(0, body.length / 2) : body,
    isCutOff,
  };
}

function bodyOf(address: string, method: string, random: Random, pick: <T>(values: readonly T[]) => T): [string, Buffer] {
  const base = BODIES[address];
  if (method === "GET" || method === "HEAD" || (base === undefined && random() < 0.5)) return ["no body", Buffer.alloc(0)];
  const kind = random();
  const whole = JSON.stringify(base ?? {});
  if (kind < 0.1) return ["well-formed", Buffer.from(whole)];
  if (kind < 0.5) return ["one value replaced", Buffer.from(replaced(base ?? { a: 1 }, random, pick))];
  if (kind < 0.6) return ["one name added", Buffer.from(whole.replace(/^\{/, () => `{${JSON.stringify(pick(NAMES))}:${pick(VALUES)},`))];
  if (kind < 0.7) return ["another document", Buffer.from(pick(VALUES))];
  if (kind < 0.8) return ["cut short", Buffer.from(whole.slice(0, Math.floor(random() * whole.length)))];
  if (kind < 0.9) return ["bytes flipped", flipped(Buffer.from(whole), random)];
  if (kind < 0.97)
    return ["random bytes", Buffer.from(Array.from({ length: Math.floor(random() * 500) }, () => Math.floor(random() * 256)))];
  return ["oversized", Buffer.from(`{"problem":"${"1".repeat(400_000)}"}`)];
}

/** The body as text with one of its values, however deep, replaced by one that JSON allows and nobody expects. */
function replaced(value: unknown, random: Random, pick: <T>(values: readonly T[]) => T): string {
  if (value === null || typeof value !== "object" || random() < 0.15) return pick(VALUES);
  const entries = Object.entries(value);
  const at = Math.floor(random() * entries.length);
  const texts = entries.map(([name, inner], i) => [name, i === at ? replaced(inner, random, pick) : JSON.stringify(inner)] as const);
  if (Array.isArray(value)) return `[${texts.map(([, text]) => text).join()}]`;
  return `{${texts.map(([name, text]) => `${JSON.stringify(name)}:${text}`).join()}}`;
}

function flipped(bytes: Buffer, random: Random): Buffer {
  for (let i = 0; i < 1 + random() * 5; i++) bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
  return bytes;
}
