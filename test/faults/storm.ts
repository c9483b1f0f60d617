import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { Redis } from "ioredis";
import { pino } from "pino";
import { seededRandom, seededSample } from "../../maths/seeded-random.ts";
import { type JobView, jobViewSchema, stageResultSchema, TERMINAL_STATUSES } from "../../queues/contracts.ts";
import { type EmbeddedRedis, startEmbeddedRedis } from "../../queues/embedded-redis.ts";
import { KEY_PREFIX, keys, ROLES, type Role, studentStageId } from "../../queues/names.ts";
import { openQueues } from "../../queues/open-queues.ts";
import { isAlive, type ProcessIdentity, startTicksOf } from "../../queues/process-identity.ts";
import { withoutSettings } from "../../queues/settings.ts";
import { type Incarnation, KeptProcess } from "./kept-process.ts";
import type { LiveProcess } from "./live-process.ts";
import { ModelServerFinder } from "./model-servers.ts";
import { portBelowEphemeral } from "./quiet-port.ts";
import type { Sampled, SamplerReport } from "./sampler-thread.ts";
import { StageEvents } from "./stage-events.ts";
import { checkTelemetry } from "./telemetry-check.ts";
import { type AcceptedJob, planJobs, Submitter } from "./traffic.ts";

/**
 * A fault storm: the real product in processes of its own (an API, two workers of one GPU, Redis with its AOF), jobs over HTTP, and
 * meanwhile `kill -9` and `kill -STOP` at seeded moments. Afterwards the books are checked: what was accepted, what Redis says
 * happened, what /proc showed.
 *
 *   start ──ready──► storm (traffic and faults) ──all handed in──► calm ──all ended, or the bound passed──► books ──► stopped
 *
 * The seed settles jobs, order and planned moments of faults; the machine's timing is not ours, so a run repeats only about.
 */

export const KILL_TARGETS = ["worker", "modelServer", "api", "redis"] as const;
export const PAUSE_TARGETS = ["worker", "modelServer"] as const;
type KillTarget = (typeof KILL_TARGETS)[number];
type PauseTarget = (typeof PAUSE_TARGETS)[number];

export interface StormOptions {
  seed: number;
  jobs: number;
  kills: Record<KillTarget, number>;
  pauses: Record<PauseTarget, number>;
  /** The longest a job may take from its acceptance to its end. */
  boundMs: number;
  /** Mean time between two faults; the traffic lasts as long as the faults. */
  faultEveryMs?: number;
  log: (line: string) => void;
  /** Ends the storm early: everything is stopped and `runStorm` rejects. */
  signal?: AbortSignal;
}

export interface Fault {
  name: string;
  /** Epoch milliseconds. */
  at: number;
  pid: number;
  /** Jobs on the model at that moment. */
  inFlight: number;
  /** Until the next completed stage; null when none came. */
  recoveredMs: number | null;
  /** What became of a paused process. */
  outcome: string;
}

export interface StormReport {
  seed: number;
  tookMs: number;
  accepted: Record<string, number>;
  completed: number;
  stagesCompleted: number;
  /** Stages that were begun more than once. */
  retriedStages: number;
  submitRetries: Record<string, number>;
  /** Jobs whose first POST was cut off after they had been stored; the same Idempotency-Key found them again. */
  foundAgain: number;
  faults: Fault[];
  /** Ends of a product process that the storm didn't cause itself. */
  ownExits: string[];
  swaps: number;
  longestJobMs: number;
  longestRecoveryMs: number;
  sampler: SamplerReport;
  violations: string[];
  /** Logs and telemetry of the run, kept when there are violations. */
  folder: string | null;
}

const LEASE_TTL_MS = 4000;
/** By then whoever watches the stopped process is expected to have killed it: a stand-by, or the model server's own worker. */
const PAUSE_MS: Record<PauseTarget, number> = { worker: 3 * LEASE_TTL_MS, modelServer: 25_000 };
/** About as long as a POST takes. */
const POST_MS = 5;
const FAULT_EVERY_MS = 12_000;
const LEAST_WINDOW_MS = 10_000;
/** How long a fault waits for its moment: something on the model, a process to hit. */
const MOMENT_WAIT_MS = 10_000;
const STANDBY_SHARE = 0.2;
const START_WAIT_MS = 60_000;
const WORKER_STOP_MS = 45_000;
const API_STOP_MS = 15_000;
const OWN_EXIT_LINES = 12;
const POLL_MS = 20;
const PROGRESS_EVERY_MS = 10_000;
const READ_CONCURRENCY = 8;
const READ_WITHIN_MS = 60_000;
const OPEN_STATES = ["wait", "prioritized", "active", "delayed", "waiting-children"] as const;

