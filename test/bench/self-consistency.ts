import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { pino } from "pino";
import { startApi } from "../../api/main.ts";
import { accuracyOf } from "../../maths/accuracy.ts";
import { FAMILIES, type Family, type GeneratedProblem, type GeneratorOptions, generateProblems } from "../../maths/generator.ts";
import type { Grade } from "../../maths/grading.ts";
import { ApiClient } from "../../producers/submit.ts";
import { readConfig } from "../../queues/config.ts";
import { openRedis } from "../../queues/connection.ts";
import type { JobView } from "../../queues/contracts.ts";
import { startEmbeddedRedis } from "../../queues/embedded-redis.ts";
import { sampleId } from "../../queues/names.ts";
import { openQueues } from "../../queues/open-queues.ts";
import { createEmbeddedEngine } from "../../workers/engines/embedded.ts";
import { startGpuWorker } from "../../workers/main.ts";

/**
 * What a vote is worth: npm run bench:self-consistency. The shipped Student through the whole product, greedy against the majority of eight
 * samples, on problems of its own ranges, on harder ones, and on those harder ones whose families it gets right now and then. Answers are
 * judged by the product's own grades. Loopback, about ten minutes on two cores.
 */
const SAMPLES = 8;
const TEMPERATURE = 0.8;
const IN_FLIGHT = 16;
const PROBED_PER_FAMILY = 20;
/** A family of harder problems is of medium difficulty when greedy gets such a share of them right. */
const MEDIUM = { from: 0.1, to: 0.9 };

const { values } = parseArgs({ options: { problems: { type: "string", default: "300" }, slots: { type: "string", default: "8" } } });
const count = Number(values.problems);

const log = pino({ level: "silent" });
const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-bench-"));
const server = await startEmbeddedRedis({ dataDir: folder, appendfsync: "everysec", dieWithParent: true });
const config = readConfig({
  DATA_DIR: folder,
  TELEMETRY_LOG: path.join(folder, "t.jsonl"),
  PORT: "0",
  STUDENT_PORT: "0",
  STUDENT_MAX_NUM_SEQS: values.slots,
});
const redis = openRedis(server.url, "worker", () => {});
const queues = openQueues(redis, () => {});
const api = await startApi({ config, redisUrl: server.url, log });
const createEngine = () => createEmbeddedEngine({ dataDir: folder });
const worker = await startGpuWorker({ config, redisUrl: server.url, createEngine, log, onFatal: () => {} });
const client = new ApiClient(api.url);

function problemsOf(options: GeneratorOptions, most = count): GeneratedProblem[] {
  const taken: GeneratedProblem[] = [];
  for (const problem of generateProblems(options)) if (taken.push(problem) === most) break;
  return taken;
}

/** The finished views, in order, `IN_FLIGHT` at once. */
async function solved(problems: GeneratedProblem[], how: object): Promise<JobView[]> {
  const views: JobView[] = [];
  let next = 0;
  const work = async () => {
    for (let i = next++; i < problems.length; i = next++) {
      const { problem, answer } = problems[i]!;
      const { jobId } = await client.submit({ problem, expected: answer, cache: "off", priority: "batch", ...how });
      views[i] = await client.finished(jobId);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, work));
  return views;
}

const greedy = (problems: GeneratedProblem[]) => solved(problems, { sampling: { temperature: 0 } });
const majority = (problems: GeneratedProblem[]) => solved(problems, { samples: SAMPLES, sampling: { temperature: TEMPERATURE, seed: 1 } });
const verdictOf = ({ result }: JobView): Grade["verdict"] => result?.grade?.verdict ?? "different";
const isRight = (view: JobView) => verdictOf(view) === "equal";
const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const accuracy = (views: JobView[]) => {
  const { accuracy: share, low, high } = accuracyOf(views.map(verdictOf));
  return `${percent(share!)} (${percent(low)} to ${percent(high)})`;
};

interface Savings {
  asked: number;
  /** Cancelled before the model had begun with them. */
  neverBegun: number;
  /** Cancelled while the model wrote. */
  aborted: number;
}

async function savingsOf(views: JobView[]): Promise<Savings> {
  const savings: Savings = { asked: 0, neverBegun: 0, aborted: 0 };
  for (const { jobId } of views) {
    for (let sample = 0; sample < SAMPLES; sample++) {
      const job = await queues.student.getJob(sampleId(jobId, sample));
      savings.asked++;
      if (!job?.failedReason?.startsWith("cancelled: ")) continue;
      const { firstTokenAt = null } = (typeof job.progress === "object" ? job.progress : {}) as { firstTokenAt?: number };
      savings[firstTokenAt === null ? "neverBegun" : "aborted"]++;
    }
  }
  return savings;
}

const table = new Table({
  head: ["problems", "greedy", "majority", "only majority / only greedy right", "samples saved", "never begun / aborted", "ms a problem"],
  style: { head: [], border: [] },
});

async function compare(name: string, problems: GeneratedProblem[]): Promise<void> {
  const startedAt = performance.now();
  const one = await greedy(problems);
  const between = performance.now();
  const voted = await majority(problems);
  const endedAt = performance.now();
  const { asked, neverBegun, aborted } = await savingsOf(voted);
  const onlyMajority = voted.filter((view, i) => isRight(view) && !isRight(one[i]!)).length;
  const onlyGreedy = voted.filter((view, i) => !isRight(view) && isRight(one[i]!)).length;
  table.push([
    `${name}, ${problems.length}`,
    accuracy(one),
    accuracy(voted),
    `${onlyMajority} / ${onlyGreedy}`,
    percent((neverBegun + aborted) / asked),
    `${percent(neverBegun / asked)} / ${percent(aborted / asked)}`,
    `${((between - startedAt) / problems.length).toFixed(0)}, ${((endedAt - between) / problems.length).toFixed(0)}`,
  ]);
}

await greedy(problemsOf({ seed: 99 }, IN_FLIGHT));
await compare("of its ranges, held out", problemsOf({ seed: 1 }));
await compare("harder", problemsOf({ seed: 1, hard: true }));
const medium: Family[] = [];
for (const family of FAMILIES) {
  const views = await greedy(problemsOf({ families: [family], seed: 2, hard: true }, PROBED_PER_FAMILY));
  const share = views.filter(isRight).length / views.length;
  if (share >= MEDIUM.from && share <= MEDIUM.to) medium.push(family);
}
if (medium.length > 0) await compare("harder, medium families", problemsOf({ families: medium, seed: 3, hard: true }));
console.log(`${SAMPLES} samples at temperature ${TEMPERATURE}, ${values.slots} at once; accuracy with its 95 % interval`);
console.log(table.toString());
console.log(`medium families: ${medium.join(", ") || "none"}`);
await worker.stop(1000);
await api.close();
await queues.close();
redis.disconnect();
await server.stop();
await rm(folder, { recursive: true, force: true });
process.exit(0);
