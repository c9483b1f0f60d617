import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import Table from "cli-table3";
import { readConfig } from "../../queues/config.ts";
import { JOB_DATA_VERSION } from "../../queues/contracts.ts";
import { findFreePort } from "../../queues/free-port.ts";
import { newJobId } from "../../queues/names.ts";
import { openQueues } from "../../queues/open-queues.ts";
import { storeJob } from "../../queues/store-job.ts";
import { EventStream } from "../event-stream.ts";
import { startRedisFixture } from "../redis-fixture.ts";
import { ScriptedWorkers } from "../scripted-workers.ts";

/**
 * Many listeners of one API process: npm run bench:listeners. 500 of them on 50 jobs that stream 25 chunks a second each and one more of a
 * megabyte a second, to which somebody listens who reads, and somebody who never does. Loopback, a stand-in for the models, about 40 s.
 */
const JOBS = 50;
const LISTENERS = 500;
const CHUNKS = 500;
const CHUNK_EVERY_MS = 40;
/** The API's heap: it must do with it. */
const HEAP_MIB = 128;
const BIG_CHUNK = "x".repeat(100_000);
const BIG_CHUNKS = 100;
const BIG_EVERY_MS = 100;

const redis = await startRedisFixture();
const port = await findFreePort();
const url = `http://127.0.0.1:${port}`;
const api = spawn(process.execPath, [`--max-old-space-size=${HEAP_MIB}`, path.join(import.meta.dirname, "../../mathllm.ts"), "api"], {
  env: { ...process.env, REDIS_URL: redis.url, PORT: String(port), DATA_DIR: redis.dataDir, LOG_LEVEL: "warn" },
  stdio: ["ignore", "ignore", "inherit"],
});
process.once("exit", () => api.kill("SIGKILL"));
const isUp = () =>
  fetch(`${url}/healthz`).then(
    (response) => response.ok,
    () => false,
  );
while (!(await isUp())) {
  if (api.exitCode !== null) throw new Error("the API did not start");
  await delay(50);
}

const status = async (field: string) =>
  Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(await readFile(`/proc/${api.pid}/status`, "utf8"))?.[1]) * 1024;
const cpuSeconds = async () => {
  const fields = (await readFile(`/proc/${api.pid}/stat`, "utf8")).split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
};

const queues = openQueues(redis.connect(), () => {});
const config = readConfig({ DATA_DIR: redis.dataDir });
const workers = new ScriptedWorkers(redis);
const accepted = async () => {
  const jobId = newJobId("solve");
  await storeJob(queues, config, jobId, {
    version: JOB_DATA_VERSION,
    kind: "solve",
    problem: "1 + 0",
    sampling: { temperature: 0 },
    priority: "normal",
    acceptedAt: Date.now(),
  });
  return jobId;
};
const listen = (jobId: string) => EventStream.open(`${url}/jobs/${jobId}/events`);
const mebibytes = (bytes: number) => `${(bytes / 1_048_576).toFixed(0)} MiB`;