/** Throws only when the storm itself could not be run; what the product did wrong stands in `violations`. */
export async function runStorm(options: StormOptions): Promise<StormReport> {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-storm-"));
  let keep = true;
  const storm = new Storm(options, folder);
  const killAll = () => storm.killNow();
  process.on("exit", killAll);
  try {
    const report = await storm.run();
    keep = report.violations.length > 0;
    return { ...report, folder: keep ? folder : null };
  } catch (error) {
    options.log(`logs are in ${folder}`);
    throw error;
  } finally {
    await storm.close();
    process.off("exit", killAll);
    if (!keep) await rm(folder, { recursive: true, force: true });
  }
}

class Storm {
  readonly #options: StormOptions;
  readonly #folder: string;
  readonly #random: () => number;
  readonly #mark = randomUUID();
  /** Its own: workers exclude each other on a host by this name, also those of another storm. */
  readonly #gpuId = `storm-${this.#mark}`;
  readonly #finder = new ModelServerFinder(`MATHLLM_STORM=${this.#mark}`);
  readonly #stop = new AbortController();
  readonly #violations: string[] = [];
  readonly #faults: Fault[] = [];
  readonly #ownExits: string[] = [];
  readonly #pauses: Promise<void>[] = [];
  readonly #connections: Redis[] = [];
  /** Stopped by a pause that still lasts. */
  readonly #paused = new Map<number, PauseTarget>();
  #server: EmbeddedRedis | undefined;
  #redis!: Redis;
  #api: KeptProcess | undefined;
  #workers: KeptProcess[] = [];
  #sampler: Worker | undefined;
  #events: StageEvents | undefined;
  #submitter: Submitter | undefined;
  #url = "";

