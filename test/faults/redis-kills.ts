import { mkdtemp, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { seededRandom, seededSample } from "../../maths/seeded-random.ts";
import { jobViewSchema, readinessSchema, TERMINAL_STATUSES } from "../../queues/contracts.ts";
import { withoutSettings } from "../../queues/settings.ts";
import { KeptProcess } from "./kept-process.ts";
import type { LiveProcess } from "./live-process.ts";
import { portBelowEphemeral } from "./quiet-port.ts";
import { RedisServerFinder } from "./redis-servers.ts";
import type { Sampled, SamplerReport } from "./sampler-thread.ts";
import { type AcceptedJob, planJobs, Submitter } from "./traffic.ts";

/**
 * The embedded Redis killed with -9 again and again while jobs come: `mathllm start` keeps it, a second `mathllm api` of the same
 * folder joins it and accepts, also while the keeper is stopped. Every kill is one of
 *
 *   plain       Redis alone
 *   paused      the keeper is stopped (SIGSTOP) before, and goes on some time after
 *   orphaned    the keeper is killed, too, shortly before or after; a new one comes and has to find what there is
 *   joined      the joined API is killed at the same moment, and starts while Redis does
 *
 *   up ──► kills, each after Redis is there again ──► calm: every accepted job ends ──► books ──► stopped, nothing left
 *
 * The seed settles jobs, order and planned moments; the machine's timing is not ours, so a run repeats only about.
 */

export const KILL_KINDS = ["plain", "paused", "orphaned", "joined"] as const;
type KillKind = (typeof KILL_KINDS)[number];

export interface RedisKillsOptions {
  seed: number;
  /** At least one of each kind. */
  kills: number;
  jobs: number;
  log: (line: string) => void;
  signal?: AbortSignal;
}

export interface RedisKillsReport {
  tookMs: number;
  kills: Record<KillKind, number>;
  accepted: number;
  completed: number;
  submitRetries: Record<string, number>;
  foundAgain: number;
  /** Programs that were started on the folder's data, and those that got as far as serving them. */
  starts: number;
  served: number;
  longestAwayMs: number;
  /** Ends of a product process that were not caused here. */
  ownExits: string[];
  sampler: SamplerReport;
  violations: string[];
  /** Logs and data, kept when there are violations. */
  folder: string | null;
}

/** Each kind with the chance of it or of one before it. */
const UP_TO: [KillKind, number][] = [
  ["paused", 0.3],
  ["orphaned", 0.33],
  ["joined", 0.36],
  ["plain", 1],
];
const LEASE_TTL_MS = 4000;
const EARLY_SHARE = 0.2;
const DEADLINE_MS = 3_600_000;
const MEAN_GAP_MS = 700;
const LONGEST_GAP_MS = 4000;
/** From before a keeper's look to well after it. */
const LONGEST_PAUSE_MS = 2500;
const LONGEST_BETWEEN_MS = 300;
/** Kills may follow each other faster than a start takes; what is accepted late is not lost. */
const ACCEPT_WITHIN_MS = 300_000;
const BACK_WITHIN_MS = 60_000;
const START_WAIT_MS = 60_000;
const ENDED_WITHIN_MS = 240_000;
const STOP_MS = 60_000;
const POLL_MS = 20;
const READ_CONCURRENCY = 8;

/** Throws only when the system could not be run; what the product did wrong stands in `violations`. */
export async function runRedisKills(options: RedisKillsOptions): Promise<RedisKillsReport> {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-redis-kills-"));
  const run = new RedisKills(options, folder);
  const killAll = () => run.killNow();
  process.on("exit", killAll);
  let keep = true;
  try {
    const report = await run.run();
    keep = report.violations.length > 0;
    return { ...report, folder: keep ? folder : null };
  } finally {
    await run.close();
    process.off("exit", killAll);
    if (keep) options.log(`logs and data are in ${folder}`);
    else await rm(folder, { recursive: true, force: true });
  }
}

class RedisKills {
  readonly #options: RedisKillsOptions;
  readonly #folder: string;
  readonly #random: () => number;
  readonly #stop = new AbortController();
  readonly #violations: string[] = [];
  readonly #ownExits: string[] = [];
  readonly #finder: RedisServerFinder;
  readonly #sampler: Worker;
  #keeper: KeptProcess | undefined;
  #api: KeptProcess | undefined;
  #url = "";
  #longestAwayMs = 0;

  constructor(options: RedisKillsOptions, folder: string) {
    this.#options = options;
    this.#folder = folder;
    this.#finder = new RedisServerFinder(folder);
    this.#random = seededRandom(options.seed);
    options.signal?.addEventListener("abort", () => this.#stop.abort(options.signal?.reason), { once: true });
    this.#sampler = new Worker(path.join(import.meta.dirname, "sampler-thread.ts"), {
      workerData: { dataDir: folder } satisfies Sampled,
      execArgv: [],
    });
    this.#sampler.on("error", (error) => this.#stop.abort(error));
  }

  async run(): Promise<Omit<RedisKillsReport, "folder">> {
    const { jobs, seed, kills, log } = this.#options;
    const startedAt = performance.now();
    await this.#start();
    const kinds = this.#plan();
    const planned = planJobs(jobs, 0, seed, this.#random);
    const submitter = new Submitter(this.#url, this.#stop.signal, ACCEPT_WITHIN_MS);
    const beganAt = performance.now();
    const handedIn: Promise<void>[] = [];
    for (const [index, kind] of kinds.entries()) {
      // The jobs come between the kills, so that every kill meets some of them on their way.
      const part = planned.slice(Math.floor((index * jobs) / kills), Math.floor(((index + 1) * jobs) / kills));
      const coming = submitter.run(
        part.map((job) => ({ ...job, atMs: this.#random() * 2 * MEAN_GAP_MS })),
        Date.now(),
      );
      coming.catch((error) => this.#stop.abort(error));
      handedIn.push(coming);
      await this.#wait(Math.min(-Math.log(1 - this.#random()) * MEAN_GAP_MS, LONGEST_GAP_MS));
      await this.#kill(kind);
      log(`kill ${index + 1} (${kind}); ${submitter.accepted.length} accepted; ${Math.round((performance.now() - beganAt) / 1000)} s`);
    }
    await Promise.all(handedIn);
    const completed = await this.#untilEnded(submitter.accepted);
    this.#violations.push(...submitter.violations);
    await this.#checkNothingLeft();
    const { starts, served } = await this.#checkStarts();
    return {
      tookMs: Math.round(performance.now() - startedAt),
      kills: Object.fromEntries(KILL_KINDS.map((kind) => [kind, kinds.filter((one) => one === kind).length])) as Record<KillKind, number>,
      accepted: submitter.accepted.length,
      completed,
      submitRetries: submitter.retries,
      foundAgain: submitter.foundAgain,
      starts,
      served,
      longestAwayMs: Math.round(this.#longestAwayMs),
      ownExits: this.#ownExits,
      sampler: await this.#checkSampler(),
      violations: this.#violations,
    };
  }

  async close(): Promise<void> {
    this.#stop.abort(new Error("the run is over"));
    await Promise.all([this.#keeper?.stop(0), this.#api?.stop(0)]);
    this.killNow();
    await this.#sampler.terminate();
  }

  /** As `close`, where nothing can be awaited. */
  killNow(): void {
    this.#keeper?.killNow();
    this.#api?.killNow();
    for (const { pid } of this.#finder.look()) signalTo(pid, "SIGKILL");
  }

  async #start(): Promise<void> {
    this.#keeper = this.#keep("start", ["start"], await portBelowEphemeral());
    await this.#until("the first Redis", () => this.#finder.look().length > 0, START_WAIT_MS);
    const port = await portBelowEphemeral();
    this.#url = `http://127.0.0.1:${port}`;
    this.#api = this.#keep("api", ["api"], port);
    await this.#until("readiness", () => this.#accepts(), START_WAIT_MS);
  }

  /** Whether the joined API has Redis; a worker may still be on its way. */
  async #accepts(): Promise<boolean> {
    const answer = await fetch(`${this.#url}/readyz`).catch(() => undefined);
    return answer !== undefined && readinessSchema.parse(await answer.json()).redis;
  }

  #keep(name: string, args: string[], port: number): KeptProcess {
    return new KeptProcess({
      name,
      args,
      folder: this.#folder,
      env: (incarnation) => ({
        ...withoutSettings(process.env),
        DATA_DIR: this.#folder,
        PORT: String(port),
        GPU_ID: path.basename(this.#folder),
        LEASE_TTL_MS: String(LEASE_TTL_MS),
        // Nothing is refused because it would wait too long: it does, with its Redis away most of the time.
        INTERACTIVE_DEADLINE_MS: String(DEADLINE_MS),
        NORMAL_DEADLINE_MS: String(DEADLINE_MS),
        STUDENT_PORT: "0",
        TALKER_PORT: "0",
        TELEMETRY_LOG: path.join(this.#folder, `${name}-${incarnation}.jsonl`),
      }),
      onExit: ({ number, killed, exit }) => {
        if (killed) return;
        // It may: one that is just starting ends when its Redis does, and whoever keeps services up starts it again.
        this.#ownExits.push(`${name} ${number} (code ${exit!.code}, signal ${exit!.signal})`);
      },
    });
  }

  /** One of each kind, the rest by chance, in an order by chance. */
  #plan(): KillKind[] {
    const rest = Array.from({ length: Math.max(this.#options.kills - KILL_KINDS.length, 0) }, () => {
      const chance = this.#random();
      return UP_TO.find(([, upTo]) => chance < upTo)![0];
    });
    const all = [...KILL_KINDS, ...rest];
    return seededSample(all, all.length, this.#random);
  }

  /** Resolves when a server lives again. */
  async #kill(kind: KillKind): Promise<void> {
    // A start that met the last kill may have failed, and the next one is on its way.
    let found: LiveProcess | undefined;
    const anyLives = () => {
      found = this.#finder.look()[0];
      return found !== undefined;
    };
    await this.#until("a Redis to kill", anyLives, BACK_WITHIN_MS);
    const victim = found!;
    const killRedis = () => {
      if (!signalTo(victim.pid, "SIGKILL")) this.#violations.push(`Redis ${victim.pid} had ended before it was killed`);
    };
    const beganAt = performance.now();
    if (kind === "plain") killRedis();
    else if (kind === "paused") await this.#killPaused(killRedis);
    else await this.#killBoth(kind === "orphaned" ? this.#keeper! : this.#api!, killRedis);
    const lives = () => this.#finder.look().some(({ pid, startTicks }) => pid !== victim.pid || startTicks !== victim.startTicks);
    await this.#until(`a Redis after a kill (${kind})`, lives, BACK_WITHIN_MS);
    // Now and then the next kill comes while it loads; as a rule jobs are accepted in between.
    if (this.#random() < EARLY_SHARE) return;
    await this.#until(`readiness after a kill (${kind})`, () => this.#accepts(), BACK_WITHIN_MS);
    this.#longestAwayMs = Math.max(this.#longestAwayMs, performance.now() - beganAt);
  }

  async #killPaused(killRedis: () => void): Promise<void> {
    const pid = this.#keeper!.running?.pid;
    if (pid === undefined) return killRedis();
    signalTo(pid, "SIGSTOP");
    await this.#wait(this.#random() * LONGEST_BETWEEN_MS);
    killRedis();
    await this.#wait(this.#random() * LONGEST_PAUSE_MS);
    signalTo(pid, "SIGCONT");
  }

  async #killBoth(other: KeptProcess, killRedis: () => void): Promise<void> {
    const kills = [() => other.kill(), killRedis];
    if (this.#random() < 0.5) kills.reverse();
    kills[0]!();
    await this.#wait(this.#random() * LONGEST_BETWEEN_MS);
    kills[1]!();
  }

  /** How many of them completed. What has not by the bound, or can't be found, is a violation. */
  async #untilEnded(accepted: AcceptedJob[]): Promise<number> {
    const giveUpAt = performance.now() + ENDED_WITHIN_MS;
    let completed = 0;
    let next = 0;
    const follow = async () => {
      for (let job = accepted[next++]; job !== undefined; job = accepted[next++]) {
        const end = await this.#endOf(job.jobId, giveUpAt);
        if (end === "completed") completed++;
        else this.#violations.push(`${job.jobId} was accepted and is ${end}`);
      }
    };
    await Promise.all(Array.from({ length: READ_CONCURRENCY }, follow));
    return completed;
  }

  async #endOf(jobId: string, giveUpAt: number): Promise<string> {
    let last = "without an answer";
    while (performance.now() < giveUpAt) {
      const response = await fetch(`${this.#url}/jobs/${jobId}?wait=5`, { signal: this.#stop.signal }).catch(() => undefined);
      const text = await response?.text();
      if (response?.status === 404) return "lost: 404";
      if (response?.status === 200) {
        const { status, reason, error } = jobViewSchema.parse(JSON.parse(text!));
        if (TERMINAL_STATUSES.includes(status)) return error === null ? status : `${status}: ${JSON.stringify(error)}`;
        last = `${status} (${reason})`;
      } else {
        await this.#wait(POLL_MS * 5);
      }
    }
    return last;
  }

  /** SIGTERM to both, as a user's Ctrl-C does: no Redis may stay behind. */
  async #checkNothingLeft(): Promise<void> {
    for (const kept of [this.#api!, this.#keeper!]) {
      if (!(await kept.stop(STOP_MS))) this.#violations.push(`${kept.name} did not leave within ${STOP_MS} ms of SIGTERM`);
    }
    for (const { pid } of this.#finder.look()) this.#violations.push(`Redis ${pid} is left after its keeper has gone`);
  }

  /** A kill is followed by one start; only a port that something else has makes it more. */
  async #checkStarts(): Promise<{ starts: number; served: number }> {
    const log = await readFile(path.join(this.#folder, "redis", "redis.log"), "utf8");
    const count = (pattern: RegExp) => log.match(pattern)?.length ?? 0;
    const starts = count(/is starting oO/g);
    const served = count(/Ready to accept connections/g);
    const bound = this.#options.kills + 1 + count(/address already in use/gi);
    if (starts > bound) this.#violations.push(`${starts} servers were started where ${bound} were needed`);
    return { starts, served };
  }

  async #checkSampler(): Promise<SamplerReport> {
    const told = new Promise<SamplerReport>((resolve) => this.#sampler.once("message", resolve));
    this.#sampler.postMessage("report");
    const report = await told;
    if (report.occupied === 0) this.#violations.push("no Redis was ever seen: the check for two at once has seen nothing");
    for (const { at, servers } of report.overlaps) {
      const pids = servers.map(({ pid, state }) => `${pid} (${state})`).join(" and ");
      this.#violations.push(`two Redis servers on one folder at ${new Date(at).toISOString()}: ${pids}`);
    }
    return report;
  }

  async #until(what: string, condition: () => boolean | Promise<boolean>, withinMs: number): Promise<void> {
    const giveUpAt = performance.now() + withinMs;
    while (!(await condition())) {
      if (performance.now() > giveUpAt) throw new Error(`waited ${withinMs} ms in vain for ${what}; logs are in ${this.#folder}`);
      await this.#wait(POLL_MS);
    }
  }

  async #wait(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#stop.signal });
  }
}

/** False when the process is gone. */
function signalTo(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}
