import { existsSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { pino } from "pino";
import { type Browser, chromium } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createBoard } from "../../dashboards/board.ts";
import { ApiClient } from "../../producers/submit.ts";
import { readConfig } from "../../queues/config.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

const CHROMIUM = "/usr/bin/chromium";
const missing = !existsSync(CHROMIUM);
if (missing) console.warn(`The browser tests need ${CHROMIUM} (Debian: apt-get install chromium): skipped.`);

let redis: RedisFixture;
let api: RunningApi;
let browser: Browser;

beforeAll(async () => {
  if (missing && process.env.CI) throw new Error(`CI has to have ${CHROMIUM}`);
  redis = await startRedisFixture();
  api = await startApi({
    config: readConfig({ PORT: "0", DATA_DIR: redis.dataDir }),
    redisUrl: redis.url,
    log: pino({ level: "silent" }),
    createBoard,
  });
  if (missing) return;
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
afterAll(async () => {
  await browser?.close();
  await api?.close();
  await redis?.stop();
});

test.skipIf(missing)("Bull Board lists both queues and shows a waiting job", async () => {
  const { jobId } = await new ApiClient(api.url).submit({ problem: "What is 17 + 25?" });
  const page = await browser.newPage();
  const errors: string[] = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(`${api.url}/dashboards/queues`);
  for (const name of ["student", "talker"])
    await page
      .getByRole("link", { name: new RegExp(name) })
      .first()
      .waitFor();
  await page.goto(`${api.url}/dashboards/queues/queue/student?status=prioritized`);
  await page.getByText(jobId).first().waitFor();
  await page.screenshot({ path: path.join(os.tmpdir(), "mathllm-board.png") });
  expect(errors).toEqual([]);
});

test("it is read only: changes are refused", async () => {
  const { jobId } = await new ApiClient(api.url).submit({ problem: "1 + 1" });
  for (const change of [`${jobId}/retry/failed`, `${jobId}/clean`, "pause", "clean/failed", "retry/failed", "empty", "obliterate"]) {
    const response = await fetch(`${api.url}/dashboards/queues/api/queues/student/${change}`, { method: "PUT" });
    expect([change, response.status >= 400 && response.status < 500]).toEqual([change, true]);
  }
  expect(await (await fetch(`${api.url}/jobs/${jobId}`)).json()).toMatchObject({ status: "waiting" });
});
