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
import { isAlive, type ProcessIdentity, startTicksOf } from "../../queues/process-identity.ts";
import { type RedisFixture, startRedisFixture } from "../redis-fixture.ts";

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

function modelServersOf(worker: ChildProcess): ProcessIdentity[] {
  const children = readFileSync(`/proc/${worker.pid}/task/${worker.pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number);
  return children.map((pid) => ({ pid, startTicks: startTicksOf(pid) }));
}

test("kill -9 of the worker with 50 jobs queued: after a restart every one ends once, and no model server is left", {
  timeout: 120_000,
}, async () => {
  const config = readConfig({ DATA_DIR: redis.dataDir });
  const rows = readFileSync(path.join(import.meta.dirname, "../../models/held-out.jsonl"), "utf8")
    .split("\n")
    .slice(0, 50);
  const ended = new Map<string, number>();
  const events = redis.connect();
  const jobIds = await Promise.all(
    rows.map(async (row, i) => {
      const request = solveRequestSchema.parse({ problem: JSON.parse(row).problem, explain: i % 5 === 0 });
      return (await submit(queues, config, request)).jobId;
    }),
  );
  const first = startWorker();
  await expect.poll(() => queues.student.getJobCountByTypes("completed"), { timeout: 30_000, interval: 10 }).toBeGreaterThan(3);
  const orphans = modelServersOf(first);
  const running = await queues.student.getJobCountByTypes("active");
  first.kill("SIGKILL");
  await once(first, "exit");
  expect(orphans.length).toBe(1);
  expect(running).toBeGreaterThan(0);

  const second = startWorker();
  try {
    for (const jobId of jobIds) {
      await expect.poll(async () => (await loadJobView(queues, jobId))?.status, { timeout: 60_000 }).toBe("completed");
    }
    expect(orphans.filter(isAlive)).toEqual([]);
    for (const role of ["student", "talker"]) {
      const entries = await events.xrange(`{mathllm}:${role}:events`, "-", "+");
      for (const [, fields] of entries) {
        if (fields[1] === "completed") ended.set(fields[3]!, (ended.get(fields[3]!) ?? 0) + 1);
      }
    }
    expect(ended.size).toBe(60);
    expect([...ended.values()].every((times) => times === 1)).toBe(true);
    const left = modelServersOf(second);
    second.kill("SIGTERM");
    await once(second, "exit");
    expect(left.filter(isAlive)).toEqual([]);
  } finally {
    second.kill("SIGKILL");
  }
});
