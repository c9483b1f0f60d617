import { describe, expect, test } from "vitest";
import { gpuReport, parseRateLimit, queueReport } from "../../producers/operator.ts";
import type { WorkerStatus } from "../../queues/contracts.ts";
import { type GpuView, gpuViewSchema, type QueueView } from "../../queues/gpu-view.ts";
import { rateLimitSchema } from "../../queues/rate-limits.ts";
import { modelStatus, workerStatus } from "../worker-status.ts";

describe("parseRateLimit", () => {
  test.each([
    ["10/s", { max: 10, durationMs: 1000 }],
    ["100/min", { max: 100, durationMs: 60_000 }],
    ["5/h", { max: 5, durationMs: 3_600_000 }],
    ["1/s", { max: 1, durationMs: 1000 }],
    ["007/s", { max: 7, durationMs: 1000 }],
    ["1000000/h", { max: 1_000_000, durationMs: 3_600_000 }],
  ])("%j is a limit that the API takes", (text, expected) => {
    expect(parseRateLimit(text)).toEqual(expected);
    expect(rateLimitSchema.safeParse(expected).success).toBe(true);
  });

  test("off lifts it", () => {
    expect(parseRateLimit("off")).toBeNull();
  });

  test.each(
    [
      "",
      "0/s",
      "00/min",
      "-1/s",
      "+1/s",
      "1.5/s",
      "1e3/s",
      "0x10/s",
      "10",
      "10/",
      "/s",
      "10/m",
      "10/d",
      "10/S",
      "10 /s",
      " 10/s",
      "10/s ",
    ].concat(
      ["10/s\n", "10/s/s", "10/s,20/s", "OFF", "none", "null", "Infinity/s", "NaN/s", "٣/s", "10/constructor", "10/__proto__"],
      ["1000001/h", "9999999/s", "10000000/s", "99999999999999999999/s"],
    ),
  )("%j is none", (text) => {
    expect(parseRateLimit(text)).toBeUndefined();
  });
});

const queueView: QueueView = {
  depth: 0,
  waiting: { interactive: 0, normal: 0, batch: 0 },
  maxDepths: { interactive: 1, normal: 2, batch: 3 },
  active: 0,
  delayed: 0,
  oldestAgeMs: { interactive: null, normal: null, batch: null },
  estimatedWaitMs: { interactive: null, normal: null, batch: null },
  rateLimit: null,
  limitedMs: 0,
  paused: false,
};

const gpuOf = (over: Partial<WorkerStatus> = {}, standbys: GpuView["gpus"][number]["standbys"] = []): GpuView["gpus"][number] => {
  const {
    beatAt: _,
    host,
    ...worker
  } = workerStatus({ gpuId: "GPU-7", pid: 4711, fence: 12, residentSince: Date.now() - 90_000, ...over });
  return { ...worker, lease: { fence: worker.fence, workerId: worker.workerId, host, pid: worker.pid }, standbys };
};

const viewOf = (...gpus: GpuView["gpus"]): GpuView =>
  gpuViewSchema.parse({ residentModel: gpus[0]?.residentModel ?? null, gpus, queues: { student: queueView, talker: queueView } });

/** The cells of each row of a drawn table. */
const cells = (text: string) =>
  text
    .split("\n")
    .filter((line) => line.startsWith("│"))
    .map((line) =>
      line
        .split("│")
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );

