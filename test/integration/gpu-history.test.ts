import { once } from "node:events";
import http from "node:http";
import { createParser } from "eventsource-parser";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { createLivePage } from "../../dashboards/live/page.ts";
import { addGpuSample, type KeptSample, readGpuSamples } from "../../queues/gpu-samples.ts";
import { keys } from "../../queues/names.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";
import { expectProblem } from "../problem-document.ts";

let system: GpuSystem;
let api: RunningApi;

beforeAll(async () => {
  system = await startGpuSystem();
  api = await startApi({
    config: system.configured({ PORT: "0" }),
    redisUrl: system.redis.url,
    log: pino({ level: "silent" }),
    createPage: createLivePage,
  });
});
afterAll(async () => {
  await api.close();
  await system.stop();
  expect(system.gpu.violations).toEqual([]);
});

interface History {
  now: number;
  samples: KeptSample[];
  events: { id: string; kind: string; ts: number; gpuId: string }[];
}
const history = async (query = ""): Promise<History> => (await (await fetch(`${api.url}/gpu/history${query}`)).json()) as History;
const total = (samples: KeptSample[], count: (sample: KeptSample) => number) => samples.reduce((sum, each) => sum + count(each), 0);

test("who looks late sees what every second was like, and what happened; who listens gets each later sample once", async () => {
  const worker = await system.startWorker();
  for (const model of ["student", "talker"] as const) await system.end(await system.send({ model, priority: "interactive" }));
  await expect
    .poll(async () => total((await history()).samples, ({ ended }) => ended.student.completed + ended.talker.completed), {
      timeout: 10_000,
    })
    .toBe(2);
  const { now, samples, events } = await history();
  expect(Math.abs(now - Date.now())).toBeLessThan(5000);
  expect(samples.at(-1)).toMatchObject({ serverModel: "talker", serverState: "ready", depths: { student: 0, talker: 0 } });
  expect(total(samples, ({ waits }) => Object.values(waits.interactive).reduce((sum, jobs) => sum + jobs, 0))).toBe(2);
  expect(events.filter(({ kind }) => kind === "swap")).toMatchObject([{ to: "student" }, { from: "student", to: "talker" }]);

  const told: KeptSample[] = [];
  const request = http.get(`${api.url}/gpu/events?samples=true`, { agent: false });
  const [response] = (await once(request, "response")) as [http.IncomingMessage];
  const parser = createParser({ onEvent: ({ event, data }) => void (event === "sample" && told.push(JSON.parse(data))) });
  response.setEncoding("utf8").on("data", (text: string) => parser.feed(text));
  await once(response, "data");
  const known = (await history()).samples;
  await expect.poll(() => told.length, { timeout: 10_000 }).toBeGreaterThanOrEqual(2);
  response.destroy();
  const all = (await history()).samples.map(({ id }) => id);
  const together = [...new Set([...known, ...told].map(({ id }) => id))];
  expect(together).toEqual(all.slice(0, together.length));
  expect(new Set(told.map(({ id }) => id)).size).toBe(told.length);
  await worker.stop(0);
});

test("minutes and samples are checked", async () => {
  for (const query of ["minutes=0", "minutes=16", "minutes=x", "minutes=1.5", "minutes="]) {
    await expectProblem(await fetch(`${api.url}/gpu/history?${query}`), 400, "invalid-request");
  }
  await expectProblem(await fetch(`${api.url}/gpu/events?samples=yes`), 400, "invalid-request");
  expect((await history("?minutes=1")).now).toBeGreaterThan(0);
});

test("samples are kept for a quarter of an hour; one of another form is skipped", async () => {
  const { redis } = system.queues;
  const [sample] = (await history()).samples;
  await redis.del(keys.gpuSamples);
  const old = Date.now() - 16 * 60_000;
  for (let i = 0; i < 300; i++) await redis.xadd(keys.gpuSamples, `${old + i}-0`, "sample", JSON.stringify({ ...sample, ts: old + i }));
  await redis.xadd(keys.gpuSamples, "*", "sample-of-another-version", "{}");
  await addGpuSample(redis, { ...sample, gpuId: "kept", more: "is dropped" });
  await expect(addGpuSample(redis, { ts: 1 })).rejects.toThrow();
  expect(await redis.xlen(keys.gpuSamples)).toBeLessThan(300);
  const kept = (await readGpuSamples(redis, { sinceMs: Date.now() - 60_000 })).filter(({ gpuId }) => gpuId === "kept");
  expect(kept).toHaveLength(1);
  expect(kept[0]).not.toHaveProperty("more");
});

test.each([
  [undefined, "application/json"],
  ["*/*", "application/json"],
  ["application/json", "application/json"],
  ["application/json, text/html;q=0.9", "application/json"],
  ["text/html", "text/html"],
  ["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"],
])("/ for Accept %s is %s", async (accept, type) => {
  const response = await fetch(`${api.url}/`, { headers: accept === undefined ? {} : { accept } });
  expect(response.headers.get("content-type")).toContain(type);
  expect(response.headers.get("vary")).toContain("Accept");
});

test("the page's files: compressed where wanted, unchanged ones are not sent again, anything else is not found", async () => {
  const page = await (await fetch(`${api.url}/`, { headers: { accept: "text/html" } })).text();
  const names = new Set([...page.matchAll(/(?:src|href)="(\/live\/[^"]+)"/g)].map(([, name]) => name!));
  for (const name of names) {
    const text = await (await fetch(api.url + name)).text();
    for (const [, imported] of text.matchAll(/from "\.(\/[\w-]+\.js)"/g)) names.add(`/live${imported}`);
  }
  expect(names.size).toBeGreaterThan(10);
  for (const name of [...names, "/live/katex.js", "/live/eventsource-parser.js"]) {
    const response = await fetch(api.url + name, { headers: { "accept-encoding": "gzip" } });
    expect([name, response.status, response.headers.get("content-encoding")]).toEqual([name, 200, "gzip"]);
    const etag = response.headers.get("etag")!;
    // `fetch` would ask for a reload.
    const [unchanged] = await once(http.get(api.url + name, { headers: { "if-none-match": etag } }), "response");
    expect(unchanged.resume().statusCode).toBe(304);
  }
  for (const name of ["tsconfig.json", "__proto__", "constructor", "..%2Fpage.ts", "%2e%2e%2fassets.ts", "nothing"]) {
    await expectProblem(await fetch(`${api.url}/live/${name}`), 404, "not-found");
  }
});
