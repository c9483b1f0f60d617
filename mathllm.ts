import { existsSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { type Logger, pino } from "pino";
import { startApi } from "./api/main.ts";
import { createBoard } from "./dashboards/board.ts";
import type { FieldMap } from "./maths/banks.ts";
import { FAMILIES, type Family, TEXTS } from "./maths/generator.ts";
import { runDemo } from "./producers/demo.ts";
import { checkHealth } from "./producers/healthcheck.ts";
import { commandGpus, gpuReport, gpuView, limitQueue, type OperatorCommand, parseRateLimit } from "./producers/operator.ts";
import { type ProblemsOptions, writeProblems } from "./producers/problems.ts";
import { smoke } from "./producers/smoke.ts";
import { ApiClient } from "./producers/submit.ts";
import { type Config, environmentShape, readConfig } from "./queues/config.ts";
import { openRedis, waitForRedis } from "./queues/connection.ts";
import { type EmbeddedRedis, startEmbeddedRedis } from "./queues/embedded-redis.ts";
import { MathllmError } from "./queues/errors.ts";
import { PRIORITY_CLASSES, type PriorityClass, ROLES, type Role } from "./queues/names.ts";
import { openQueues } from "./queues/open-queues.ts";
import type { RateLimit } from "./queues/rate-limits.ts";
import { diagnose } from "./workers/doctor.ts";
import { engineFactory } from "./workers/engines/engines.ts";
import { FitCheck } from "./workers/gpu/fit-check.ts";
import { gpuIdOf } from "./workers/gpu/gpu-identity.ts";
import { readVram } from "./workers/gpu/gpu-memory.ts";
import { ownerName, takeHostLock } from "./workers/gpu/host-lock.ts";
import { detectCard, hostCard, makePlan, parseMemory } from "./workers/gpu/plan.ts";
import { planReport } from "./workers/gpu/plan-report.ts";
import { DEFAULT_DEADLINES_MS, POLICIES } from "./workers/gpu/policy.ts";
import { simulationReport } from "./workers/gpu/simulation-report.ts";
import { simulate } from "./workers/gpu/simulator.ts";
import { parseClassMix, recordedTraffic, syntheticTraffic, type TrafficOptions } from "./workers/gpu/synthetic-traffic.ts";
import { startGpuWorker } from "./workers/main.ts";
import { WorkerProcess } from "./workers/worker-process.ts";

/** The command line. It alone composes: the API, the worker, the producers and the dashboards don't know each other. */

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;
const EXIT_MISSED = 3;

const logTo = (config: Pick<Config, "logLevel">): Logger =>
  pino({ level: config.logLevel, base: null, timestamp: pino.stdTimeFunctions.isoTime }, pino.destination({ fd: 2, sync: true }));

const say = (text: string) => process.stdout.write(text);

interface RedisHandle {
  url: string;
  stop(): Promise<void>;
}

/** REDIS_URL, or the private embedded Redis of this data directory: started here, or joined if another process of ours started it. */
async function redisFor(config: Config, log: Logger, dieWithParent = false): Promise<RedisHandle> {
  if (config.redisUrl !== undefined) return { url: config.redisUrl, stop: async () => {} };
  await makeDataDir(config.dataDir);
  const redis: EmbeddedRedis = await startEmbeddedRedis({
    dataDir: config.dataDir,
    appendfsync: config.redisAppendfsync,
    log: (line: string) => log.debug(line),
    env: process.env,
    dieWithParent,
  });
  return { url: redis.url, stop: () => redis.stop() };
}

/** Runs `body` with a Redis that is stopped however it ends, if it was started here. */
async function withRedis(config: Config, log: Logger, body: (redisUrl: string) => Promise<number>): Promise<number> {
  const redis = await redisFor(config, log);
  try {
    return await body(redis.url);
  } finally {
    await redis.stop();
  }
}

async function makeDataDir(dataDir: string): Promise<void> {
  try {
    await mkdir(dataDir, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new MathllmError(
      "invalid-configuration",
      `DATA_DIR: expected a folder that can be made and written; ${(error as Error).message}`,
    );
  }
}

/** The first signal calls `drain`, the second `now`. Resolves with the exit code when `drain` is done. */
function untilSignalled(drain: () => Promise<void>, now: () => void): Promise<number> {
  return new Promise((resolve) => {
    let signals = 0;
    const onSignal = () => {
      signals++;
      if (signals === 1) {
        drain().then(
          () => resolve(0),
          (error) => {
            process.stderr.write(`${(error as Error).message}\n`);
            resolve(EXIT_FAILED);
          },
        );
      } else if (signals === 2) {
        now();
      }
    };
    process.on("SIGINT", onSignal);
    process.on("SIGTERM", onSignal);
    // The supervisor's channel breaking means that it died: drain as if it had asked.
    if (process.send !== undefined) process.on("disconnect", onSignal);
  });
}

async function runWorker(): Promise<number> {
  const config = readConfig();
  const log = logTo(config).child({ process: "worker" });
  return withRedis(config, log, async (redisUrl) => {
    const worker = await startGpuWorker({
      config,
      redisUrl,
      createEngine: engineFactory(config, log),
      log,
      onFatal: (error) => {
        log.fatal({ err: error }, "the dispatcher ended by an error of its own; running jobs go back to their queue");
        worker.stop(0).finally(() => process.exit(EXIT_FAILED));
      },
    });
    return untilSignalled(
      () => worker.stop(config.shutdownGraceMs),
      () => void worker.stop(0).catch(() => {}),
    );
  });
}

async function runApi(): Promise<number> {
  const config = readConfig();
  const log = logTo(config).child({ process: "api" });
  return withRedis(config, log, async (redisUrl) => {
    const api = await startApi({ config, redisUrl, log, createBoard });
    say(`API  ${api.url}\n`);
    return untilSignalled(
      () => api.close(),
      () => process.exit(EXIT_FAILED),
    );
  });
}

interface System {
  config: Config;
  redisUrl: string;
  url: string;
  worker: WorkerProcess;
  stop(): Promise<void>;
}

/** Redis if needed, the worker as a child process, and the API in this one; on failure nothing stays up. */
async function startSystem(env: NodeJS.ProcessEnv, log: Logger, dieWithParent = false): Promise<System> {
  const config = readConfig(env);
  const redis = await redisFor(config, log, dieWithParent);
  const worker = new WorkerProcess([import.meta.filename, "worker"], { ...env, REDIS_URL: redis.url }, log);
  try {
    const api = await startApi({ config, redisUrl: redis.url, log: log.child({ process: "api" }), createBoard });
    worker.start();
    return {
      config,
      redisUrl: redis.url,
      url: api.url,
      worker,
      stop: async () => {
        await Promise.all([api.close(), worker.stop()]);
        await redis.stop();
      },
    };
  } catch (error) {
    await redis.stop();
    throw error;
  }
}

async function runStart(): Promise<number> {
  const log = logTo(readConfig());
  const system = await startSystem(process.env, log);
  say(`mathllm is up. Ctrl-C drains and stops; a second one stops at once.
  API          ${system.url}
  Bull Board   ${system.url}/dashboards/queues
  ready?       ${system.url}/readyz
  try it       curl -s ${system.url}/solve -H 'content-type: application/json' -d '{"problem":"What is 17 + 25?"}'
`);
  return untilSignalled(
    () => {
      say("Draining: running jobs end, waiting ones stay in Redis.\n");
      return system.stop();
    },
    () => system.worker.stopNow(),
  );
}

async function runServe(role: Role, { dryRun, force }: { dryRun?: boolean; force?: boolean }): Promise<number> {
  const config = readConfig();
  if (dryRun === true) {
    const { command, notes } = await engineFactory(config, logTo(config))(config.profiles[role]).dryRun(config.profiles[role]);
    if (command !== "") say(`${command}\n`);
    for (const note of notes) process.stderr.write(`${note}\n`);
    return 0;
  }
  const log = logTo(config).child({ process: "serve" });
  await makeDataDir(config.dataDir);
  const gpuId = await gpuIdOf(config);
  const taken = await takeHostLock(gpuId, `mathllm serve ${role}`);
  if ("owner" in taken) {
    throw new MathllmError(
      "gpu-in-use",
      `Expected GPU ${gpuId} to be free; ${ownerName(taken.owner)} holds it. Stop that first, or set GPU_ID to another name for a model server that runs on the CPU.`,
    );
  }
  const fitCheck = new FitCheck({ ...config, forceLoad: config.forceLoad || force === true }, gpuId, log);
  const profile = await fitCheck.check(config.profiles[role], await readVram(gpuId));
  const engine = engineFactory(config, log)(profile);
  const endpoint = await engine.start(profile);
  try {
    const model = await engine.ready(config.engineStartTimeoutMs);
    say(`${role} ${model.modelId} at ${endpoint.baseUrl}/v1, ${model.contextTokens} tokens of context per sequence\n`);
  } catch (error) {
    await engine.stop(0);
    throw error;
  }
  let stopping = false;
  const died = engine.exited.then((exit) => {
    if (stopping) return 0;
    process.stderr.write(`The model server ended (code ${exit.code}, signal ${exit.signal}).\n${exit.lastLines.join("\n")}\n`);
    return EXIT_FAILED;
  });
  const stopped = untilSignalled(
    () => {
      stopping = true;
      return engine.stop(config.shutdownGraceMs);
    },
    () => void engine.stop(0),
  );
  return Promise.race([stopped, died]);
}

/** The API at `url`, or where HOST and PORT say. */
function apiAt(url: string | undefined): ApiClient {
  const config = readConfig();
  return new ApiClient(url ?? `http://${config.host}:${config.port}`);
}

async function runSolve(
  problem: string,
  options: { url?: string; explain?: boolean; priority?: PriorityClass; json?: boolean },
): Promise<number> {
  const api = apiAt(options.url);
  const { jobId } = await api.submit({ problem, explain: options.explain ?? false, priority: options.priority ?? "interactive" });
  const interrupted = new AbortController();
  process.once("SIGINT", () => interrupted.abort(new Error(`Stopped waiting; the job goes on: ${api.baseUrl}/jobs/${jobId}`)));
  const view = await api.finished(jobId, interrupted.signal);
  if (options.json) {
    say(`${JSON.stringify(view)}\n`);
  } else {
    const failed = view.error ?? view.stages.find((stage) => stage.error !== null)?.error;
    if (view.result) say(`${view.result.solution ?? ""}\n\nAnswer: ${view.result.answer ?? "none"}\n`);
    if (view.result?.explanation) say(`\n${view.result.explanation}\n`);
    if (failed) process.stderr.write(`${failed.title}: ${failed.detail}\n`);
  }
  return view.status === "completed" ? 0 : EXIT_FAILED;
}

/** Model servers among a process's children, seen in /proc; a zombie has given its memory back. */
function modelServersOf(pid: number | undefined): number {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean);
    return children.filter((child) => readFileSync(`/proc/${child}/cmdline`, "utf8").includes("embedded-server")).length;
  } catch {
    return 0;
  }
}

