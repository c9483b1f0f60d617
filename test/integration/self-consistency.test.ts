import { readFile } from "node:fs/promises";
import path from "node:path";
import { Worker } from "bullmq";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type RunningApi, startApi } from "../../api/main.ts";
import { requestCancel } from "../../queues/cancellation.ts";
import type { JobView, SolveRequest } from "../../queues/contracts.ts";
import { KEY_PREFIX, sampleId } from "../../queues/names.ts";
import { readTokens } from "../../queues/token-stream.ts";
import { type GpuSystem, startGpuSystem } from "../gpu-system.ts";
import { expectProblem } from "../problem-document.ts";
import { stageResult } from "../stand-in-worker.ts";

let system: GpuSystem;
let api: RunningApi | undefined;

beforeEach(async () => {
  system = await startGpuSystem();
});

afterEach(async () => {
  await api?.close();
  api = undefined;
  await system.stop();
});

const drawn = (samples: number, more: Partial<SolveRequest> = {}): Partial<SolveRequest> => ({
  samples,
  sampling: { temperature: 0.8, seed: 7 },
  ...more,
});
const ended = async (request: Partial<SolveRequest>): Promise<JobView> => system.end(await system.send(request));
const boxed = (answer: string) => `So it is\n\\boxed{${answer}}`;
/** The samples' answers in the order in which they are drawn; `failing` ones make the model server answer 400. */
async function answering(answers: (string | null)[], serviceMs: (sample: number) => number = () => 1): Promise<void> {
  const seeds: number[] = [];
  const sampleOf = (seed: number | undefined) => {
    if (!seeds.includes(seed!)) seeds.push(seed!);
    return seeds.indexOf(seed!);
  };
  system.gpu.serviceMs = (_, seed) => serviceMs(sampleOf(seed));
  system.gpu.answer = (_, seed) => {
    const answer = answers[sampleOf(seed) % answers.length]!;
    return answer === null ? "I don't know." : boxed(answer);
  };
}
const oneAtATime = { STUDENT_MAX_NUM_SEQS: "1" };
const samplesLeft = () => system.queues.student.getJobCountByTypes("wait", "prioritized", "delayed", "active", "waiting-children");

async function telemetryJobs(): Promise<Record<string, unknown>[]> {
  const text = await readFile(path.join(system.redis.dataDir, "telemetry.jsonl"), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .filter(({ kind }) => kind === "job");
}

async function startTheApi(env: Record<string, string> = {}): Promise<void> {
  api = await startApi({ config: system.configured({ PORT: "0", ...env }), redisUrl: system.redis.url, log: pino({ level: "silent" }) });
}
const post = (body: object) =>
  fetch(`${api!.url}/solve`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ problem: "p", ...body }),
  });
const waited = async (jobId: string) => (await (await fetch(`${api!.url}/jobs/${jobId}?wait=30`)).json()) as JobView;

test("the majority answers, equal answers counting as one; usage is that of all; every sample has a seed of its own", async () => {
  await answering(["3", "1/2", "0.5", null, "\\frac{1}{2}", "3", "4"]);
  await system.startWorker(oneAtATime);
  const view = await ended(drawn(7, { expected: "0.50" }));
  expect(view).toMatchObject({
    status: "completed",
    result: {
      answer: "1/2",
      solution: boxed("1/2"),
      agreement: 3 / 7,
      votes: [
        { answer: "1/2", count: 3 },
        { answer: "3", count: 2 },
        { answer: "4", count: 1 },
      ],
      samples: { asked: 7, finished: 7, cancelled: 0 },
      usage: { promptTokens: 70, completionTokens: 35 },
      grade: { verdict: "equal" },
    },
    stages: [{ model: "student", status: "completed", attempts: 1 }],
  });
  const { acceptedAt, pickedAt, firstTokenAt, finishedAt } = view.timestamps;
  const times = [acceptedAt, pickedAt, firstTokenAt, finishedAt].map(Number);
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(new Set((await readTokens(system.queues.redis, view.jobId)).map(({ sample }) => sample))).toEqual(new Set([0, 1, 2, 3, 4, 5, 6]));
  const again = await system.queues.student.getJob(sampleId((await ended(drawn(7))).jobId, 2));
  expect((await system.queues.student.getJob(sampleId(view.jobId, 2)))?.data.sampling.seed).toBe(again?.data.sampling.seed);
  const records = await telemetryJobs();
  expect(records.filter(({ jobId, sample }) => jobId === view.jobId && sample !== undefined).length).toBe(7);
  expect(records.filter(({ jobId, verdict }) => jobId === view.jobId && verdict !== undefined)).toMatchObject([
    { verdict: "equal", samples: { asked: 7, finished: 7 } },
  ]);
});

