import { existsSync } from "node:fs";
import { pino } from "pino";
import { type Browser, chromium } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createBoard } from "../../dashboards/board.ts";
import { createLivePage } from "../../dashboards/live/page.ts";
import { readConfig } from "../../queues/config.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

const CHROMIUM = "/usr/bin/chromium";
const missing = !existsSync(CHROMIUM);
const KEY = "key-of-ann-1234567890";

let redis: RedisFixture;
let api: RunningApi;
let browser: Browser;

beforeAll(async () => {
  if (missing) return;
  redis = await startRedisFixture();
  api = await startApi({
    config: readConfig({ PORT: "0", DATA_DIR: redis.dataDir, API_KEYS: `ann:submit+read:${KEY}` }),
    redisUrl: redis.url,
    log: pino({ level: "silent" }),
    createBoard,
    createPage: createLivePage,
  });
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu", "--no-first-run"] });
});
afterAll(async () => {
  await browser?.close();
  await api?.close();
  await redis?.stop();
});

test.skipIf(missing)(
  "a browser opens the live page and the board with the key as its password, and nothing on them is blocked but fonts from elsewhere",
  async () => {
    const stranger = await browser.newPage();
    await expect(stranger.goto(api.url)).rejects.toThrow("ERR_INVALID_AUTH_CREDENTIALS");
    const context = await browser.newContext({ httpCredentials: { username: "ann", password: KEY } });
    const page = await context.newPage();
    const refused: string[] = [];
    page.on("console", (message) => {
      if (message.type() === "error" && !message.text().includes("fonts.googleapis.com")) refused.push(message.text());
    });
    page.on("response", (response) => {
      if (response.status() >= 400 && response.status() !== 401) refused.push(`${response.status()} ${response.url()}`);
    });
    const opened = page.waitForResponse((response) => response.url().includes("/gpu/events") && response.status() === 200);
    expect((await page.goto(api.url))?.status()).toBe(200);
    await opened;
    await page.goto(`${api.url}/dashboards/queues`);
    await page
      .getByRole("link", { name: /student/ })
      .first()
      .waitFor();
    // The page's own form, as its script sends it.
    const status = await page.evaluate(() =>
      fetch("/solve", { method: "POST", headers: { "content-type": "application/json" }, body: '{"problem":"1 + 1"}' }).then(
        (response) => response.status,
      ),
    );
    expect(status).toBe(202);
    expect(refused).toEqual([]);
  },
);