async function runDemoCommand(options: { jobs: number; seed: number; json?: boolean }): Promise<number> {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-demo-"));
  const ours = new Set(Object.keys(environmentShape));
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !ours.has(name)));
  const env: NodeJS.ProcessEnv = {
    ...inherited,
    REDIS_SERVER_BIN: process.env.REDIS_SERVER_BIN,
    LOG_LEVEL: process.env.LOG_LEVEL || "error",
    DATA_DIR: folder,
    // On the CPU, under a name of its own: the demo disturbs no GPU and needs none.
    GPU_ID: path.basename(folder),
    STUDENT_NGL: "0",
    TALKER_NGL: "0",
    TELEMETRY_LOG: path.join(folder, "telemetry.jsonl"),
    PORT: "0",
    STUDENT_PORT: "0",
    TALKER_PORT: "0",
  };
  const print = options.json ? (text: string) => process.stderr.write(text) : say;
  const log = logTo({ logLevel: env.LOG_LEVEL! });
  const interrupted = new AbortController();
  const onSignal = () => interrupted.abort(new Error("Interrupted."));
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    print("Starting Redis, the API and the GPU worker (the first run fetches a Redis server, a few seconds) …\n");
    const system = await startSystem(env, log, true);
    const redis = openRedis(system.redisUrl, "producer", () => {});
    try {
      await waitForRedis(redis, 5000);
      const queues = openQueues(redis, () => {});
      const summary = await runDemo({
        api: new ApiClient(system.url),
        queues,
        countModelServers: () => modelServersOf(system.worker.pid),
        jobs: options.jobs,
        seed: options.seed,
        print,
        terminal: !options.json && process.stdout.isTTY === true,
        signal: interrupted.signal,
      });
      if (options.json) say(`${JSON.stringify(summary)}\n`);
      else {
        say(
          `${summary.completed} of ${summary.jobs} completed, ${summary.correct} right (${(100 * summary.accuracy).toFixed(1)} %), ${summary.explained} explained, ` +
            `${summary.swaps} swaps, most models resident at once ${summary.maxResident}, p50 ${summary.p50Ms} ms, p95 ${summary.p95Ms} ms\n`,
        );
      }
      return summary.completed === summary.jobs ? 0 : EXIT_FAILED;
    } finally {
      redis.disconnect();
      if (interrupted.signal.aborted) system.worker.stopNow();
      await system.stop();
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function runDoctor(options: { json?: boolean }): Promise<number> {
  const checks = await diagnose(readConfig());
  if (options.json) say(`${JSON.stringify({ checks })}\n`);
  else for (const check of checks) say(`${check.ok ? "ok  " : "FAIL"}  ${check.name.padEnd(14)}  ${check.detail}\n`);
  return checks.every((check) => check.ok) ? 0 : EXIT_FAILED;
}

interface PlanCommandOptions {
  student?: string;
  talker?: string;
  draft?: string;
  vram?: number;
  free?: number;
  json?: boolean;
  env?: boolean;
}

async function runPlan(options: PlanCommandOptions): Promise<number> {
  const config = readConfig();
  const { vram, free, draft } = options;
  const profileOf = (role: Role) => {
    const { mode, model } = config.profiles[role];
    // A model that is named to be planned for here is none of a server elsewhere.
    const isElsewhere = mode === "ollama" || mode === "remote";
    const planned = options[role] !== undefined && isElsewhere ? "embedded" : mode;
    return { ...config.profiles[role], mode: planned, model: options[role] ?? model };
  };
  const taken = free === undefined ? "All of it is taken as free: say --free for what a desktop leaves." : null;
  const found = vram === undefined ? await detectCard(config.gpuId) : { card: null, processes: [], note: taken };
  const asked = vram === undefined ? null : { kind: "gpu" as const, name: "the card of --vram", totalBytes: vram, freeBytes: vram };
  const card = asked ?? found.card ?? hostCard();
  const plan = await makePlan(
    { student: profileOf("student"), talker: profileOf("talker") },
    {
      card: { ...card, freeBytes: free ?? card.freeBytes },
      processes: found.processes,
      note: found.note,
      draft,
      dataDir: config.dataDir,
      hfToken: config.hfToken,
    },
  );
  say(options.json ? `${JSON.stringify(plan)}\n` : options.env ? plan.env : planReport(plan));
  return plan.safe ? 0 : EXIT_MISSED;
}

async function runHealthcheck(url: string, options: { json?: boolean }): Promise<number> {
  const health = await checkHealth(url, process.env.MODEL_API_KEY);
  say(
    options.json
      ? `${JSON.stringify(health)}\n`
      : `${health.url} serves ${health.models.join(", ")}; one token took ${health.oneTokenMs.toFixed(0)} ms\n`,
  );
  return 0;
}

async function runSmoke(options: { timeoutS: number; url?: string; json?: boolean }): Promise<number> {
  const results = await smoke(apiAt(options.url), options.timeoutS * 1000);
  const ok = results.every((result) => result.ok);
  if (options.json) say(`${JSON.stringify({ ok, results })}\n`);
  else {
    for (const result of results) say(`${result.ok ? "ok  " : "FAIL"}  ${result.problem}  ${result.reason ?? result.answer}\n`);
    say(ok ? "passed: both models answer\n" : "failed\n");
  }
  return ok ? 0 : EXIT_FAILED;
}

async function runGpu(
  command: OperatorCommand | "show",
  options: { url?: string; gpu?: string; model?: Role; json?: boolean },
): Promise<number> {
  const api = apiAt(options.url);
  if (command !== "show") {
    const gpuIds = await commandGpus(api, command, { gpuId: options.gpu, model: options.model });
    say(options.json ? `${JSON.stringify({ command, gpuIds })}\n` : `${command}: told ${gpuIds.join(", ")}\n`);
    return 0;
  }
  const view = await gpuView(api);
  say(options.json ? `${JSON.stringify(view)}\n` : gpuReport(view));
  return 0;
}

async function runLimit(role: Role, limit: RateLimit | null, options: { url?: string }): Promise<number> {
  await limitQueue(apiAt(options.url), role, limit);
  say(limit === null ? `${role}: no rate limit\n` : `${role}: ${limit.max} jobs within ${limit.durationMs} ms\n`);
  return 0;
}

async function runProblems(options: ProblemsOptions): Promise<number> {
  if (options.from === undefined && (options.sample ?? options.map) !== undefined) {
    throw new MathllmError("invalid-configuration", "Expected --from FILE with --sample and --map; came none.");
  }
  const { shortage } = await writeProblems(options, process.stdout);
  if (shortage !== null) process.stderr.write(`${shortage}\n`);
  return shortage === null ? 0 : EXIT_FAILED;
}

interface SimulateOptions extends Omit<TrafficOptions, "load" | "classes"> {
  class: PriorityClass;
  classes?: TrafficOptions["classes"];
  policy: keyof typeof POLICIES;
  load: number;
  backlog?: boolean;
  swapMs: number;
  deadlineMs?: number;
  admission?: boolean;
  replay?: string;
  json?: boolean;
}

async function runSimulate(options: SimulateOptions): Promise<number> {
  const { policy, slots, swapMs, deadlineMs, admission, replay, backlog, load, classes = { [options.class]: 1 } } = options;
  const jobs = replay === undefined ? syntheticTraffic({ ...options, classes, load: backlog ? null : load }) : recordedTraffic(replay);
  const deadlinesMs = { ...DEFAULT_DEADLINES_MS, ...(deadlineMs === undefined ? {} : { [options.class]: deadlineMs }) };
  const result = simulate({ jobs, policy: POLICIES[policy], slots, swapMs: { student: swapMs, talker: swapMs }, deadlinesMs, admission });
  say(options.json ? `${JSON.stringify({ policy, ...result })}\n` : simulationReport(policy, result));
  return 0;
}

function number(low: number, high: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= low && value <= high)) throw new InvalidArgumentError(`Expected a number from ${low} to ${high}.`);
    return value;
  };
}

