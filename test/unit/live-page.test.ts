import { describe, expect, test } from "vitest";
import { bytes, count, duration, percent } from "../../dashboards/live/browser/format.js";
import { GpuHistory, type Happening, waitQuantile } from "../../dashboards/live/browser/history.js";
import { splitMaths } from "../../dashboards/live/browser/maths-text.js";
import { segmentsOf, swapShare } from "../../dashboards/live/browser/segments.js";
import { headline, linesOf, notices, waitingReason } from "../../dashboards/live/browser/words.js";
import type { ServerState } from "../../queues/contracts.ts";
import type { KeptSample } from "../../queues/gpu-samples.ts";
import type { GpuView } from "../../queues/gpu-view.ts";
import type { Role } from "../../queues/names.ts";
import { JobTally } from "../../workers/gpu/job-tally.ts";
import type { StageJob } from "../../workers/gpu/manual-worker.ts";
import { modelStatus, workerStatus } from "../worker-status.ts";

const sample = (ts: number, serverModel: Role | null, serverState: ServerState, over: Partial<KeptSample> = {}): KeptSample => ({
  id: `${ts}-0`,
  ts,
  gpuId: "g",
  residentModel: serverState === "ready" ? serverModel : null,
  serverModel,
  serverState,
  coresidentModel: null,
  running: 0,
  depths: { student: 0, talker: 0 },
  vramUsedBytes: null,
  vramTotalBytes: null,
  gpuPercent: null,
  cpuPercent: null,
  memAvailableBytes: null,
  modelServerRssBytes: null,
  tokensPerSecond: null,
  ended: { student: { completed: 0, failed: 0 }, talker: { completed: 0, failed: 0 } },
  waits: { interactive: {}, normal: {}, batch: {} },
  ...over,
});
let happened = 0;
const happening = (kind: Happening["kind"], ts: number, fields: object = {}): Happening => ({
  id: `${ts}-${happened++}`,
  kind,
  ts,
  gpuId: "g",
  ...fields,
});
const server = (ts: number, state: ServerState, role: Role | null = null) => happening("server", ts, { state, role });

const queue = {
  depth: 0,
  waiting: { interactive: 0, normal: 0, batch: 0 },
  maxDepths: { interactive: 1, normal: 1, batch: 1 },
  active: 0,
  delayed: 0,
  oldestAgeMs: { interactive: null, normal: null, batch: null },
  estimatedWaitMs: { interactive: null, normal: null, batch: null },
  rateLimit: null,
  limitedMs: 0,
  paused: false,
};
const gpuOf = (over: Parameters<typeof workerStatus>[0] = {}): GpuView["gpus"][number] => ({
  ...workerStatus(over),
  lease: { fence: 1, workerId: "w", host: "h", pid: 1 },
  standbys: [],
});

describe("what a GPU did, as bars", () => {
  test("events tell the millisecond, samples that it lasted; a stopping server is still its model's", () => {
    const samples = [
      sample(1000, "student", "ready"),
      sample(2000, "student", "ready"),
      sample(3000, "talker", "warming"),
      sample(4000, "talker", "ready"),
    ];
    const events = [
      server(2100, "draining", "student"),
      server(2400, "stopping"),
      server(2500, "stopped"),
      server(2600, "starting", "talker"),
      server(2900, "warming", "talker"),
      server(3300, "ready", "talker"),
    ];
    expect(segmentsOf(samples, events)).toEqual([
      { role: "student", state: "ready", from: 1000, to: 2100 },
      { role: "student", state: "draining", from: 2100, to: 2400 },
      { role: "student", state: "stopping", from: 2400, to: 2500 },
      { role: "talker", state: "starting", from: 2600, to: 2900 },
      { role: "talker", state: "warming", from: 2900, to: 3300 },
      { role: "talker", state: "ready", from: 3300, to: 4000 },
    ]);
    expect(swapShare(segmentsOf(samples, events), 2000, 4000)).toBeCloseTo((300 + 100 + 300 + 400) / 2000);
  });

  test("the two models' bars never overlap, and end where the worker fell silent", () => {
    const samples = [
      sample(1000, "student", "ready"),
      sample(2000, "student", "ready"),
      sample(60_000, "student", "ready"),
      sample(61_000, "student", "ready"),
    ];
    expect(segmentsOf(samples, [])).toEqual([
      { role: "student", state: "ready", from: 1000, to: 2000 },
      { role: "student", state: "ready", from: 60_000, to: 61_000 },
    ]);
  });

  test("a Talker that stays up beside has bars of its own", () => {
    const beside = { coresidentModel: "talker" as const };
    const samples = [sample(1000, "student", "ready", beside), sample(2000, "student", "ready", beside)];
    expect(segmentsOf(samples, [server(900, "ready", "talker"), server(950, "ready", "student")])).toEqual([
      { role: "student", state: "ready", from: 950, to: 2000 },
      { role: "talker", state: "ready", from: 900, to: 2000 },
    ]);
  });
});