const jobIds = await Promise.all(Array.from({ length: JOBS }, accepted));
const bigJobId = await accepted();
const stages = await Promise.all(jobIds.map((jobId) => workers.picked(jobId)));
const big = await workers.picked(bigJobId);
const rssBefore = await status("VmRSS");
const listeners: EventStream[] = [];
for (let i = 0; i < LISTENERS; i += 50) {
  listeners.push(...(await Promise.all(Array.from({ length: 50 }, (_, j) => listen(jobIds[(i + j) % JOBS]!)))));
}
const delaysMs: number[] = [];
for (const each of listeners) {
  each.response.on("data", (text: string) => {
    const now = Date.now();
    for (const [, sentAt] of text.matchAll(/"text":"\d+ (\d+) /g)) delaysMs.push(now - Number(sentAt));
  });
}
const reader = await listen(bigJobId);
const deaf = net.connect(port, "127.0.0.1");
deaf.on("error", () => {});
deaf.pause();
await once(deaf, "connect");
const deafPort = deaf.localPort!;
deaf.write(`GET /jobs/${bigJobId}/events HTTP/1.1\r\nHost: localhost\r\n\r\n`);
const rssListening = await status("VmRSS");

/** Whether the API's side of that connection is still there. */
const isHeld = async () => {
  const hex = (n: number) => n.toString(16).toUpperCase().padStart(4, "0");
  return new RegExp(`0100007F:${hex(port)} 0100007F:${hex(deafPort)} 01 `).test(await readFile("/proc/net/tcp", "utf8"));
};
const startedAt = performance.now();
const cpuBefore = await cpuSeconds();
let rssPeak = rssListening;
let cutAfterMs: number | null = null;
let streaming = true;
const watching = (async () => {
  while (streaming || cutAfterMs === null) {
    rssPeak = Math.max(rssPeak, await status("VmRSS"));
    if (cutAfterMs === null && !(await isHeld())) cutAfterMs = performance.now() - startedAt;
    await delay(100);
  }
})();
const writing = stages.map(async (stage, job) => {
  for (let i = 0; i < CHUNKS; i++) {
    stage.write(`${i} ${Date.now()} `);
    await delay(Math.max(startedAt + (i + 1 + job / JOBS) * CHUNK_EVERY_MS - performance.now(), 0));
  }
  stage.complete();
});
const writingBig = (async () => {
  for (let i = 0; i < BIG_CHUNKS; i++) {
    big.write(BIG_CHUNK);
    await delay(Math.max(startedAt + (i + 1) * BIG_EVERY_MS - performance.now(), 0));
  }
  big.complete();
})();
await Promise.all([...writing, writingBig, ...listeners.map(({ ended }) => ended), reader.ended]);
const tookMs = performance.now() - startedAt;
const cpu = (await cpuSeconds()) - cpuBefore;
streaming = false;
await watching;

let [lost, doubled, unfinished] = [0, 0, 0];
for (const each of listeners) {
  const ids = each.events.flatMap(({ id, event }) => (event === "token" ? [id] : []));
  lost += CHUNKS - new Set(ids).size;
  doubled += ids.length - new Set(ids).size;
  if (each.of("result").length !== 1 || each.of("result")[0].result.solution !== each.text("student")) unfinished++;
}
const sorted = delaysMs.toSorted((a, b) => a - b);
const rank = (p: number) => `${sorted[Math.ceil(p * sorted.length) - 1]} ms`;
const table = new Table({ style: { head: [], border: [] } });
table.push(
  ["listeners, jobs, chunks of each", `${LISTENERS}, ${JOBS}, ${CHUNKS}`],
  ["token events heard, lost, doubled", `${listeners.length * CHUNKS - lost + doubled}, ${lost}, ${doubled}`],
  ["listeners without exactly one result equal to their text", unfinished],
  ["events a second", ((LISTENERS * CHUNKS * 1000) / tookMs).toFixed(0)],
  ["written to heard: p50, p95, p99, longest", `${rank(0.5)}, ${rank(0.95)}, ${rank(0.99)}, ${rank(1)}`],
  [
    `API memory (RSS; its heap at most ${HEAP_MIB} MiB): idle, all listening, peak`,
    [rssBefore, rssListening, rssPeak].map(mebibytes).join(", "),
  ],
  ["API processor time", `${((100_000 * cpu) / tookMs).toFixed(0)} % of a core`],
  ["the one that never reads was cut off after", `${((cutAfterMs ?? Number.NaN) / 1000).toFixed(1)} s`],
  ["the reader beside it heard", `${mebibytes(reader.text("student").length)} of ${mebibytes(BIG_CHUNKS * BIG_CHUNK.length)}`],
);
console.log(table.toString());
deaf.destroy();
await workers.close();
await queues.close();
api.kill("SIGTERM");
await once(api, "exit");
await redis.stop();
process.exit(lost + doubled + unfinished === 0 ? 0 : 1);
