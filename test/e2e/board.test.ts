import { existsSync } from "node:fs";
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

const boardApi = () => `${api.url}/dashboards/queues/api/queues`;

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
  expect(errors).toEqual([]);
});

test.each([
  ["PUT", "student/pause"],
  ["PUT", "student/resume"],
  ["PUT", "student/empty"],
  ["PUT", "student/obliterate"],
  ["PUT", "student/clean/completed"],
  ["PUT", "student/retry/failed"],
  ["PUT", "student/promote"],
  ["PUT", "talker/pause"],
  ["POST", "student/add"],
  ["PUT", "student/JOB/retry"],
  ["PUT", "student/JOB/clean"],
  ["PUT", "student/JOB/promote"],
])("it is read only: %s %s answers 405 and changes nothing", async (method, change) => {
  const { jobId } = await new ApiClient(api.url).submit({ problem: "1 + 1" });
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${boardApi()}/${change.replace("JOB", jobId)}`, { method, headers, body: "{}" });
  expect(response.status).toBe(405);
  expect(await (await fetch(`${api.url}/jobs/${jobId}`)).json()).toMatchObject({ status: "waiting" });
});

test("pausing all queues at once leaves both running", async () => {
  await fetch(`${boardApi()}/pause`, { method: "PUT" });
  const { queues } = (await (await fetch(boardApi())).json()) as { queues: { name: string; isPaused: boolean; readOnlyMode: boolean }[] };
  expect(queues.map(({ name, isPaused, readOnlyMode }) => ({ name, isPaused, readOnlyMode }))).toEqual([
    { name: "student", isPaused: false, readOnlyMode: true },
    { name: "talker", isPaused: false, readOnlyMode: true },
  ]);
});
