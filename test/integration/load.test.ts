import { spawn } from "node:child_process";
import { once } from "node:events";
import { access, appendFile, mkdtemp, readFile, rm } from "node:fs/promises";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import type { LoadOptions } from "../../producers/load/load-options.ts";
import { parsePlan, runLoad } from "../../producers/load/load-run.ts";
import { type LoadRecord, loadRecordSchema } from "../../producers/load/record.ts";
import { chatMessages, requestSource } from "../../producers/load/request-plan.ts";
import { loadSummarySchema } from "../../producers/load/summary.ts";
import { solvePrompt } from "../../workers/solve/prompts.ts";
import { startTimedChat, type TimedChat } from "../fakes/timed-chat-server.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-load-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

let runs = 0;
const newFolder = () => path.join(folder, `run-${runs++}`);
const recordsIn = async (dir: string): Promise<LoadRecord[]> =>
  (await readFile(path.join(dir, "requests.jsonl"), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => loadRecordSchema.parse(JSON.parse(line)));
const indexesOf = (records: LoadRecord[]) => records.map(({ index }) => index).sort((a, b) => a - b);
const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);

async function againstChat<T>(chat: TimedChat, body: (server: Awaited<ReturnType<typeof startTimedChat>>) => Promise<T>): Promise<T> {
  const server = await startTimedChat(chat);
  try {
    return await body(server);
  } finally {
    await server.stop();
  }
}
const plan = (over: Partial<LoadOptions> & { url: string }): LoadOptions => ({
  target: "openai",
  arrivals: { pattern: "constant", ratePerS: 50 },
  requests: 20,
  outDir: newFolder(),
  ...over,
});

