import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pino } from "pino";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createLivePage } from "../../dashboards/live/page.ts";
import { type Config, readConfig } from "../../queues/config.ts";
import { engineFactory } from "../../workers/engines/engines.ts";
import { type GpuWorker, startGpuWorker } from "../../workers/main.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

const CHROMIUM = "/usr/bin/chromium";
const missing = !existsSync(CHROMIUM);
if (missing) console.warn(`The browser tests need ${CHROMIUM} (Debian: apt-get install chromium): skipped.`);
const axeSource = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const log = pino({ level: "silent" });

let redis: RedisFixture;
let config: Config;
let api: RunningApi;
let worker: GpuWorker | undefined;
let browser: Browser;
let context: BrowserContext;
/** What the pages asked of other servers, or complained about. */
const faults: string[] = [];

const start = (port: string) =>
  startApi({
    config: { ...config, port: Number(port) },
    redisUrl: redis.url,
    log,
    createPage: createLivePage,
  });

beforeAll(async () => {
  if (missing && process.env.CI) throw new Error(`CI has to have ${CHROMIUM}`);
  if (missing) return;
  redis = await startRedisFixture();
  config = readConfig({
    DATA_DIR: redis.dataDir,
    TELEMETRY_LOG: path.join(redis.dataDir, "telemetry.jsonl"),
    GPU_ID: "live-page-test",
    STUDENT_PORT: "0",
    TALKER_PORT: "0",
  });
  api = await start("0");
  const args = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ];
  browser = await chromium.launch({ executablePath: CHROMIUM, args });
});
afterEach(async () => {
  await context?.close();
  expect(faults.splice(0)).toEqual([]);
});
afterAll(async () => {
  await browser?.close();
  await worker?.stop(0);
  await api?.close();
  await redis?.stop();
});

/** `expected`: complaints of the browser that belong to the test. */
async function open({ width = 1280, colorScheme = "light" as "light" | "dark", hash = "", expected = /^$/ } = {}): Promise<Page> {
  context = await browser.newContext({ viewport: { width, height: 844 }, colorScheme });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on("request", (request) => {
    if (!request.url().startsWith(`${api.url}/`)) faults.push(request.url());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !expected.test(message.text())) faults.push(message.text());
  });
  await page.goto(`${api.url}/${hash}`);
  return page;
}

const status = (page: Page) => page.locator("#job-status");
const says = (page: Page, text: string | RegExp) => page.locator("#job-status", { hasText: text }).waitFor();
async function solve(page: Page, problem: string): Promise<void> {
  await page.getByLabel("Problem", { exact: true }).fill(problem);
  await page.getByRole("button", { name: "Solve", exact: true }).click();
}

