import { readFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import Table from "cli-table3";
import { seededRandom, seededSample } from "../maths/seeded-random.ts";
import { type JobView, TERMINAL_STATUSES } from "../queues/contracts.ts";
import { PRIORITY_CLASSES } from "../queues/names.ts";
import type { Queues } from "../queues/open-queues.ts";
import { liveWorkers } from "../queues/worker-status.ts";
import type { ApiClient } from "./submit.ts";

/** Problems arrive one after the other, as from people, so that the two models take turns more than once. */
const PACE_MS = 250;
const PROGRESS_MS = 250;
const PLAIN_PROGRESS_MS = 3000;

export interface DemoOptions {
  api: ApiClient;
  /** Read only, for the progress line. */
  queues: Queues;
  /** How many model servers run at this moment, counted from outside the worker. */
  countModelServers: () => number;
  jobs: number;
  seed: number;
  /** Where people read: progress and table. */
  print: (text: string) => void;
  /** A terminal whose line can be written over. */
  terminal: boolean;
  signal: AbortSignal;
}

/** A problem with its explanation counts as one job. Times are from acceptance to the end. */
export interface DemoSummary {
  jobs: number;
  completed: number;
  failed: number;
  correct: number;
  accuracy: number;
  explained: number;
  swaps: number;
  maxResident: number;
  p50Ms: number | null;
  p95Ms: number | null;
}

interface HeldOut {
  problem: string;
  answer: string;
}

/** Submits held-out problems, half of them with an explanation, in mixed classes; shows the way of each and what came out. */
export async function runDemo(options: DemoOptions): Promise<DemoSummary> {
  const { api, print, signal } = options;
  const problems = await heldOutProblems(options.jobs, options.seed);
  print(`${problems.length} problems, every second one with an explanation, arriving over ${(problems.length * PACE_MS) / 1000} s.\n`);
  const progress = new Progress(options, problems.length);
  progress.start();
  const submitted = problems.map((problem, i) => ({
    ...problem,
    explain: i % 2 === 1,
    priority: PRIORITY_CLASSES[i % PRIORITY_CLASSES.length]!,
  }));
  const views = await Promise.all(
    submitted.map(async ({ problem, explain, priority }, i) => {
      await delay(i * PACE_MS, undefined, { signal });
      const { jobId } = await api.submit({ problem, explain, priority });
      const view = await api.finished(jobId, signal);
      progress.ended++;
      return view;
    }),
  ).finally(() => progress.stop());

  print(table(submitted, views));
  const durations = views.map((view) => (view.timestamps.finishedAt ?? 0) - view.timestamps.acceptedAt).sort((a, b) => a - b);
  const correct = views.filter((view, i) => view.result?.answer === submitted[i]!.answer).length;
  const [worker] = await liveWorkers(options.queues.redis);
  return {
    jobs: views.length,
    completed: views.filter((view) => view.status === "completed").length,
    failed: views.filter((view) => TERMINAL_STATUSES.includes(view.status) && view.status !== "completed").length,
    correct,
    accuracy: correct / views.length,
    explained: views.filter((view) => view.result?.explanation != null).length,
    swaps: worker?.swaps ?? 0,
    maxResident: progress.maxResident,
    p50Ms: percentile(durations, 0.5),
    p95Ms: percentile(durations, 0.95),
  };
}

async function heldOutProblems(count: number, seed: number): Promise<HeldOut[]> {
  const file = path.join(import.meta.dirname, "..", "models", "held-out.jsonl");
  const rows = (await readFile(file, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as HeldOut);
  return seededSample(rows, count, seededRandom(seed));
}

/** Nearest rank: the smallest value that at least the share `p` of all values does not exceed. */
function percentile(sorted: number[], p: number): number | null {
  return sorted[Math.max(Math.ceil(p * sorted.length) - 1, 0)] ?? null;
}

/** The line that says what the queues and the GPU do; on no terminal a new line every few seconds. */
class Progress {
  ended = 0;
  maxResident = 0;
  readonly #options: DemoOptions;
  readonly #jobs: number;
  readonly #startedAt = performance.now();
  #timer: NodeJS.Timeout | undefined;
  #printedAt = Number.NEGATIVE_INFINITY;

  constructor(options: DemoOptions, jobs: number) {
    this.#options = options;
    this.#jobs = jobs;
  }

  start(): void {
    const tick = async () => {
      this.maxResident = Math.max(this.maxResident, this.#options.countModelServers());
      await this.#show();
    };
    this.#timer = setInterval(() => void tick().catch(() => {}), PROGRESS_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
    if (this.#options.terminal) this.#options.print("\r\u001b[K");
  }

  async #show(): Promise<void> {
    const { queues, terminal, print } = this.#options;
    const now = performance.now();
    if (!terminal && now - this.#printedAt < PLAIN_PROGRESS_MS) return;
    this.#printedAt = now;
    const [student, talker, workers] = await Promise.all([
      queues.student.getJobCountByTypes("wait", "prioritized", "delayed", "active"),
      queues.talker.getJobCountByTypes("wait", "prioritized", "delayed", "active"),
      liveWorkers(queues.redis),
    ]);
    const worker = workers[0];
    const resident = worker?.residentModel ?? "none";
    const seconds = ((now - this.#startedAt) / 1000).toFixed(0);
    const line = `${seconds.padStart(3)} s  ${this.ended}/${this.#jobs} done  student ${student}  talker ${talker}  resident ${resident} (${worker?.phase ?? "starting"})  swaps ${worker?.swaps ?? 0}`;
    print(terminal ? `\r\u001b[K${line}` : `${line}\n`);
  }
}

function table(submitted: (HeldOut & { explain: boolean })[], views: JobView[]): string {
  const rows = new Table({
    head: ["problem", "answer", "", "explanation (its first sentence)", "wait ms", "time ms"],
    colWidths: [40, 14, 7, 44, 9, 9],
    wordWrap: true,
    style: { head: [], border: [] },
  });
  views.forEach((view, i) => {
    const { acceptedAt, pickedAt, finishedAt } = view.timestamps;
    rows.push([
      submitted[i]!.problem,
      view.result?.answer ?? view.error?.code ?? "none",
      view.result?.answer === submitted[i]!.answer ? "right" : "wrong",
      firstSentence(view.result?.explanation) ?? (submitted[i]!.explain ? "(failed)" : ""),
      pickedAt === null ? "" : String(pickedAt - acceptedAt),
      finishedAt === null ? "" : String(finishedAt - acceptedAt),
    ]);
  });
  return `${rows.toString()}\n`;
}

function firstSentence(text: string | null | undefined): string | undefined {
  return text?.split(/(?<=[.!?])\s/)[0];
}