describe("an OpenAI-compatible server", () => {
  test("every request has its record, the summary its form, and the streamed times are what the server did", async () => {
    await againstChat({ firstMs: 30, pieces: 5, gapMs: 10 }, async ({ url, bodies, prompts }) => {
      const options = plan({ url, warmUpS: 0.1, maxTokens: 64, temperature: 0.7, slo: "e2e-p95<60s,errors<1%" });
      const summary = await runLoad(options);
      expect(loadSummarySchema.parse(JSON.parse(await readFile(path.join(options.outDir!, "summary.json"), "utf8")))).toEqual(summary);
      const records = await recordsIn(options.outDir!);
      expect(indexesOf(records)).toEqual(upTo(20));
      expect(summary.total.byPhase).toEqual({ "warm-up": 5, steady: 15, "cool-down": 0 });
      expect(summary.requests).toMatchObject({ sent: 15, completed: 15 });
      expect(summary.slo?.met).toBe(true);
      for (const record of records) {
        expect(record).toMatchObject({ status: "completed", tokensIn: 10, tokensOut: 5, model: "timed", queueWaitMs: null });
        expect(record.itlMs).toHaveLength(4);
        expect(record.ttftMs).toBeGreaterThanOrEqual(29);
        expect(record.e2eMs).toBeGreaterThanOrEqual(69);
        expect(record.e2eMs).toBeCloseTo(record.finishedAt - record.scheduledAt, 6);
        expect(record.tpotMs).toBeCloseTo(record.itlMs!.reduce((sum, gap) => sum + gap, 0) / 4, 2);
      }
      expect(bodies[0]).toMatchObject({ model: "timed", max_tokens: 64, temperature: 0.7 });
      expect(new Set(bodies.map(({ seed }) => seed)).size).toBe(20);
      expect(new Set(prompts).size).toBe(20);
    });
  });

  test("an answer that comes in one piece tells no time per token", async () => {
    await againstChat({ firstMs: 1, completionTokens: 20 }, async ({ url }) => {
      const { latencies, requests } = await runLoad(plan({ url, requests: 3, outDir: null }));
      expect(requests.completed).toBe(3);
      expect(latencies).toMatchObject({ tpotMs: null, itlMs: null, ttftMs: { count: 3 } });
    });
  });

  test("the Student is asked in the product's own words", () => {
    expect(chatMessages({ kind: "student", problem: "p" })).toEqual(solvePrompt("p"));
  });

  test("errors have their class, count against the SLO, and cut answers are told", async () => {
    const refuse = (n: number) => [429, 500, undefined][n % 3];
    await againstChat({ firstMs: 1, refuse, finishReason: "length" }, async ({ url }) => {
      const summary = await runLoad(plan({ url, requests: 30, slo: "errors<1%,e2e-p50<60s" }));
      expect(summary.requests).toMatchObject({ sent: 30, completed: 10, failed: 10, refused: 10, truncated: 10 });
      expect(summary.errors.map(({ errorClass, count }) => [errorClass, count]).sort()).toEqual([
        ["http-429", 10],
        ["http-500", 10],
      ]);
      expect(summary.slo?.terms.map(({ met }) => met)).toEqual([false, false]);
    });
  });

  test("a server that breaks off, or never answers, is a failed request and not the end of the run", async () => {
    const server = http.createServer((request, response) => {
      if (request.url === "/v1/models") response.end('{"data":[{"id":"m"}]}');
      else if (request.headers["content-length"] !== undefined && broken++ % 2 === 0)
        response.destroy(response.flushHeaders() as undefined);
    });
    let broken = 0;
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const summary = await runLoad(plan({ url, requests: 6, timeoutS: 0.3 }));
      expect(Object.fromEntries(summary.errors.map(({ errorClass, count }) => [errorClass, count]))).toEqual({
        "broken-stream": 3,
        timeout: 3,
      });
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  test("a closed loop keeps so many in flight and no more", async () => {
    let most = 0;
    await againstChat({ firstMs: 20, slots: 3 }, async ({ url }) => {
      const summary = await runLoad(plan({ url, arrivals: { pattern: "closed", concurrency: 3 }, requests: 30 }), {
        onTick: ({ inFlight }) => {
          most = Math.max(most, inFlight);
        },
      });
      expect(summary.requests.completed).toBe(30);
      expect(summary.validity).toMatchObject({ maxInFlight: 3, requestedRatePerS: null });
      expect(most).toBeLessThanOrEqual(3);
    });
  });

  test("prompts are filled up to the wanted number of tokens, as the server counts", async () => {
    await againstChat({ firstMs: 1, promptTokens: (prompt) => 7 + Math.round(prompt.length / 3) }, async ({ url }) => {
      const { tokens } = await runLoad(plan({ url, promptTokens: 300 }));
      expect(tokens.inMean! / 300).toBeCloseTo(1, 1);
    });
  });

  test("a starved generator is marked INVALID with its reason", async () => {
    await againstChat({ firstMs: 5 }, async ({ url }) => {
      const block = setInterval(() => {
        const end = performance.now() + 150;
        while (performance.now() < end);
      }, 200);
      try {
        const { validity } = await runLoad(plan({ url, arrivals: { pattern: "constant", ratePerS: 40 }, requests: 40 }));
        expect(validity.valid).toBe(false);
        expect(validity.reasons.join()).toMatch(/generator sent late.*event loop was blocked/);
      } finally {
        clearInterval(block);
      }
    });
  });

  test("more than may be in flight wait to be sent, and the run is INVALID", async () => {
    await againstChat({ firstMs: 60 }, async ({ url }) => {
      const { validity, requests } = await runLoad(plan({ url, requests: 20, maxInFlight: 2 }));
      expect(requests.completed).toBe(20);
      expect(validity.reasons.join()).toMatch(/2 requests were in flight, the most that the generator allows/);
      expect(validity.dispatchDelayMs.max).toBeGreaterThan(100);
    });
  });
});

describe("going on with a run", () => {
  test("killed with -9 in the middle: what was recorded is kept, the rest is sent, nothing is there twice", async () => {
    const outDir = newFolder();
    const file = path.join(outDir, "requests.jsonl");
    await againstChat({ firstMs: 30 }, async ({ url, prompts }) => {
      const args = ["load", "--target", "openai", "--url", url, "--rate", "40", "--arrivals", "constant", "--requests", "60", "-o", outDir];
      const main = path.join(import.meta.dirname, "../../mathllm.ts");
      const child = spawn(process.execPath, [main, ...args], { cwd: folder, stdio: "ignore" });
      const exited = once(child, "exit");
      await expect.poll(() => prompts.length, { timeout: 20_000, interval: 5 }).toBeGreaterThan(20);
      child.kill("SIGKILL");
      await exited;
    });
    const before = await readFile(file, "utf8");
    const kept = before.split("\n").length - 1;
    expect(kept > 0 && kept < 60).toBe(true);
    await appendFile(file, '{"index":59,"torn');

    await againstChat({ firstMs: 1 }, async ({ url, prompts }) => {
      const options = plan({ url, outDir, arrivals: { pattern: "constant", ratePerS: 40 }, requests: 60, resume: true });
      await expect(runLoad({ ...options, seed: 2 })).rejects.toThrow(/Expected the plan that .* has recorded; seed was 1 and came as 2/);
      const summary = await runLoad(options);
      expect(summary).toMatchObject({ sessions: 2, interrupted: false, requests: { sent: 60, completed: 60 } });
      expect(prompts.length).toBe(60 - kept);
      expect((await readFile(file, "utf8")).startsWith(before)).toBe(true);
      const records = (await recordsIn(outDir)).sort((a, b) => a.index - b.index);
      expect(records.map(({ index }) => index)).toEqual(upTo(60));
      // The same requests as a run that wasn't killed.
      const next = await requestSource(parsePlan(options), null);
      expect(records.map(({ problemId }) => problemId)).toEqual(upTo(60).map(() => next().problemId));
      expect(records.map(({ offsetMs }) => offsetMs)).toEqual(upTo(60).map((n) => (1000 * n) / 40));
      await expect(runLoad({ ...options, resume: false })).rejects.toThrow(/holds a run. Go on with it by --resume/);
    });
  });

  test("interrupted: the summary says so, what ran is cut off without a record, and the rest can be sent later", async () => {
    const outDir = newFolder();
    const stopping = new AbortController();
    const arrivals = { pattern: "closed", concurrency: 2 } as const;
    await againstChat({ firstMs: 20 }, async ({ url, prompts }) => {
      const options = plan({ url, outDir, arrivals, requests: 40 });
      const running = runLoad(options, { signal: stopping.signal });
      await expect.poll(() => prompts.length, { interval: 5 }).toBeGreaterThan(10);
      stopping.abort();
      const summary = await running;
      expect(summary).toMatchObject({ interrupted: true, total: { cutOff: 0 } });
      expect(summary.requests.sent).toBeLessThan(40);
      expect(await runLoad({ ...options, resume: true })).toMatchObject({ interrupted: false, sessions: 2, requests: { completed: 40 } });
      expect(indexesOf(await recordsIn(outDir))).toEqual(upTo(40));
      // A run that is complete has nothing left to send.
      const sent = prompts.length;
      expect((await runLoad({ ...options, resume: true })).requests.completed).toBe(40);
      expect(prompts.length).toBe(sent);
    });
  });

  test("a folder without a run, a server that isn't there and an unreadable trace are said at once", async () => {
    await expect(runLoad(plan({ url: "http://127.0.0.1:9", resume: true }))).rejects.toThrow(/Expected a recorded run in/);
    const outDir = newFolder();
    await expect(runLoad(plan({ url: "http://127.0.0.1:9", outDir }))).rejects.toThrow(
      /Expected an OpenAI-compatible server; .*ECONNREFUSED/,
    );
    await expect(access(outDir)).rejects.toThrow(/ENOENT/);
    await expect(runLoad(plan({ url: "http://127.0.0.1:9", target: "api" }))).rejects.toThrow(
      /Expected the API: .*ECONNREFUSED.*npm start/,
    );
    const arrivals = { pattern: "replay", file: "/nowhere.jsonl" } as const;
    await expect(runLoad(plan({ url: "http://127.0.0.1:9", arrivals }))).rejects.toThrow(/Expected a trace at/);
  });
});

describe("our API", () => {
  let system: GpuSystem;
  let api: RunningApi;
  beforeAll(async () => {
    system = await startGpuSystem();
    api = await startApi({ config: system.configured({ PORT: "0" }), redisUrl: system.redis.url, log: pino({ level: "silent" }) });
    system.gpu.serviceMs = () => 15;
    await system.startWorker();
  });
  afterAll(async () => {
    await api.close();
    await system.stop();
  });
  const toApi = (over: Partial<LoadOptions>) => plan({ url: api.url, target: "api", ...over });

  test("queue wait, swap wait and first token come from the job's time stamps, swaps and depths from the server, on one axis", async () => {
    const options = toApi({
      requests: 60,
      mix: { student: 0.5, explain: 0.25, talker: 0.25 },
      classes: { interactive: 0.5, batch: 0.5 },
    });
    const summary = await runLoad(options);
    expect(summary.requests).toMatchObject({ sent: 60, completed: 60 });
    expect(summary.groups.map(({ by, value }) => `${by} ${value}`)).toEqual([
      "kind explain",
      "kind student",
      "kind talker",
      "class batch",
      "class interactive",
    ]);
    const records = await recordsIn(options.outDir!);
    for (const record of records) {
      const { scheduledAt, acceptedAt, pickedAt, firstTokenAt, finishedAt, queueWaitMs, swapWaitMs } = record;
      // The server's stamps are whole milliseconds.
      const stamps = [scheduledAt - 1, acceptedAt!, pickedAt!, firstTokenAt!, finishedAt + 1];
      expect(stamps).toEqual([...stamps].sort((a, b) => a - b));
      expect(swapWaitMs).toBeLessThanOrEqual(queueWaitMs!);
      if (record.kind !== "explain") expect(queueWaitMs).toBe(pickedAt! - acceptedAt!);
    }
    expect(summary.server!.swaps).toBeGreaterThan(0);
    expect(records.some(({ swapWaitMs }) => swapWaitMs! > 0)).toBe(true);
    const server = (await readFile(path.join(options.outDir!, "server.jsonl"), "utf8"))
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(server.filter(({ kind }) => kind === "swap")).toHaveLength(summary.server!.swaps);
    expect(server.filter(({ kind }) => kind === "sample").length).toBe(summary.server!.samples);
    const began = Math.min(...records.map(({ scheduledAt }) => scheduledAt));
    expect(server.every(({ at }) => at > began - 2000 && at < Date.now() + 1000)).toBe(true);
    // The fake model says 1 to everything.
    const { graded, equal } = summary.accuracy!;
    expect([graded, equal]).toEqual([
      records.filter(({ kind }) => kind !== "talker").length,
      records.filter(({ verdict }) => verdict === "equal").length,
    ]);
  });

  test("answers from the cache are told apart, have no waits of their own, and are off unless asked for", async () => {
    const repeat = { requests: 40, distinct: 10, arrivals: { pattern: "constant", ratePerS: 100 } as const };
    expect((await runLoad(toApi(repeat))).requests).toMatchObject({ completed: 40, cached: 0, coalesced: 0 });
    const options = toApi({ ...repeat, cache: "auto" });
    const { requests, groups } = await runLoad(options);
    const computed = groups.find(({ value }) => value === "computed")!.requests.sent;
    expect(computed).toBeLessThan(20);
    expect([requests.completed, requests.cached + requests.coalesced]).toEqual([40, 40 - computed]);
    for (const record of await recordsIn(options.outDir!)) {
      if (record.cached || record.coalesced)
        expect(record).toMatchObject({ queueWaitMs: null, ttftMs: null, swapWaitMs: null, tpotMs: null });
    }
  });

  test("a request that takes too long is a timeout, and its job is cancelled", async () => {
    const startedAt = Date.now();
    system.gpu.serviceMs = () => 60_000;
    const options = toApi({ requests: 2, timeoutS: 0.3 });
    expect((await runLoad(options)).errors).toMatchObject([{ errorClass: "timeout", count: 2 }]);
    const jobs = (await system.queues.student.getJobs()).filter(({ timestamp }) => timestamp >= startedAt);
    const views = () => Promise.all(jobs.map(async ({ id }) => (await system.view(id!))?.status));
    await expect.poll(views, { timeout: 5000 }).toEqual(["cancelled", "cancelled"]);
    system.gpu.serviceMs = () => 15;
    expect((await runLoad(toApi({ requests: 3 }))).requests.completed).toBe(3);
  });
});