async function seriousFindings(page: Page): Promise<string[]> {
  // Through the debugger, which the page's policy does not bind.
  await page.evaluate(axeSource);
  const { violations } = await page.evaluate<Findings>("axe.run()");
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`);
}
interface Findings {
  violations: { id: string; impact: string; nodes: { html: string }[] }[];
}

/** Keeps what stands as the solution while the job has not ended. */
const WATCH_SOLUTION = `
  globalThis.written = [];
  const job = document.getElementById("job");
  new MutationObserver(() => {
    const text = document.getElementById("text-student").textContent;
    if (job.getAttribute("aria-busy") === "true" && text !== "") written.push(text);
  }).observe(job, { subtree: true, childList: true, characterData: true });`;

test.skipIf(missing)("by keyboard alone: a problem waits for a worker, is solved token by token, then explained", async () => {
  const page = await open();
  await page.getByRole("heading", { name: "No worker is running." }).waitFor();
  await page.evaluate(WATCH_SOLUTION);
  const focused = () => page.evaluate<string>("document.activeElement.getAttribute('name') ?? document.activeElement.textContent");
  await page.keyboard.press("Tab");
  expect(await focused()).toBe("Skip to the problem form");
  await page.keyboard.press("Enter");
  await expect.poll(focused, { timeout: 10_000 }).toBe("problem");
  await page.keyboard.type("Find 1/6 + 5/7.");
  for (let tabs = 0; (await focused()) !== "explain" && tabs < 10; tabs++) await page.keyboard.press("Tab");
  await page.keyboard.press("Space");
  for (let tabs = 0; (await focused()) !== "Solve" && tabs < 10; tabs++) await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await says(page, "No worker is running: it is solved as soon as one is started.");
  worker = await startGpuWorker({
    config,
    redisUrl: redis.url,
    createEngine: engineFactory(config, log),
    log,
    onFatal: (error) => faults.push(error.message),
  });
  await says(page, "Solved and explained. The answer is 37/42.");
  const written = await page.evaluate<string[]>("written");
  expect(written.length).toBeGreaterThan(0);
  expect(await page.locator("#text-student").textContent()).toContain(written[0]!.slice(0, 20));
  await page.locator("#answer-text mfrac").waitFor();
  expect(await page.locator("#text-talker").textContent()).not.toBe("");
  expect(await page.locator("#stages").textContent()).toMatch(/Student done.*Talker done/);
  await page.locator("#headline", { hasText: "The Talker is ready" }).waitFor();
  await page.locator("#lines", { hasText: "The Talker came in for the Student" }).waitFor();
  await page.locator(".bar-student").first().waitFor();
  await page.getByRole("slider").focus();
  await page.keyboard.press("ArrowLeft");
  expect(await page.getByRole("slider").getAttribute("aria-valuetext")).toMatch(/^\d\d:\d\d:\d\d · \S/);
});

test.skipIf(missing)(
  "a known answer comes at once and says so, a reload watches the job again; axe finds nothing serious, nothing overflows",
  async () => {
    const page = await open({ width: 390, colorScheme: "dark" });
    await solve(page, "What is 17 + 25?");
    await says(page, "Solved. The answer is 42.");
    await solve(page, "What is 17 + 25?");
    await page.getByText("From the cache: it was solved before.").waitFor();
    await page.reload();
    await says(page, "Solved. The answer is 42.");
    expect(await page.evaluate<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(390);
    expect(await seriousFindings(page)).toEqual([]);
    await page.setViewportSize({ width: 1280, height: 900 });
    await page.emulateMedia({ colorScheme: "light" });
    expect(await seriousFindings(page)).toEqual([]);
  },
);

test.skipIf(missing)("what models write is text, never markup, and LaTeX of theirs opens nothing", async () => {
  const page = await open();
  const hostile =
    '<img src="https://example.invalid/x" onerror="alert(1)"> \\(\\href{javascript:alert(1)}{x}\\) \\(\\includegraphics{https://example.invalid/y}\\) \\(x^2\\)';
  const stages = [{ model: "student", status: "completed", attempts: 1, pickedAt: 1, firstTokenAt: 1, finishedAt: 1, error: null }];
  const result = {
    answer: hostile,
    solution: hostile,
    explanation: null,
    truncated: false,
    cached: true,
    coalesced: false,
    usage: { promptTokens: 1, completionTokens: 1 },
  };
  const timestamps = { acceptedAt: 1, pickedAt: 1, firstTokenAt: 1, finishedAt: 1 };
  await page.route("**/solve", (route) =>
    route.fulfill({ json: { jobId: "cached-solve-x", status: "completed", stages, result, error: null, timestamps } }),
  );
  await solve(page, "hostile");
  await page.locator("#text-student msup").waitFor();
  expect(await page.locator("#job img, #job a, #job script").count()).toBe(0);
  expect(await page.locator("#text-student").textContent()).toContain("<img src=");
});

const problem = (code: string) => JSON.stringify({ code, title: code, detail: "Its detail." });
test.skipIf(missing)("every failure has words for people, and another try where that may help", async () => {
  const page = await open({ expected: /Failed to load resource/ });
  const failure = page.getByRole("alert");
  await page.route("**/solve", (route) => route.fulfill({ status: 429, headers: { "retry-after": "10" }, body: problem("queue-full") }));
  await solve(page, "1 + 1");
  await failure.getByText("The queue is full. Its detail. Trying again is worth it in 10 s.").waitFor();
  const keys: (string | undefined)[] = [];
  page.on("request", (request) => request.url().endsWith("/solve") && keys.push(request.headers()["idempotency-key"]));
  await page.unroute("**/solve");
  await page.route("**/solve", (route) => route.abort());
  await failure.getByRole("button", { name: "Try again" }).click();
  await failure.getByText("The API can't be reached.").waitFor();
  await page.unroute("**/solve");
  await failure.getByRole("button", { name: "Try again" }).click();
  await says(page, "Solved");
  expect(new Set(keys).size).toBe(1);
  await page.goto(`${api.url}/#job=solve-${"0".repeat(32)}`);
  await failure.getByText("No such job").waitFor();
  await solve(page, " ");
  expect(
    await page.getByLabel("Problem", { exact: true }).evaluate((field: { validationMessage: string }) => field.validationMessage),
  ).toBe("Write a problem first.");
});

test.skipIf(missing)(
  "the API goes and comes back: the page says so, reconnects, and still knows the last minutes; a job is cancelled",
  async () => {
    const page = await open({ expected: /ERR_|Failed to load resource/ });
    await page.getByText("Live", { exact: true }).waitFor();
    const { port } = api;
    await api.close();
    await page.getByText("The API is away. What is shown is old; trying again …").waitFor();
    api = await start(String(port));
    await page.getByText("Live", { exact: true }).waitFor();
    await page.locator("#lines", { hasText: "The Student was loaded" }).waitFor();
    await fetch(`${api.url}/gpu/drain`, { method: "POST" });
    await page.getByRole("heading", { name: "The GPU is held by an operator." }).waitFor();
    await page.getByLabel("Priority").selectOption("batch");
    await solve(page, "What is 18 + 25?");
    await says(page, "An operator has stopped the workers from taking jobs.");
    await page.getByRole("button", { name: "Cancel" }).click();
    await says(page, "Cancelled.");
    expect(await status(page).getAttribute("role")).toBe("status");
  },
);