describe("the last minutes", () => {
  test("what is read and what is told live are put together: in order, each once, not for ever", () => {
    const history = new GpuHistory();
    history.addSamples([sample(3000, null, "stopped")]);
    history.addSamples([sample(1000, null, "stopped"), sample(2000, null, "stopped"), sample(3000, null, "stopped")]);
    expect(history.samplesSince(1500).map(({ ts }) => ts)).toEqual([2000, 3000]);
    history.addSamples([sample(20 * 60_000, null, "stopped")]);
    expect(history.samplesSince(0).map(({ ts }) => ts)).toEqual([20 * 60_000]);
    history.addHappenings([happening("control", 10), happening("control", 9)]);
    expect(history.happenings.map(({ ts }) => ts)).toEqual([9, 10]);
  });

  test("waits: a worker's tally becomes the page's quantiles, to two digits", () => {
    const tally = new JobTally();
    const job = (waitMs: number, over: Partial<StageJob> = {}) =>
      ({ data: { acceptedAt: 1000 - waitMs, priority: "normal", kind: "solve" }, attemptsStarted: 1, ...over }) as StageJob;
    for (let waitMs = 1; waitMs <= 100; waitMs++) tally.picked("student", job(waitMs), 1000);
    tally.picked("student", job(98_765), 1000);
    tally.picked("student", job(5, { attemptsStarted: 2 }), 1000);
    tally.picked("talker", job(5, { data: { ...job(5).data, kind: "explain" } }), 1000);
    tally.completed("talker");
    tally.failed("student", "engine-failed: it died");
    tally.failed("student", "cancelled: Cancelled on request.");
    const { waits, ended } = tally.take();
    expect(ended).toEqual({ student: { completed: 0, failed: 1 }, talker: { completed: 1, failed: 0 } });
    expect(waits.interactive).toEqual({});
    expect(waitQuantile([waits.normal], 0.5)).toBe(51);
    expect(waitQuantile([waits.normal], 0.95)).toBe(96);
    expect(waitQuantile([waits.normal, { "1": 10_000 }], 0.5)).toBe(1);
    expect(waitQuantile([waits.normal], 1)).toBe(99_000);
    expect(waitQuantile([{}], 0.5)).toBeNull();
    expect(tally.take().waits.normal).toEqual({});
  });
});

test.each([
  ["no maths", ["no maths"]],
  ["so \\(x^2\\) and \\[\\frac{1}{2}\\].", ["so ", ["x^2"], " and ", ["\\frac{1}{2}", "display"], "."]],
  ["it costs $5 and then $7 more", ["it costs $5 and then $7 more"]],
  ["$x$ costs $5", [["x"], " costs $5"]],
  ["$$a$$", [["a", "display"]]],
  ["the end\n\\boxed{\\frac{37}{42}}", ["the end\n", ["\\boxed{\\frac{37}{42}}"]]],
  [
    "so \\frac{41}{2{8}} is, and \\frac{1}x is not, \\sqrt{2} is",
    ["so ", ["\\frac{41}{2{8}}"], " is, and \\frac{1}x is not, ", ["\\sqrt{2}"], " is"],
  ],
  ["set $\\{1\\}$", ["set ", ["\\{1\\}"]]],
  ["not closed \\(x + \\boxed{1", ["not closed \\(x + \\boxed{1"]],
  ["$a\n\nb$", ["$a\n\nb$"]],
  ["<img src=x onerror=alert(1)>", ["<img src=x onerror=alert(1)>"]],
])("maths in %j", (text, expected) => {
  const pieces = splitMaths(text).map(({ kind, source, display }) => (kind === "text" ? source : display ? [source, "display"] : [source]));
  expect(pieces).toEqual(expected);
});

test("numbers as people read them", () => {
  expect([0, 42, 99.6, 400, 9940, 9960, 59_400, 59_600, 134_000, 3_599_600, 11_100_000, 180_000_000].map(duration)).toEqual([
    "0 ms",
    "42 ms",
    "0.1 s",
    "0.4 s",
    "9.9 s",
    "10 s",
    "59 s",
    "1 min",
    "2 min 14 s",
    "1 h",
    "3 h 5 min",
    "2 d 2 h",
  ]);
  expect([0, 999, 1000, 432_013_312, 10_522_669_875].map(bytes)).toEqual(["0 B", "999 B", "1.0 KiB", "412 MiB", "9.8 GiB"]);
  expect([0, 8.25, 1240, 1_234_567].map(count)).toEqual(["0", "8.3", "1\u202f240", "1\u202f234\u202f567"]);
  expect([0, 0.034, 0.5, 1].map(percent)).toEqual(["0 %", "3.4 %", "50 %", "100 %"]);
});

