import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pino } from "pino";
import { type Browser, chromium } from "playwright-core";
import { request } from "undici";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createDocs } from "../../dashboards/docs/router.ts";
import type { ApiDocument } from "../../queues/api-document.ts";
import { readConfig } from "../../queues/config.ts";
import { ERRORS } from "../../queues/errors.ts";
import { METRICS } from "../../queues/metrics.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

const CHROMIUM = "/usr/bin/chromium";
const missing = !existsSync(CHROMIUM);
const axeSource = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let redis: RedisFixture;
let api: RunningApi;
let browser: Browser | undefined;

beforeAll(async () => {
  redis = await startRedisFixture();
  api = await startApi({
    config: readConfig({ PORT: "0", DATA_DIR: redis.dataDir }),
    redisUrl: redis.url,
    log: pino({ level: "silent" }),
    createDocs,
    version: "9.8.7",
  });
  if (!missing) browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu", "--no-first-run"] });
});
afterAll(async () => {
  await browser?.close();
  await api?.close();
  await redis?.stop();
});

test("the document and its pages are served, and a problem's type leads to its explanation", async () => {
  const document = (await (await fetch(`${api.url}/openapi.json`)).json()) as ApiDocument;
  expect(document.info.version).toBe("9.8.7");
  const page = await fetch(`${api.url}/docs`);
  expect(page.headers.get("content-type")).toContain("text/html");
  const text = await page.text();
  for (const path of Object.keys(document.paths)) expect(text).toContain(`<code>${path}</code>`);
  expect((await request(`${api.url}/docs`, { headers: { "if-none-match": page.headers.get("etag")! } })).statusCode).toBe(304);

  const problem = (await (await fetch(`${api.url}/docs/nothing`)).json()) as { code: string; type: string };
  expect(problem.code).toBe("not-found");
  const explained = new URL(problem.type, api.url);
  const errors = await (await fetch(explained)).text();
  expect(errors).toContain(`id="${explained.hash.slice(1)}"`);
  for (const code of Object.keys(ERRORS)) expect(errors).toContain(`id="${code}"`);
  const metrics = await (await fetch(`${api.url}/docs/metrics`)).text();
  for (const { name } of METRICS) expect(metrics).toContain(`id="${name}"`);
});

test.skipIf(missing).each([
  { path: "/docs", width: 390, colorScheme: "dark" },
  { path: "/docs/errors", width: 1280, colorScheme: "light" },
  { path: "/docs/metrics", width: 1280, colorScheme: "dark" },
] as const)("$path is whole at $width px, $colorScheme: nothing blocked, nothing from elsewhere, accessible", async (look) => {
  const context = await browser!.newContext({ viewport: { width: look.width, height: 900 }, colorScheme: look.colorScheme });
  const page = await context.newPage();
  const faults: string[] = [];
  page.on("console", (message) => faults.push(message.text()));
  page.on("request", (asked) => {
    if (!asked.url().startsWith(`${api.url}/`) && !asked.url().startsWith("data:")) faults.push(asked.url());
  });
  await page.goto(api.url + look.path);
  expect(await page.evaluate("getComputedStyle(document.querySelector('article')).display")).toBe("grid");
  expect(await page.evaluate("document.documentElement.scrollWidth <= innerWidth")).toBe(true);
  const broken = `[...document.querySelectorAll('a[href^="#"]')].map((a) => a.hash.slice(1)).filter((id) => !document.getElementById(id))`;
  expect(await page.evaluate(broken)).toEqual([]);
  expect(faults).toEqual([]);
  await page.evaluate(axeSource);
  // The cards are all alike, and hundreds of them take seconds.
  const looked = '{ include: ["header", ".side", "h1", "article:nth-of-type(-n+3)", "#form-SolveRequest"] }';
  const found = await page.evaluate(
    `axe.run(${looked}).then(({ violations }) => violations.map(({ id, impact, nodes }) => [id, impact, nodes[0].html]))`,
  );
  expect(found).toEqual([]);
  await context.close();
});
