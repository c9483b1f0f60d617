import { readFileSync } from "node:fs";
import path from "node:path";
import { pino } from "pino";
import { expect, test } from "vitest";
import { startApi } from "../../api/main.ts";
import { ApiClient } from "../../producers/submit.ts";
import { readConfig } from "../../queues/config.ts";
import { engineFactory } from "../../workers/engines/engines.ts";
import { startGpuWorker } from "../../workers/main.ts";
import { startRedisFixture } from "../redis-fixture.ts";

test("the whole product: the Student on vLLM and the Talker on llama-server take turns", async () => {
  const models = path.join(import.meta.dirname, "../../models");
  const redis = await startRedisFixture();
  const log = pino({ level: process.env.TEST_LOG ?? "silent" });
  const config = readConfig({
    ...process.env,
    DATA_DIR: redis.dataDir,
    TELEMETRY_LOG: path.join(redis.dataDir, "telemetry.jsonl"),
    PORT: "0",
    STUDENT_MODE: "vllm",
    STUDENT_MODEL: path.join(models, "hf/student"),
    STUDENT_MAX_MODEL_LEN: "512",
    STUDENT_PORT: "0",
    TALKER_MODE: "llamacpp",
    TALKER_PORT: "0",
    TALKER_NGL: "0",
    TALKER_THREADS: "1",
    TALKER_MAX_MODEL_LEN: "512",
  });
  const api = await startApi({ config, redisUrl: redis.url, log });
  const worker = await startGpuWorker({ config, redisUrl: redis.url, createEngine: engineFactory(config, log), log, onFatal: () => {} });
  try {
    const client = new ApiClient(api.url);
    const rows = readFileSync(path.join(models, "held-out.jsonl"), "utf8")
      .split("\n", 12)
      .map((line) => JSON.parse(line) as { problem: string; answer: string });
    const views = await Promise.all(
      rows.map(async ({ problem }) =>
        client.finished((await client.submit({ problem, explain: true })).jobId, AbortSignal.timeout(200_000)),
      ),
    );
    expect(views.map(({ status }) => status)).toEqual(rows.map(() => "completed"));
    expect(views.filter((view, i) => view.result?.answer === rows[i]!.answer).length).toBeGreaterThanOrEqual(10);
    expect(views.every((view) => (view.result?.explanation ?? "").length > 20)).toBe(true);
    const lines = readFileSync(config.telemetryLog, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    const swaps = lines.filter((line) => line.kind === "swap");
    expect(swaps.slice(0, 2).map(({ from, to }) => [from, to])).toEqual([
      [null, "student"],
      ["student", "talker"],
    ]);
    console.log(
      swaps
        .map(({ to, totalMs, overheadMs }) => `${to}: swap ${Math.round(totalMs)} ms, of which ours ${Math.round(overheadMs)} ms`)
        .join("\n"),
    );
  } finally {
    await worker.stop(5000);
    await api.close();
    await redis.stop();
  }
});