test.each<[string, Parameters<typeof workerStatus>[0] | null, RegExp, RegExp]>([
  ["no worker", null, /No worker is running/, /accepted and wait/],
  ["solving", { residentSince: 0 }, /^The Student is solving 2 problems\.$/, /Resident for 1\.0 s, server ready/],
  ["one answer", { residentModel: "talker", running: 1 }, /^The Talker is writing 1 answer\.$/, /Resident/],
  ["idle", { phase: "idle", running: 0 }, /^The Student is ready, nothing runs\.$/, /Resident/],
  [
    "free",
    {
      phase: "idle",
      running: 0,
      residentModel: null,
      residentSince: null,
      server: { state: "stopped", pid: null, since: 0, lastError: null },
    },
    /free/,
    /next problem loads one/,
  ],
  [
    "loading",
    { phase: "loading", residentModel: null, loadingModel: "talker", server: { state: "warming", pid: null, since: 0, lastError: null } },
    /^The Talker is being loaded\.$/,
    /Warming up for 1\.0 s; a swap to it takes about 0\.5 s/,
  ],
  [
    "swapping",
    {
      phase: "loading",
      residentModel: null,
      server: { state: "stopping", pid: null, since: 0, lastError: null },
      lastDecision: { at: 1, action: "swap", reason: "it has work" },
    },
    /being swapped/,
    /^$/,
  ],
  ["draining", { phase: "draining" }, /finishing 2 jobs before the swap/, /Resident/],
  [
    "drained",
    { phase: "idle", running: 0, drained: true, waitsFor: "drained by an operator; resume it to go on" },
    /held by an operator/,
    /Drained by an operator; resume it to go on\./,
  ],
])("the headline: %s", (_name, status, title, more) => {
  const said = headline(status === null ? undefined : gpuOf(status), 1000);
  expect(said.title).toMatch(title);
  expect(said.more).toMatch(more);
});

test("the list of decisions: a swap that was carried out takes its decision's place, and what stays is news only at the top", () => {
  const times = { drainMs: 20, stopMs: 100, startMs: 700, warmupMs: 500, totalMs: 1320 };
  const events = [
    happening("decision", 1, { action: "stay", reason: "the student is resident and has work" }),
    happening("decision", 2, { action: "swap", to: "talker", reason: "the student's queue is empty and the talker has work" }),
    server(3, "starting", "talker"),
    happening("swap", 4, { from: "student", to: "talker", reason: "the student's queue is empty and the talker has work", ...times }),
    happening("oom", 5, { role: "talker", step: "half the sequences", evidence: "cudaMalloc failed" }),
    happening("guardrail", 6, { role: "talker", action: "circuit-open", reason: "it died" }),
    happening("decision", 7, { action: "idle", reason: "the GPU is free: no work for 300 s" }),
    happening("decision", 8, { action: "stay", reason: "the talker is resident and has work" }),
  ];
  expect(linesOf(events).map(({ title, more }) => [title, more])).toEqual([
    ["Staying", "The Talker is resident and has work."],
    ["Resting", "The GPU is free: no work for 300 s."],
    ["Set aside for a while (Talker)", "It died."],
    ["Out of memory (Talker)", "From now on with less: half the sequences. cudaMalloc failed."],
    [
      "The Talker came in for the Student in 1.3 s",
      "The Student's queue is empty and the Talker has work. Stop 0.1 s, start 0.7 s, warm-up 0.5 s.",
    ],
  ]);
});

test("notices: nothing while all is as configured; ladders, circuits, limits, pauses and stand-bys are told", () => {
  const calm = { residentModel: null, gpus: [gpuOf()], queues: { student: queue, talker: queue } };
  expect(notices(calm, 1000)).toEqual([]);
  const troubled = gpuOf({
    models: {
      student: { ...modelStatus, ladder: [{ at: 1, step: "half", reason: "no memory" }] },
      talker: { ...modelStatus, circuit: { state: "open", failures: 3, until: 31_000 }, error: "the model server died" },
    },
  });
  const queues = { student: { ...queue, paused: true }, talker: { ...queue, rateLimit: { max: 10, durationMs: 1000 }, limitedMs: 400 } };
  const standbys = [{ workerId: "s", host: "h", pid: 2, waitsFor: null }];
  expect(
    notices({ residentModel: null, gpus: [{ ...troubled, standbys }], queues }, 1000).map(({ title, more }) => `${title} ${more}`),
  ).toEqual([
    "The Student runs with less than configured. It ran out of memory 1 time: now 2 requests at once, 4096 tokens each, 16-bit cache. mathllm gpu reset undoes it.",
    "The Talker is set aside; its jobs wait. The model server died. It is tried again in 30 s.",
    "The Student's queue is paused. Its jobs wait.",
    "The Talker's queue has a rate limit. 10 jobs each 1.0 s; the next may begin in 0.4 s.",
    "1 worker standing by. Takes over if this one dies or stops.",
  ]);
});

test("why a job waits", () => {
  expect(waitingReason(null)).toBe("");
  expect(waitingReason("no-worker")).toMatch(/No worker is running/);
  expect(waitingReason("paused: the queue is paused")).toBe("The queue is paused.");
  expect(waitingReason("model-unavailable: it died")).toBe("Its model can't be loaded at the moment: it died");
});