  constructor(options: StormOptions, folder: string) {
    this.#options = options;
    this.#folder = folder;
    this.#random = seededRandom(options.seed);
    if (options.signal?.aborted) this.#stop.abort(options.signal.reason);
    options.signal?.addEventListener("abort", () => this.#stop.abort(options.signal?.reason), { once: true });
  }

  async run(): Promise<Omit<StormReport, "folder">> {
    const { jobs, seed, log } = this.#options;
    const startedAt = performance.now();
    await this.#start();
    const schedule = this.#schedule();
    const windowMs = Math.max(schedule.length * this.#faultEveryMs, LEAST_WINDOW_MS);
    const planned = planJobs(jobs, windowMs, seed, this.#random);
    const submitter = new Submitter(this.#url, this.#stop.signal);
    this.#submitter = submitter;
    const beganAt = Date.now();
    log(`up after ${Math.round(performance.now() - startedAt)} ms; ${jobs} jobs and ${schedule.length} faults in ${windowMs / 1000} s`);

    const progress = setInterval(() => this.#progress(submitter.accepted.length), PROGRESS_EVERY_MS);
    try {
      await this.#allOrNone([submitter.run(planned, beganAt), this.#strike(schedule, beganAt)]);
      await this.#allOrNone(this.#pauses);
      log(`all ${submitter.accepted.length} jobs are accepted, all faults done; waiting for the rest`);
      await this.#untilEnded(submitter.accepted);
    } finally {
      clearInterval(progress);
    }
    this.#violations.push(...submitter.violations);
    const books = await this.#checkBooks(submitter.accepted);
    await this.#checkLeftovers();
    const swaps = await this.#checkTelemetry();
    const sampler = await this.#checkSampler();
    const recoveries = this.#faults.map(({ recoveredMs }) => recoveredMs ?? 0);
    const accepted: Record<string, number> = {};
    for (const { kind } of submitter.accepted) accepted[kind] = (accepted[kind] ?? 0) + 1;
    return {
      seed,
      tookMs: Math.round(performance.now() - startedAt),
      accepted,
      submitRetries: submitter.retries,
      foundAgain: submitter.foundAgain,
      faults: this.#faults,
      ownExits: this.#ownExits,
      swaps,
      longestRecoveryMs: Math.max(0, ...recoveries),
      sampler,
      violations: this.#violations,
      ...books,
    };
  }

  /** Ends all that was started, in the order in which nothing is started again. */
  async close(): Promise<void> {
    this.#stop.abort(new Error("the storm is over"));
    await Promise.allSettled(this.#pauses);
    await Promise.all([this.#api, ...this.#workers].map((kept) => kept?.stop(0)));
    for (const { pid } of this.#finder.look()) kill(pid, "SIGKILL");
    await this.#sampler?.terminate();
    await this.#events?.close();
    for (const redis of this.#connections) redis.disconnect();
    await this.#server?.stop();
  }

  /** As `close`, where nothing can be awaited. Redis ends by itself with this process. */
  killNow(): void {
    for (const kept of [this.#api, ...this.#workers]) kept?.killNow();
    for (const { pid } of this.#finder.look()) kill(pid, "SIGKILL");
  }

  get #faultEveryMs(): number {
    return this.#options.faultEveryMs ?? FAULT_EVERY_MS;
  }

  // ---- the parts of the product

  async #start(): Promise<void> {
    this.#server = await startEmbeddedRedis({
      dataDir: this.#folder,
      appendfsync: "always",
      dieWithParent: true,
      log: pino({ level: "warn" }, { write: (line: string) => this.#options.log(`redis: ${line.trim()}`) }),
    });
    this.#redis = this.#connect();
    this.#events = new StageEvents(this.#connect());
    this.#sampler = new Worker(path.join(import.meta.dirname, "sampler-thread.ts"), {
      workerData: { mark: `MATHLLM_STORM=${this.#mark}` } satisfies Sampled,
      execArgv: [],
    });
    this.#sampler.on("error", (error) => this.#stop.abort(error));
    const port = await portBelowEphemeral();
    this.#url = `http://127.0.0.1:${port}`;
    this.#api = this.#keep("api", ["api"], { PORT: String(port) });
    this.#workers = ["worker-a", "worker-b"].map((name) => this.#keep(name, ["worker"], {}));
    const giveUpAt = Date.now() + START_WAIT_MS;
    while (!(await fetch(`${this.#url}/readyz`).catch(() => null))?.ok) {
      // Nothing was killed yet: what ends now can't be started at all.
      if (this.#ownExits.length > 0) throw new Error(`the system can't be started: ${this.#ownExits[0]}`);
      if (Date.now() > giveUpAt) throw new Error(`the system was not ready within ${START_WAIT_MS} ms`);
      await this.#wait(POLL_MS * 5);
    }
  }

  #keep(name: string, args: string[], extra: NodeJS.ProcessEnv): KeptProcess {
    const inherited = withoutSettings(process.env);
    return new KeptProcess({
      name,
      args,
      folder: this.#folder,
      env: (incarnation) => ({
        ...inherited,
        MATHLLM_STORM: this.#mark,
        ENGINE_ENV: "MATHLLM_STORM",
        REDIS_URL: this.#server!.url,
        DATA_DIR: this.#folder,
        GPU_ID: this.#gpuId,
        LEASE_TTL_MS: String(LEASE_TTL_MS),
        STUDENT_PORT: "0",
        TALKER_PORT: "0",
        // A file for each process: its swap records then tell of one slot only.
        TELEMETRY_LOG: this.#telemetryOf({ name, number: incarnation }),
        LOG_LEVEL: "info",
        ...extra,
      }),
      onExit: ({ number, killed, exit, startedAt }) => {
        if (killed) return;
        const left = `${name} ${number} left after ${exit!.at - startedAt} ms (code ${exit!.code}, signal ${exit!.signal})`;
        const lines = readFileSync(path.join(this.#folder, `${name}-${number}.log`), "utf8")
          .trim()
          .split("\n");
        // Why it left by itself stands at the end of its log; whom another worker killed had nothing to say.
        const line = exit!.signal === null ? `${left}: ${lines.slice(-OWN_EXIT_LINES).join(" | ")}` : left;
        this.#ownExits.push(line);
        this.#options.log(line);
      },
    });
  }

  #telemetryOf({ name, number }: Pick<Incarnation, "name" | "number">): string {
    return path.join(this.#folder, `${name}-${number}.jsonl`);
  }

  #connect(): Redis {
    const redis = new Redis(this.#server!.url, { maxRetriesPerRequest: null, retryStrategy: () => 100 });
    redis.on("error", () => {});
    this.#connections.push(redis);
    return redis;
  }

  // ---- faults

  /** Kills in random order; pauses spread among them from the begin on, since they take longest to play out. */
  #schedule(): { atMs: number; strike: () => Promise<void> }[] {
    const { kills, pauses } = this.#options;
    let workerKills = 0;
    const standby = Array.from({ length: kills.worker }, () => this.#random() < STANDBY_SHARE);
    const killers: Record<KillTarget, () => Promise<void>> = {
      // The first one always hits the worker that has the model.
      worker: () => this.#killWorker(workerKills++ > 0 && standby[workerKills - 1]!),
      modelServer: () => this.#killModelServer(),
      api: () => this.#killApi(),
      redis: () => this.#killRedis(),
    };
    const pausers: Record<PauseTarget, () => Promise<void>> = {
      worker: () => this.#pauseWorker(),
      modelServer: () => this.#pauseModelServer(),
    };
    const order = <T extends string>(targets: readonly T[], counts: Record<T, number>): T[] => {
      const all = targets.flatMap((target) => Array<T>(counts[target]).fill(target));
      return seededSample(all, all.length, this.#random);
    };
    const strikes = order(KILL_TARGETS, kills).map((target) => killers[target]);
    const stops = order(PAUSE_TARGETS, pauses);
    const gap = Math.ceil(strikes.length / Math.max(stops.length, 1)) + 1;
    for (const [i, target] of stops.entries()) strikes.splice(i * gap, 0, pausers[target]);
    return strikes.map((strike, i) => ({ strike, atMs: (i + 0.2 + 0.8 * this.#random()) * this.#faultEveryMs }));
  }

  async #strike(schedule: { atMs: number; strike: () => Promise<void> }[], beganAt: number): Promise<void> {
    for (const { atMs, strike } of schedule) {
      await this.#wait(Math.max(beganAt + atMs - Date.now(), 0));
      await strike();
    }
  }

  async #killWorker(standby: boolean): Promise<void> {
    const found = await this.#moment(async () => {
      const holder = await this.#holder();
      if (holder === undefined) return undefined;
      return standby ? this.#workers.find((kept) => kept !== holder && kept.running !== undefined) : holder;
    }, !standby);
    const victim = found?.target.kill();
    if (victim === undefined) return this.#missed("kill worker");
    this.#struck(standby ? `kill stand-by ${victim.name}` : `kill ${victim.name}`, victim.pid, found!.inFlight);
  }

  async #killModelServer(): Promise<void> {
    // A stopped one is left to the worker: to notice it is what the pause is for.
    while ([...this.#paused.values()].includes("modelServer")) await this.#wait(POLL_MS);
    const found = await this.#moment(async () => this.#finder.look()[0], true);
    if (found === undefined || !kill(found.target.pid, "SIGKILL")) return this.#missed("kill model server");
    this.#struck("kill model server", found.target.pid, found.inFlight);
  }

  /** While a request is under way, so that now and then a job is stored whose client gets no answer. */
  async #killApi(): Promise<void> {
    const found = await this.#moment(async () => this.#api?.running, false);
    await Promise.race([this.#submitter!.nextPost(), this.#wait(MOMENT_WAIT_MS)]);
    await this.#wait(this.#random() * POST_MS);
    const unanswered = this.#submitter!.unanswered;
    const victim = this.#api?.kill();
    if (victim === undefined) return this.#missed("kill api");
    this.#struck("kill api", victim.pid, found?.inFlight ?? 0).outcome = `${unanswered} requests unanswered`;
  }

  async #killRedis(): Promise<void> {
    const server = this.#server!;
    const found = await this.#moment(
      async () => (isAlive({ pid: server.pid, startTicks: startTicksOf(server.pid) }) ? server : undefined),
      true,
    );
    const pid = server.pid;
    if (found === undefined || !kill(pid, "SIGKILL")) return this.#missed("kill redis");
    this.#struck("kill redis", pid, found.inFlight);
  }

  async #pauseWorker(): Promise<void> {
    const found = await this.#moment(async () => (await this.#holder())?.running, true);
    if (found === undefined) return this.#missed("pause worker");
    this.#pause("worker", `pause ${found.target.name}`, found.target, found.inFlight);
  }

  async #pauseModelServer(): Promise<void> {
    const found = await this.#moment(async () => this.#finder.look()[0], true);
    if (found === undefined) return this.#missed("pause model server");
    this.#pause("modelServer", "pause model server", found.target, found.inFlight);
  }

  /** Lasts while the next faults come. */
  #pause(target: PauseTarget, name: string, victim: ProcessIdentity, inFlight: number): void {
    if (!kill(victim.pid, "SIGSTOP")) {
      this.#missed(name);
      return;
    }
    this.#paused.set(victim.pid, target);
    const fault = this.#struck(name, victim.pid, inFlight);
    const over = async () => {
      const giveUpAt = Date.now() + PAUSE_MS[target];
      try {
        while (isAlive(victim) && Date.now() < giveUpAt) await this.#wait(POLL_MS);
      } finally {
        this.#paused.delete(victim.pid);
        const lasted = `${((Date.now() - fault.at) / 1000).toFixed(1)} s`;
        const alive = isAlive(victim);
        if (alive) kill(victim.pid, "SIGCONT");
        fault.outcome = alive ? `still there after ${lasted}` : `gone after ${lasted}`;
        if (alive && !this.#stop.signal.aborted) this.#violations.push(`${name}, pid ${victim.pid}: nobody had killed it after ${lasted}`);
        this.#options.log(`${name}, pid ${victim.pid}: ${fault.outcome}`);
      }
    };
    this.#pauses.push(over());
  }

  #struck(name: string, pid: number, inFlight: number): Fault {
    const fault: Fault = { name, at: Date.now(), pid, inFlight, recoveredMs: null, outcome: "" };
    this.#faults.push(fault);
    this.#options.log(`${name}, pid ${pid}, ${inFlight} in flight`);
    return fault;
  }

  #missed(name: string): void {
    this.#options.log(`${name}: found nothing to hit within ${MOMENT_WAIT_MS / 1000} s`);
    this.#violations.push(`${name} could not be done: nothing to hit within ${MOMENT_WAIT_MS / 1000} s`);
  }

  /**
   * Waits for a moment at which `find` finds its target and, if `busy`, jobs are on the model; when none comes, takes the target
   * without that. Undefined when there is no target either.
   */
  async #moment<T>(find: () => Promise<T | undefined>, busy: boolean): Promise<{ target: T; inFlight: number } | undefined> {
    const giveUpAt = Date.now() + MOMENT_WAIT_MS;
    for (;;) {
      const inFlight = await this.#inFlight();
      const target = await find();
      const late = Date.now() > giveUpAt;
      if (target !== undefined && (!busy || inFlight > 0 || late)) return { target, inFlight };
      if (late) return undefined;
      await this.#wait(POLL_MS);
    }
  }

  /** 0 while Redis is away. */
  async #inFlight(): Promise<number> {
    if (this.#redis.status !== "ready") return 0;
    const counts = ROLES.map((role) => this.#redis.llen(`${KEY_PREFIX}:${role}:active`));
    const all = await Promise.race([Promise.all(counts).catch(() => []), delay(1000, [])]);
    return all.reduce((sum, count) => sum + count, 0);
  }

  /** The worker whose child the model server is, or else the one that the lease names; never a paused one. */
  async #holder(): Promise<KeptProcess | undefined> {
    const byPid = (pid: number) => this.#workers.find(({ running }) => running?.pid === pid);
    // The server of a worker that was killed may be left for a moment, a child of nobody's.
    let holder = this.#finder.look().flatMap(({ parentPid }) => byPid(parentPid) ?? [])[0];
    if (holder === undefined && this.#redis.status === "ready") {
      const record = await Promise.race([this.#redis.get(keys.leaseHolder(this.#gpuId)).catch(() => null), delay(1000, null)]);
      if (record !== null) holder = byPid(JSON.parse(record).worker?.pid);
    }
    return holder?.running !== undefined && this.#paused.has(holder.running.pid) ? undefined : holder;
  }

  // ---- waiting

  async #untilEnded(accepted: AcceptedJob[]): Promise<void> {
    const { boundMs } = this.#options;
    for (;;) {
      const now = Date.now();
      const open = accepted.filter(({ jobId, acceptedAt }) => !this.#events!.ends.has(jobId) && now < acceptedAt + boundMs);
      if (open.length === 0) return;
      await this.#wait(POLL_MS * 5);
    }
  }

  #progress(accepted: number): void {
    const rss = `${Math.round(process.memoryUsage().rss / 1e6)} MB`;
    this.#options.log(
      `${accepted} accepted, ${this.#events!.completedAt.length} stages completed, ${this.#faults.length} faults (harness ${rss})`,
    );
  }

  async #wait(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#stop.signal });
  }

  /** The first to fail stops the others, so that none goes on behind our back. */
  async #allOrNone(work: Promise<void>[]): Promise<void> {
    for (const one of work) one.catch((error) => this.#stop.abort(error));
    await Promise.allSettled(work);
    this.#stop.signal.throwIfAborted();
  }

  // ---- the books

  async #checkBooks(
    accepted: AcceptedJob[],
  ): Promise<Pick<StormReport, "completed" | "stagesCompleted" | "retriedStages" | "longestJobMs">> {
    const { boundMs } = this.#options;
    const events = this.#events!;
    let completed = 0;
    let retriedStages = 0;
    let longestJobMs = 0;
    const expected = new Map<string, Role>();
    const seen = new Set<string>();
    await inParallel(accepted, READ_CONCURRENCY, async ({ jobId, kind }) => {
      if (seen.has(jobId)) this.#violations.push(`${jobId} is the answer to two different requests`);
      seen.add(jobId);
      const studentStage = kind === "explain" ? studentStageId(jobId) : jobId;
      if (kind !== "talk") expected.set(studentStage, "student");
      if (kind !== "solve") expected.set(jobId, "talker");
      const view = await this.#view(jobId);
      if (typeof view === "string") {
        this.#violations.push(`${jobId}: ${view}`);
        return;
      }
      if (view.result?.cached === true) for (const stageId of [studentStage, jobId]) expected.delete(stageId);
      if (view.status === "completed") completed++;
      else this.#violations.push(`${jobId} is ${view.status} (reason ${view.reason}): ${JSON.stringify(view.error)}`);
      for (const stage of view.stages) {
        if (stage.attempts > 1) retriedStages++;
        if (stage.error !== null) this.#violations.push(`${jobId}, ${stage.model} stage, ${stage.status}: ${JSON.stringify(stage.error)}`);
      }
      if (!TERMINAL_STATUSES.includes(view.status)) return;
      const tookMs = (view.timestamps.finishedAt ?? Number.NaN) - view.timestamps.acceptedAt;
      longestJobMs = Math.max(longestJobMs, tookMs);
      if (!(tookMs <= boundMs)) this.#violations.push(`${jobId} took ${tookMs} ms, the bound is ${boundMs} ms`);
    });
    await inParallel([...expected], READ_CONCURRENCY, ([stageId, role]) => this.#checkStage(stageId, role));
    for (const [stageId, ends] of events.ends) {
      if (!expected.has(stageId)) this.#violations.push(`${stageId} was run (${ends.length} ends) though no client was told of it`);
    }
    const missed = await events.missed(this.#redis);
    if (missed !== null && missed !== 0) this.#violations.push(`${missed} entries of the event streams were added but never read`);
    for (const fault of this.#faults) {
      const next = events.completedAt.filter((at) => at > fault.at);
      fault.recoveredMs = next.length === 0 ? null : Math.min(...next) - fault.at;
    }
    return { completed, stagesCompleted: events.completedAt.length, retriedStages, longestJobMs };
  }

  /** The view of a job, or what is wrong with it. */
  async #view(jobId: string): Promise<JobView | string> {
    const giveUpAt = Date.now() + READ_WITHIN_MS;
    for (;;) {
      const answer = await fetch(`${this.#url}/jobs/${jobId}`, {
        signal: AbortSignal.any([this.#stop.signal, AbortSignal.timeout(15_000)]),
      })
        .then(async (response) => ({ status: response.status, text: await response.text() }))
        .catch((error: Error) => ({ status: 0, text: error.message }));
      this.#stop.signal.throwIfAborted();
      if (answer.status === 200) {
        try {
          return jobViewSchema.parse(JSON.parse(answer.text));
        } catch (error) {
          return `its view can't be read: ${(error as Error).message.replaceAll(/\s+/g, " ")}`;
        }
      }
      if (![0, 429, 503].includes(answer.status)) return `accepted, but GET answers ${answer.status} ${answer.text}`;
      if (Date.now() > giveUpAt) return `GET was not answered within ${READ_WITHIN_MS} ms: ${answer.status} ${answer.text}`;
      await this.#wait(POLL_MS * 5);
    }
  }

  async #checkStage(stageId: string, role: Role): Promise<void> {
    const ends = this.#events!.ends.get(stageId) ?? [];
    const told = ends.map(({ role: on, event }) => `${event} on ${on}`).join(", ") || "none";
    if (ends.length !== 1 || ends[0]!.event !== "completed" || ends[0]!.role !== role) {
      this.#violations.push(`${stageId}: expected one completed event on ${role}; got ${told}`);
      return;
    }
    const stored = await this.#redis.hget(`${KEY_PREFIX}:${role}:${stageId}`, "returnvalue");
    if (stored !== ends[0]!.returnValue) {
      this.#violations.push(`${stageId}: its stored result is not the one of its event: ${stored} and ${ends[0]!.returnValue}`);
    } else if (stageResultSchema.safeParse(JSON.parse(stored ?? "null")).data?.role !== role) {
      this.#violations.push(`${stageId}: its result is none of the ${role}: ${stored}`);
    }
  }

  async #checkLeftovers(): Promise<void> {
    const queues = openQueues(this.#redis, () => {});
    for (const role of ROLES) {
      const counts = await queues[role].getJobCounts(...OPEN_STATES);
      if (Object.values(counts).some((count) => count > 0))
        this.#violations.push(`the ${role} queue still holds ${JSON.stringify(counts)}`);
    }
    await queues.close();
    const stops = await Promise.all(this.#workers.map(async (kept) => ({ name: kept.name, left: await kept.stop(WORKER_STOP_MS) })));
    for (const { name, left } of stops) if (!left) this.#violations.push(`${name} did not leave within ${WORKER_STOP_MS} ms of SIGTERM`);
    for (const server of this.#finder.look()) {
      this.#violations.push(`model server ${server.pid} (state ${server.state}) is left after both workers have gone`);
    }
    if (!(await this.#api!.stop(API_STOP_MS))) this.#violations.push(`the API did not leave within ${API_STOP_MS} ms of SIGTERM`);
  }

  async #checkTelemetry(): Promise<number> {
    let swaps = 0;
    for (const incarnation of this.#workers.flatMap(({ incarnations }) => incarnations)) {
      // A stand-by writes nothing.
      const text = await readFile(this.#telemetryOf(incarnation), "utf8").catch(() => "");
      const findings = checkTelemetry(`${incarnation.name} ${incarnation.number}`, text);
      swaps += findings.swaps;
      this.#violations.push(...findings.violations);
    }
    if (swaps === 0) this.#violations.push("no worker's telemetry has a swap record");
    return swaps;
  }

  async #checkSampler(): Promise<SamplerReport> {
    const sampler = this.#sampler!;
    const told = new Promise<SamplerReport>((resolve) => sampler.once("message", resolve));
    sampler.postMessage("report");
    const report = await told;
    if (report.occupied === 0) this.#violations.push("no model server of ours was ever seen: the check for two at once has seen nothing");
    for (const { at, servers } of report.overlaps) {
      this.#violations.push(
        `${servers.length} model servers at once at ${new Date(at).toISOString()}: ${servers.map((one) => this.#describe(one)).join(", ")}`,
      );
    }
    return report;
  }

  #describe({ pid, state, parentPid }: LiveProcess): string {
    const parent = this.#workers.flatMap(({ incarnations }) => incarnations).find((one) => one.pid === parentPid);
    return `pid ${pid}, state ${state}, child of ${parent === undefined ? parentPid : `${parent.name} ${parent.number} (pid ${parentPid})`}`;
  }
}

/** False when the process is gone. */
function kill(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}

async function inParallel<T>(items: T[], workers: number, work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const one = async () => {
    while (next < items.length) await work(items[next++]!);
  };
  await Promise.all(Array.from({ length: workers }, one));
}