test("early stop: as soon as the majority is settled, waiting samples never run and running ones are aborted", async () => {
  await answering(["1"]);
  const first = await system.startWorker(oneAtATime);
  expect((await ended(drawn(8))).result).toMatchObject({ agreement: 1, samples: { asked: 8, finished: 4, cancelled: 4 } });
  expect(system.gpu.served).toBe(4);
  await first.stop(1000);
  await answering(["1"], (sample) => (sample < 4 ? 1 : 60_000));
  await system.startWorker({ STUDENT_MAX_NUM_SEQS: "8" });
  expect((await ended(drawn(8))).result?.samples).toEqual({ asked: 8, finished: 4, cancelled: 4 });
  expect(system.gpu.served).toBe(8);
  expect(system.gpu.engines.at(-1)?.serving).toBe(0);
  expect(await samplesLeft()).toBe(0);
  expect(system.gpu.violations).toEqual([]);
});

test("in a backlog the half that may not be needed lets the others pass: not all of it is begun", async () => {
  let begun = 0;
  await answering(["1"]);
  system.gpu.serviceMs = () => {
    begun++;
    return 100;
  };
  const jobIds = [await system.send(drawn(6)), await system.send(drawn(6)), await system.send(drawn(6))];
  await system.startWorker({ STUDENT_MAX_NUM_SEQS: "9" });
  for (const jobId of jobIds) expect((await system.end(jobId)).result?.samples).toEqual({ asked: 6, finished: 3, cancelled: 3 });
  // Nine are needed; how many more begin before the others have been let pass is a race.
  expect(begun).toBeLessThan(18);
});

test("with explain the Talker explains the majority's solution; if no sample completes, it is not loaded", async () => {
  await answering(["3", "5", "5"]);
  const prompts: string[] = [];
  const { answer } = system.gpu;
  system.gpu.answer = (prompt, seed) => {
    if (prompt.startsWith("Explain")) prompts.push(prompt);
    return answer(prompt, seed);
  };
  const worker = await system.startWorker({ ...oneAtATime, JOB_TIMEOUT_MS: "1000" });
  const view = await ended(drawn(3, { explain: true }));
  expect(view).toMatchObject({ status: "completed", result: { answer: "5", agreement: 2 / 3, explanation: expect.any(String) } });
  expect(view.stages.map(({ model, status }) => [model, status])).toEqual([
    ["student", "completed"],
    ["talker", "completed"],
  ]);
  expect(prompts).toEqual([expect.stringContaining(boxed("5"))]);
  await worker.stop(1000);
  system.gpu.serviceMs = () => 60_000;
  const before = system.gpu.loads.length;
  await system.startWorker({ STUDENT_MAX_NUM_SEQS: "8", JOB_TIMEOUT_MS: "50" });
  expect(await ended(drawn(3, { explain: true }))).toMatchObject({ status: "failed", error: { code: "job-timeout" }, result: null });
  expect(system.gpu.loads.slice(before)).toEqual(["student"]);
});

test("a failed sample is a missing vote", async () => {
  await answering(["1", "1", "2", "2"], (sample) => (sample === 0 ? 60_000 : 1));
  await system.startWorker({ ...oneAtATime, JOB_TIMEOUT_MS: "300" });
  expect((await ended(drawn(4))).result).toMatchObject({ answer: "2", agreement: 2 / 3, samples: { asked: 4, finished: 3, cancelled: 0 } });
});

test("a cancel ends waiting and running samples; so does the deadline", async () => {
  await answering(["1"], () => 60_000);
  await system.startWorker({ STUDENT_MAX_NUM_SEQS: "2" });
  const cancelled = await system.send(drawn(5));
  await expect.poll(() => system.gpu.engines[0]?.serving).toBe(2);
  expect(await system.view(cancelled)).toMatchObject({ status: "active", stages: [{ status: "active" }] });
  await requestCancel(system.queues, cancelled);
  expect((await system.end(cancelled)).status).toBe("cancelled");
  expect(await ended(drawn(5, { timeoutMs: 300 }))).toMatchObject({ status: "failed", error: { code: "deadline-exceeded" } });
  await expect.poll(samplesLeft).toBe(0);
  expect(system.gpu.engines[0]?.serving).toBe(0);
  expect(system.gpu.served).toBe(0);
});

