import { pino } from "pino";
import { request } from "undici";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { ApiKeys } from "../../queues/api-keys.ts";
import { readConfig } from "../../queues/config.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

/** What a browser sends for pages of other origins, the next port of this machine among them. */
const LISTED = "https://app.example.org";
const KEY = "admin-0123456789abcdef0123456789";
const BASIC = `Basic ${Buffer.from(`any:${KEY}`).toString("base64")}`;

const OPEN_PAGE = { "sec-fetch-mode": "navigate", "sec-fetch-dest": "document" };
const fetchFrom = (site: string) => ({ "sec-fetch-site": site, "sec-fetch-mode": "cors", "sec-fetch-dest": "empty" });
const pictureFrom = (site: string) => ({ "sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image" });
const OTHER_PORT = "http://localhost:4566";

let redis: RedisFixture;
let api: RunningApi;

beforeAll(async () => {
  redis = await startRedisFixture();
  const config = readConfig({ PORT: "0", DATA_DIR: redis.dataDir, CORS_ORIGINS: LISTED });
  api = await startApi({ config, redisUrl: redis.url, log: pino({ level: "silent" }) });
});
afterAll(async () => {
  await api.close();
  await redis.stop();
});

async function ask(method: "GET" | "POST" | "PUT" | "DELETE" | "OPTIONS", address: string, headers: Record<string, string>) {
  const { statusCode, body } = await request(`${api.url}${address}`, { method, headers });
  const text = await body.text();
  return { status: statusCode, code: text.startsWith("{") ? (JSON.parse(text) as { code?: string }).code : undefined, text };
}
const expectForbidden = async (answer: ReturnType<typeof ask>) =>
  expect(await answer).toMatchObject({ status: 403, code: "forbidden-origin" });
const expectHeard = async (answer: ReturnType<typeof ask>) => expect((await answer).code).not.toBe("forbidden-origin");
const here = () => `localhost:${api.port}`;

const COMMANDS = [
  ["POST", "/gpu/drain"],
  ["POST", "/solve"],
  ["PUT", "/queues/student/rate-limit"],
  ["DELETE", "/cache"],
] as const;

describe("without keys", () => {
  test.each(COMMANDS)("%s %s takes nothing from a page of another port, scheme or name", async (method, address) => {
    const origins = [OTHER_PORT, `https://${here()}`, `http://127.0.0.1:${api.port}`, "https://evil.example", "null", "", here()];
    for (const origin of origins) await expectForbidden(ask(method, address, { host: here(), origin }));
    for (const site of ["same-site", "cross-site"]) {
      await expectForbidden(ask(method, address, { host: here(), ...fetchFrom(site) }));
      await expectForbidden(ask(method, address, { host: here(), "sec-fetch-site": site, ...OPEN_PAGE }));
    }
  });

  test("the refusal says what was expected, what came and what to do", async () => {
    const { text } = await ask("POST", "/gpu/drain", { host: here(), origin: OTHER_PORT });
    expect(JSON.parse(text).detail).toBe(
      `Expected Origin to be this address, "http://${here()}", or one of CORS_ORIGINS; got "${OTHER_PORT}".`,
    );
    const { text: other } = await ask("GET", "/gpu", { host: here(), ...fetchFrom("cross-site") });
    expect(JSON.parse(other).detail).toMatch(
      /Expected a request of this address's own pages.*CORS_ORIGINS; got one that the browser calls cross-site/,
    );
  });

  test.each(["/gpu", "/jobs/1?wait=60", "/docs"])("GET %s is not read by a foreign page, but opened by a link of one", async (address) => {
    await expectForbidden(ask("GET", address, { host: here(), origin: OTHER_PORT, ...fetchFrom("same-site") }));
    await expectForbidden(ask("GET", address, { host: here(), ...pictureFrom("same-site") }));
    await expectForbidden(ask("GET", address, { host: here(), ...pictureFrom("cross-site") }));
    await expectForbidden(
      ask("GET", address, { host: here(), "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe" }),
    );
    for (const site of ["same-site", "cross-site", "none", "same-origin"])
      await expectHeard(ask("GET", address, { host: here(), "sec-fetch-site": site, ...OPEN_PAGE }));
  });

  test("its own pages, listed ones and programs are heard", async () => {
    for (const host of [here(), `127.0.0.1:${api.port}`, `LOCALHOST:${api.port}`]) {
      await expectHeard(ask("POST", "/gpu/drain", { host, origin: `http://${host.toLowerCase()}`, ...fetchFrom("same-origin") }));
    }
    await expectHeard(ask("POST", "/gpu/drain", { host: here(), origin: LISTED, ...fetchFrom("cross-site") }));
    await expectHeard(ask("POST", "/gpu/drain", { host: here() }));
    // What Node's own fetch sends.
    await expectHeard(ask("POST", "/gpu/drain", { host: here(), "sec-fetch-mode": "cors" }));
  });

  test("a name that resolves to this machine is none of its own, whatever the page's origin", async () => {
    await expectForbidden(ask("GET", "/gpu", { host: "rebound.example" }));
    await expectForbidden(ask("POST", "/gpu/drain", { host: "rebound.example", origin: "http://rebound.example" }));
    await expectForbidden(ask("POST", "/gpu/drain", { host: "rebound.example", origin: LISTED }));
  });
});

describe("with keys, which the browser sends by itself once it has one", () => {
  beforeAll(async () => {
    const connection = redis.connect();
    await connection.ping();
    await new ApiKeys(connection).seed([{ name: "ops", roles: ["admin"], secret: KEY }]);
    await vi.waitFor(async () => expect((await ask("GET", "/gpu", { host: here() })).status).toBe(401), { timeout: 20_000 });
  });

  test.each(COMMANDS)("%s %s takes nothing from a page of another origin", async (method, address) => {
    for (const origin of [OTHER_PORT, `http://127.0.0.1:${api.port}`, "https://evil.example", "null"])
      await expectForbidden(ask(method, address, { host: here(), origin, authorization: BASIC }));
    for (const site of ["same-site", "cross-site"])
      await expectForbidden(ask(method, address, { host: here(), authorization: BASIC, "sec-fetch-site": site, ...OPEN_PAGE }));
  });

  test("a foreign page loads nothing, but may link; the own page behind a proxy that speaks TLS is heard", async () => {
    await expectForbidden(ask("GET", "/gpu", { host: here(), authorization: BASIC, ...pictureFrom("cross-site") }));
    await expectHeard(ask("GET", "/gpu", { host: here(), authorization: BASIC, "sec-fetch-site": "cross-site", ...OPEN_PAGE }));
    const proxied = { host: "mathllm.example.org", origin: "https://mathllm.example.org", authorization: BASIC };
    await expectHeard(ask("POST", "/gpu/drain", { ...proxied, ...fetchFrom("same-origin") }));
    await expectHeard(ask("POST", "/gpu/drain", { host: here(), origin: LISTED, authorization: BASIC, ...fetchFrom("cross-site") }));
  });
});