const expectReadable = (text: string) => {
  expect(text).not.toMatch(/undefined|null|NaN|\[object|Infinity/);
  expect(text.endsWith("\n")).toBe(true);
};

describe("gpuReport", () => {
  test("no GPU: says so, and still shows the queues", () => {
    const text = gpuReport(viewOf());
    expect(text).toMatch(/^No GPU is held by a worker\.\n/);
    expect(cells(text)).toHaveLength(3);
    expectReadable(text);
  });

  test("a GPU that serves: model, since when, phase, jobs, worker, lease, policy, server, decision", () => {
    const text = gpuReport(
      viewOf(
        gpuOf(
          {
            residentModel: "talker",
            running: 3,
            swaps: 5,
            policy: "exhaustive",
            server: { state: "ready", pid: 4712, since: 1, lastError: null },
            lastDecision: { at: 1, action: "swap", reason: "the student's queue is empty and the talker has work" },
          },
          [{ workerId: "s", host: "h", pid: 2, waitsFor: "another worker holds the GPU's lease" }],
        ),
      ),
    );
    for (const told of [
      "GPU GPU-7: talker resident for 90.0 s, serving, 3 running, 5 swaps",
      "worker 4711, lease 12, policy exhaustive, 1 standing by",
      "model server ready, process 4712",
      "last decision: swap, the student's queue is empty and the talker has work",
    ])
      expect(text).toContain(told);
    expectReadable(text);
  });

  test("a GPU that is empty and drained: no model, and why nothing is taken", () => {
    const text = gpuReport(
      viewOf(
        gpuOf({
          phase: "idle",
          residentModel: null,
          residentSince: null,
          server: { state: "stopped", pid: null, since: 1, lastError: null },
          drained: true,
          waitsFor: "drained by an operator; resume it to go on",
          running: 0,
        }),
      ),
    );
    expect(text).toContain("no model resident, idle");
    expect(text).toContain("waits: drained by an operator; resume it to go on");
    expect(text).toContain("model server stopped\n");
    expect(text).not.toContain("process");
    expectReadable(text);
  });

  test("what the guardrails did: the circuit with its reason, the steps down with what is left, the server's last error", () => {
    const failing = { ...modelStatus, circuit: { state: "open" as const, failures: 3, until: 9 }, error: "The file is not a GGUF file." };
    const proving = { ...modelStatus, circuit: { state: "half-open" as const, failures: 3, until: null } };
    const smaller = {
      ...modelStatus,
      capacity: { maxNumSeqs: 1, maxModelLen: 2048, kvCacheBits: 8 as const },
      ladder: [
        { at: 1, step: "half the sequences", reason: "CUDA error: out of memory" },
        { at: 2, step: "8-bit cache", reason: "CUDA error: out of memory" },
      ],
    };
    const broken = gpuReport(
      viewOf(
        gpuOf({
          server: { state: "failed", pid: null, since: 1, lastError: "code 1, signal null" },
          models: { student: failing, talker: smaller },
          vram: { usedBytes: 6 * 2 ** 30, totalBytes: 8 * 2 ** 30 },
        }),
      ),
    );
    expect(broken).toContain("model server failed; last error: code 1, signal null");
    expect(broken).toContain("student: circuit open; The file is not a GGUF file.");
    expect(broken).toMatch(/talker: runs with less .*"maxNumSeqs":1.*after half the sequences, 8-bit cache/);
    expect(broken).toContain("VRAM 6.0 of 8.0 GiB");
    const text = gpuReport(viewOf(gpuOf({ models: { student: proving, talker: modelStatus } })));
    expect(text).toContain("student: circuit half-open; waiting for a job to prove it");
    expect(text).not.toContain("talker:");
    expectReadable(text);
  });

  test("several GPUs: each with its own block, the queues once", () => {
    const text = gpuReport(viewOf(gpuOf({ gpuId: "one", workerId: "1" }), gpuOf({ gpuId: "two", workerId: "2", residentModel: "talker" })));
    expect(text).toMatch(/^GPU one: student[\s\S]*\nGPU two: talker/m);
    expect(cells(text)).toHaveLength(3);
    expectReadable(text);
  });

  test("a clock that is behind the worker's gives no negative time", () => {
    const text = gpuReport(viewOf(gpuOf({ residentSince: Date.now() + 60_000 })));
    expect(text).toContain("student resident for 0.0 s");
  });
});

describe("queueReport", () => {
  test("waiting jobs and the wait of each class, running jobs, and the limit of each queue", () => {
    const text = queueReport({
      student: {
        ...queueView,
        depth: 12,
        waiting: { interactive: 1, normal: 4, batch: 7 },
        active: 2,
        estimatedWaitMs: { interactive: 0, normal: 1500, batch: 3_600_000 },
        rateLimit: { max: 100, durationMs: 60_000 },
      },
      talker: queueView,
    });
    const [head, student, talker] = cells(text);
    expect(head).toEqual(["queue", ...["interactive", "normal", "batch"].map((name) => `${name} (would wait)`), "active", "rate limit"]);
    expect(student).toEqual(["student", "1 (0.0 s)", "4 (1.5 s)", "7 (3600.0 s)", "2", "100 per 60.0 s"]);
    expect(talker).toEqual(["talker", "0 (–)", "0 (–)", "0 (–)", "0", "off"]);
    expectReadable(text);
  });

  test("the shortest and the longest limit can be told from none", () => {
    const limited = (max: number, durationMs: number) =>
      cells(queueReport({ student: { ...queueView, rateLimit: { max, durationMs } }, talker: queueView }))[1]?.at(-1);
    expect(limited(1, 1)).toBe("1 per 1 ms");
    expect(limited(1_000_000, 86_400_000)).toBe("1000000 per 86400.0 s");
  });
});