function wholeNumber(low: number, high: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < low || value > high)
      throw new InvalidArgumentError(`Expected a whole number from ${low} to ${high}.`);
    return value;
  };
}

function oneOf<T extends string>(choices: readonly T[]) {
  return (text: string): T => {
    if (!choices.includes(text as T)) throw new InvalidArgumentError(`Expected one of ${choices.join(", ")}.`);
    return text as T;
  };
}

const CLASS_MIX_EXAMPLE = "interactive:0.2,normal:0.5,batch:0.3";

function classMix(text: string): TrafficOptions["classes"] {
  const mix = parseClassMix(text);
  if (mix === null) throw new InvalidArgumentError(`Expected shares that add up to 1, like ${CLASS_MIX_EXAMPLE}.`);
  return mix;
}

function memorySize(text: string): number {
  const bytes = parseMemory(text);
  if (bytes === null) throw new InvalidArgumentError("Expected an amount of memory such as 12GiB, 12227MiB or bytes.");
  return bytes;
}

function familyList(text: string): Family[] {
  const names = text.split(",").map((name) => name.trim());
  const unknown = names.find((name) => !FAMILIES.includes(name as Family));
  if (unknown !== undefined) throw new InvalidArgumentError(`Expected families among ${FAMILIES.join(", ")}; came "${unknown}".`);
  return names as Family[];
}

