import { execFile } from "node:child_process";
import path from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { sentEvents } from "../../producers/event-stream.ts";
import { ApiClient } from "../../producers/submit.ts";
import type { JobEvent } from "../../queues/job-events.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

let system: GpuSystem;
let running: RunningApi;
let api: ApiClient;

beforeAll(async () => {
  system = await startGpuSystem();
  running = await startApi({ config: system.configured({ PORT: "0" }), redisUrl: system.redis.url, log: pino({ level: "silent" }) });
  api = new ApiClient(running.url);
});
afterAll(async () => {
  await running?.close();
  await system?.stop();
});

test("problems are handed in, followed and cancelled in their types; errors carry the API's code", async () => {
  const waiting = await api.submit({ problem: "nobody is here yet" });
  expect((await api.cancel(waiting.jobId)).jobId).toBe(waiting.jobId);
  expect(await api.finished(waiting.jobId)).toMatchObject({ status: "cancelled", error: { code: "cancelled" } });
  await expect(api.job("solve-0")).rejects.toMatchObject({ code: "unknown-job" });
  await expect(api.submit({ problem: "" })).rejects.toMatchObject({ code: "invalid-request", extra: { errors: [{ path: "problem" }] } });

  await system.startWorker();
  expect((await api.solve({ problem: "What is 1 + 0?" })).status).toBe("completed");
  const { jobId } = await api.submit({ problem: "What is 2 + 0?", cache: "off", explain: true });
  const events: JobEvent[] = [];
  for await (const event of api.events(jobId)) events.push(event);
  const last = events.at(-1)!;
  if (last.event !== "result") throw new Error(`expected the result at the end, got ${last.event}`);
  const told = events.flatMap((event) => (event.event === "token" && event.data.model === "student" ? [event.data.text] : [])).join("");
  expect(told).toBe(last.data.result?.solution);
  await expect(async () => {
    for await (const _ of api.events("solve-0"));
  }).rejects.toMatchObject({ code: "unknown-job" });
});

test("the example runs as its comment says", async () => {
  await system.startWorker();
  const file = path.join(import.meta.dirname, "../../producers/example.ts");
  const env = { ...process.env, API_URL: running.url };
  const { code, stdout } = await new Promise<{ code: number | null; stdout: string }>((resolve) => {
    const child = execFile(process.execPath, [file, "What is 17 + 25?"], { env, timeout: 20_000 }, (_error, text) =>
      resolve({ code: child.exitCode, stdout: text }),
    );
  });
  expect(code).toBe(0);
  expect(stdout).toMatch(/\nAnswer: \S/);
});

test("a stream that breaks off goes on after its last event; one that never opens says why", async () => {
  const asked: Record<string, string>[] = [];
  const answers = ["id: 1\nevent: a\ndata: one\n\nevent: b\ndata: two\n\n", new Error("gone"), "id: 2\ndata: three\n\n", null];
  const open = async (headers: Record<string, string>) => {
    asked.push(headers);
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return new Response(answer, { status: answer === null ? 204 : 200 });
  };
  const events = [];
  for await (const event of sentEvents(open, { isFinal: () => false })) events.push(event);
  expect(events.map(({ event, data }) => `${event} ${data}`)).toEqual(["a one", "b two", "message three"]);
  expect(asked).toEqual([{}, { "last-event-id": "1" }, { "last-event-id": "1" }, { "last-event-id": "2" }]);
  const refused = sentEvents(() => Promise.reject(new Error("nobody there")), { isFinal: () => false });
  await expect(refused.next()).rejects.toThrow("nobody there");
});