test("while it waits it has a position, and a cancel shows at once though no worker lives", async () => {
  const first = await system.send({ priority: "normal" });
  const jobId = await system.send(drawn(3));
  expect(await system.view(jobId)).toMatchObject({ status: "waiting", position: 1, reason: "no-worker" });
  await requestCancel(system.queues, jobId);
  expect((await system.view(jobId))?.status).toBe("cancelled");
  await answering(["1"]);
  await system.startWorker();
  expect((await system.end(first)).status).toBe("completed");
  await expect.poll(samplesLeft).toBe(0);
  expect(system.gpu.served).toBe(1);
});

test("a server's death costs no vote; and what a dead worker had settled stays settled: nothing more is drawn", async () => {
  await answering(["1", "2", "1"], () => 60_000);
  await system.startWorker({ STUDENT_MAX_NUM_SEQS: "4" });
  const jobId = await system.send(drawn(3));
  await expect.poll(() => system.gpu.engines[0]?.serving).toBe(3);
  await answering(["1", "2", "1"]);
  system.gpu.engines[0]!.crash();
  expect(await system.end(jobId)).toMatchObject({
    status: "completed",
    result: { answer: "1", samples: { finished: 3 } },
    stages: [{ attempts: 2 }],
  });
});

test("a worker that died after the deciding sample, before it had cancelled the others: the next draws none of them", async () => {
  const jobId = await system.send(drawn(5));
  const stand = new Worker("student", null, { connection: system.redis.connect(), prefix: KEY_PREFIX });
  for (let i = 0; i < 3; i++) {
    const job = await stand.getNextJob(`t${i}`);
    await job!.moveToCompleted(stageResult("student"), `t${i}`, false);
  }
  await stand.close();
  await system.startWorker();
  expect((await system.end(jobId)).result).toMatchObject({ answer: "1", samples: { asked: 5, finished: 3, cancelled: 2 } });
  expect(system.gpu.served).toBe(0);
});

test("cache on: the vote is kept and shared with identical requests, samples are not; each requester has its own grade", async () => {
  await answering(["1"], () => 20);
  await system.startWorker(oneAtATime);
  await startTheApi();
  await waited(((await (await post({ cache: "off" })).json()) as JobView).jobId);
  await expect.poll(() => system.queues.redis.hlen("{mathllm}:models")).toBe(1);
  const before = system.gpu.served;
  const asked = { ...drawn(3), cache: "on" };
  const [leads, follows] = (await Promise.all([
    post({ ...asked, expected: "1" }).then((response) => response.json()),
    post({ ...asked, expected: "2" }).then((response) => response.json()),
  ])) as JobView[];
  const results = [(await waited(leads!.jobId)).result, (await waited(follows!.jobId)).result];
  expect(results.map((result) => [result?.grade?.verdict, result?.coalesced]).sort()).toEqual([
    ["different", expect.any(Boolean)],
    ["equal", expect.any(Boolean)],
  ]);
  expect(results.filter((result) => result?.coalesced).length).toBe(1);
  expect(system.gpu.served - before).toBe(2);
  const hit = await post({ ...asked, expected: "1.0", problem: " p" });
  const view = (await hit.json()) as JobView;
  expect([hit.status, view.result?.cached, view.result?.grade?.verdict, view.result?.samples?.asked]).toEqual([200, true, "equal", 3]);
  expect((await waited(view.jobId)).result).toMatchObject({ grade: null, votes: [{ answer: "1", count: 2 }] });
  // Fewer samples, one sample, and none from the cache: each is another question.
  expect((await post({ ...asked, samples: 2 })).status).toBe(202);
  expect((await post({ ...asked, samples: 1 })).status).toBe(202);
  expect((await post({ ...asked, cache: "auto" })).status).toBe(202);
});

test("k samples count as k waiting jobs", async () => {
  await startTheApi({ NORMAL_MAX_DEPTH: "10" });
  expect((await post(drawn(6))).status).toBe(202);
  const refused = await expectProblem(await post(drawn(5)), 429, "queue-full");
  expect(refused.detail).toContain("5 samples");
  expect((await post(drawn(4))).status).toBe(202);
  await expectProblem(await post({}), 429, "queue-full");
});