function fieldMap(text: string): FieldMap {
  const pairs = text.split(",").map((pair) => /^(problem|answer|id)=(.+)$/.exec(pair.trim()));
  if (pairs.includes(null)) throw new InvalidArgumentError("Expected the names of fields, like problem=q,answer=a,id=n.");
  return Object.fromEntries(pairs.map((pair) => [pair![1], pair![2]]));
}

function rateLimit(text: string): RateLimit | null {
  const limit = parseRateLimit(text);
  if (limit === undefined) throw new InvalidArgumentError("Expected a rate such as 10/s, 100/min or 5/h, or off.");
  return limit;
}

function cli(run: (action: () => Promise<number>) => Promise<void>): Command {
  const program = new Command("mathllm")
    .description("Maths problems in, solutions and explanations out: one GPU, two models, never both at once.")
    .exitOverride()
    .showHelpAfterError("(--help shows what is expected)")
    .addHelpText(
      "after",
      "\nExit codes: 0 ok, 1 failed, 2 wrong usage or configuration.\nEvery setting is an environment variable: see .env.example.",
    );
  program
    .command("demo")
    .description("run the whole system for a minute on the shipped models and show what happens")
    .option("--jobs <count>", "how many problems", wholeNumber(40, 660), 40)
    .option("--seed <number>", "which problems", wholeNumber(0, 4_294_967_295), 1)
    .option("--json", "print one summary object, everything else on stderr")
    .action((options) => run(() => runDemoCommand(options)));
  program
    .command("start")
    .description("run Redis (if REDIS_URL is not set), the API and the worker")
    .action(() => run(runStart));
  program
    .command("api")
    .description("run the API alone")
    .action(() => run(runApi));
  program
    .command("worker")
    .description("run the GPU worker alone")
    .action(() => run(runWorker));
  program
    .command("serve")
    .description("run one model server alone, with its OpenAI-compatible API")
    .argument("<role>", ROLES.join(" or "), oneOf(ROLES))
    .option("--force", "load it even though it is reckoned not to fit")
    .option("--dry-run", "print the command line that would be run, and run nothing")
    .action((role, options) => run(() => runServe(role, options)));
  program
    .command("healthcheck")
    .description("ask an OpenAI-compatible model server for its models and for one token")
    .argument("<url>", "http://localhost:8009/v1")
    .option("--json", "print one object")
    .action((url, options) => run(() => runHealthcheck(url, options)));
  program
    .command("smoke")
    .description("a handful of problems through both models of a running system: pass or fail")
    .option("--timeout-s <seconds>", "for all of them together", number(1, 86_400), 600)
    .option("--url <url>", "the API's address (default: from HOST and PORT)")
    .option("--json", "print one object")
    .action((options) => run(() => runSmoke(options)));
  program
    .command("solve")
    .description("send one problem to a running API and print its solution")
    .argument("<problem>", "the problem's text")
    .option("--explain", "let the Talker explain the solution")
    .option("--priority <class>", PRIORITY_CLASSES.join(", "), oneOf(PRIORITY_CLASSES))
    .option("--url <url>", "the API's address (default: from HOST and PORT)")
    .option("--json", "print the finished job view")
    .action((problem, options) => run(() => runSolve(problem, options)));
  program
    .command("problems")
    .description("write problems with their answers as JSONL: made ones, or a bank's (JSONL or CSV)")
    .option("--count <count>", "how many are made", wholeNumber(1, 1_000_000_000), 100)
    .option("--seed <number>", "which ones", wholeNumber(0, 4_294_967_295), 1)
    .option("--families <names>", "of these families only, like addition,fraction sum", familyList)
    .option("--hard", "numbers outside the ranges that the Student was trained on")
    .option("--texts <which>", `${TEXTS.join(", ")}: texts that training never saw, may have seen, or both`, oneOf(TEXTS), TEXTS[0])
    .addOption(new Option("--from <file>", "take them from this bank").conflicts(["count", "families", "hard", "texts"]))
    .option("--sample <count>", "that many of its problems, chosen by the seed (default: all)", wholeNumber(1, 10_000_000))
    .option("--map <fields>", "what its fields are called, like problem=q,answer=a", fieldMap)
    .option("-o, --output <file>", "write a file (default: stdout)")
    .action((options) => run(() => runProblems(options)));
  const gpu = program.command("gpu").description("look at the GPUs of a running system, or tell their workers what to do");
  const gpuCommand = (name: OperatorCommand | "show", description: string) =>
    gpu
      .command(name, { isDefault: name === "show" })
      .description(description)
      .option("--gpu <id>", "only this GPU (default: all)")
      .option("--url <url>", "the API's address (default: from HOST and PORT)")
      .option("--json", "print one object");
  gpuCommand("show", "resident models, what was decided and why, queues, guardrails").action((options) =>
    run(() => runGpu("show", options)),
  );
  gpuCommand("drain", "take no more jobs until resumed; running ones end").action((options) => run(() => runGpu("drain", options)));
  gpuCommand("resume", "take jobs again").action((options) => run(() => runGpu("resume", options)));
  gpuCommand("release", "unload the model; the next job loads one again").action((options) => run(() => runGpu("release", options)));
  gpuCommand("reset", "forget the answers to out-of-memory and close the circuits").action((options) =>
    run(() => runGpu("reset", options)),
  );
  gpuCommand("swap", "load this model next, whatever the policy says")
    .argument("<model>", ROLES.join(" or "), oneOf(ROLES))
    .action((model, options) => run(() => runGpu("swap", { ...options, model })));
  program
    .command("limit")
    .description("limit how many jobs of a queue are begun, from now on and through restarts")
    .argument("<queue>", ROLES.join(" or "), oneOf(ROLES))
    .argument("<rate>", "10/s, 100/min, 5/h, or off", rateLimit)
    .option("--url <url>", "the API's address (default: from HOST and PORT)")
    .action((role, limit, options) => run(() => runLimit(role, limit, options)));
  program
    .command("simulate")
    .description("play a swap policy against synthetic or recorded traffic, without a GPU")
    .option("--policy <name>", Object.keys(POLICIES).join(", "), oneOf(Object.keys(POLICIES) as (keyof typeof POLICIES)[]), "ge")
    .option("--jobs <count>", "how many jobs", wholeNumber(1, 10_000_000), 20_000)
    .option("--service-ms <ms>", "mean time of a job on its model", number(0.001, 86_400_000), 4000)
    .option("--service-cv <number>", "its coefficient of variation: 1 exponential, 0 constant", number(0, 20), 1)
    .option("--swap-ms <ms>", "time of a swap", number(0, 86_400_000), 10_000)
    .option("--slots <count>", "jobs at once", wholeNumber(1, 256), 1)
    .option("--mix <share>", "the Student's share of the jobs", number(0, 1), 0.5)
    .option("--load <rho>", "offered load: arrival rate · service time / slots", number(0.001, 100), 0.7)
    .option("--backlog", "all jobs are there at time 0 (instead of --load)")
    .option("--burst <count>", "jobs that arrive together", wholeNumber(1, 100_000), 1)
    .option("--class <name>", `class of the jobs: ${PRIORITY_CLASSES.join(", ")}`, oneOf(PRIORITY_CLASSES), "normal")
    .addOption(
      new Option("--classes <mix>", `classes of the jobs, like ${CLASS_MIX_EXAMPLE} (instead of --class)`)
        .argParser(classMix)
        .conflicts(["class", "deadlineMs"]),
    )
    .option("--deadline-ms <ms>", "that class's deadline (default: the class's)", number(0, 86_400_000))
    .option("--admission", "turn away jobs whose estimated wait is beyond their deadline, as the API does")
    .option("--replay <file>", "the jobs of a telemetry file instead of synthetic ones")
    .option("--seed <number>", "of the random traffic", wholeNumber(0, 4_294_967_295), 1)
    .option("--json", "print one object")
    .action((options) => run(() => runSimulate(options)));
  program
    .command("plan")
    .description("say what fits on the card before anything is loaded, with settings that do")
    .option("--student <model>", "a GGUF file, a model's folder, owner/name or hf:owner/name:quantisation (default: STUDENT_MODEL)")
    .option("--talker <model>", "the same for the Talker (default: TALKER_MODEL)")
    .option("--draft <model>", "check this draft for the Student")
    .option("--vram <size>", "plan for a card of that size, such as 12GiB or 12227MiB (default: the card that is there)", memorySize)
    .option("--free <size>", "what is free on it (default: what nvidia-smi says, or all)", memorySize)
    .option("--env", "print only the settings, for a .env file")
    .addOption(new Option("--json", "print the plan as one object").conflicts("env"))
    .addHelpText("after", "\nExit codes: 0 settings that fit exist for both models, 3 they don't.")
    .action((options) => run(() => runPlan(options)));
  program
    .command("doctor")
    .description("check everything a start needs and say what to do")
    .option("--json", "print the checks as one object")
    .action((options) => run(() => runDoctor(options)));
  return program;
}

async function main(): Promise<number> {
  if (existsSync(".env")) process.loadEnvFile(".env");
  let code = 0;
  try {
    await cli(async (action) => {
      code = await action();
    }).parseAsync();
    return code;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    if (error instanceof MathllmError) {
      process.stderr.write(`${error.message}\n`);
      return error.code === "invalid-configuration" ? EXIT_USAGE : EXIT_FAILED;
    }
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    return EXIT_FAILED;
  }
}

process.exit(await main());
