import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { submit } from "../../api/submission.ts";
import { readConfig } from "../../queues/config.ts";
import { solveRequestSchema } from "../../queues/contracts.ts";
import { loadJobView } from "../../queues/job-view.ts";
import { openQueues, type Queues } from "../../queues/open-queues.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

const VOTES = 8;
const SAMPLES = 6;

let redis: RedisFixture;
let queues: Queues;

beforeAll(async () => {
  redis = await startRedisFixture();
  queues = openQueues(redis.connect(), () => {});
});

afterAll(async () => {
  await queues.close();
  await redis.stop();
});

function startWorker(): ChildProcess {
  return spawn(process.execPath, [path.join(import.meta.dirname, "../../mathllm.ts"), "worker"], {
    env: {
      ...process.env,
      REDIS_URL: redis.url,
      DATA_DIR: redis.dataDir,
      TELEMETRY_LOG: path.join(redis.dataDir, "telemetry.jsonl"),
      STUDENT_PORT: "0",
      TALKER_PORT: "0",
      LOG_LEVEL: "error",
    },
    stdio: ["ignore", "inherit", "inherit"],
  });
}

/** How often each job of both queues ended, from BullMQ's own events. */
async function ends(): Promise<Map<string, string[]>> {
  const ended = new Map<string, string[]>();
  for (const role of ["student", "talker"]) {
    for (const [, fields] of await queues.redis.xrange(`{mathllm}:${role}:events`, "-", "+")) {
      if (fields[1] === "completed" || fields[1] === "failed") ended.set(fields[3]!, [...(ended.get(fields[3]!) ?? []), fields[1]]);
    }
  }
  return ended;
}

test("kill -9 of the worker in the middle of votes: each vote and each sample ends once, and nothing is lost", {
  timeout: 120_000,
}, async () => {
  const config = readConfig({ DATA_DIR: redis.dataDir });
  const rows = readFileSync(path.join(import.meta.dirname, "../../models/held-out.jsonl"), "utf8").split("\n");
  const problems = rows.slice(0, VOTES).map((row) => JSON.parse(row) as { problem: string; answer: string });
  const jobIds = await Promise.all(
    problems.map(async ({ problem, answer }, i) => {
      const request = { problem, expected: answer, samples: SAMPLES, sampling: { temperature: 0.8, seed: i }, explain: i % 4 === 0 };
      return (await submit(queues, config, solveRequestSchema.parse(request))).jobId;
    }),
  );
  const completed = async () => (await queues.student.getJobCountByTypes("completed", "failed")) as number;
  const first = startWorker();
  await expect.poll(completed, { timeout: 30_000, interval: 5 }).toBeGreaterThan(8);
  expect(await queues.student.getJobCountByTypes("active")).toBeGreaterThan(0);
  first.kill("SIGKILL");
  await once(first, "exit");
  const last = startWorker();
  try {
    for (const jobId of jobIds) {
      await expect.poll(async () => (await loadJobView(queues, jobId))?.status, { timeout: 60_000 }).toBe("completed");
    }
    const views = await Promise.all(jobIds.map((jobId) => loadJobView(queues, jobId)));
    for (const view of views) {
      const { asked, finished, cancelled } = view!.result!.samples!;
      expect([asked, finished + cancelled]).toEqual([SAMPLES, SAMPLES]);
      expect(view!.result!.votes!.reduce((sum, { count }) => sum + count, 0)).toBeLessThanOrEqual(finished);
      expect(view!.result!.grade).not.toBeNull();
    }
    // By far most of what the Student draws on problems of its kind is right.
    expect(views.filter((view) => view!.result!.grade!.verdict === "equal").length).toBeGreaterThan(VOTES / 2);
    const ended = await ends();
    const explained = Math.ceil(VOTES / 4);
    expect(ended.size).toBe(VOTES * (SAMPLES + 1) + explained);
    expect([...ended.values()].every((outcomes) => outcomes.length === 1)).toBe(true);
    expect(await queues.student.getJobCountByTypes("wait", "prioritized", "active", "delayed", "waiting-children")).toBe(0);
    last.kill("SIGTERM");
    await once(last, "exit");
  } finally {
    last.kill("SIGKILL");
  }
});
