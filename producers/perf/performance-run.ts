import { mkdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { type Config, readConfig } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { findRedisBinary } from "../../queues/redis-binary.ts";
import { isSecretSetting, SETTING_NAMES } from "../../queues/settings.ts";
import { runLoad } from "../load/load-run.ts";
import { FORMULAS } from "../load/metrics.ts";
import { compareRecords } from "../report/compare.ts";
import { readRecords } from "../report/recorded-runs.ts";
import { completeReport } from "../report/report.ts";
import { type ComparisonRow, type Evidence, NO_GRAPHS, PHASE_IDS, type PhaseId, type Report } from "../report/schema.ts";
import { Checkpoint, FINAL_FOLDER, fingerprintOf, phaseFolder, type RunIdentity } from "./checkpoint.ts";
import { readCommit, readHardware } from "./hardware.ts";
import { MeasuredSystem } from "./measured-system.ts";
import { firstModelOf, measureRun } from "./measurement.ts";
import type { Capacities, Measured, PhaseChoices, PhaseContext, PhaseOutcome, PhaseRunner } from "./phase.ts";
import { baselineRuns, runPhaseA } from "./phase-a.ts";
import { runPhaseB } from "./phase-b.ts";
import { runPhaseC } from "./phase-c.ts";
import { runPhaseD } from "./phase-d.ts";
import { runPhaseE } from "./phase-e.ts";
import { runPhaseF } from "./phase-f.ts";
import { runPhaseG } from "./phase-g.ts";
import { changedSettings, envText, type Settings } from "./settings.ts";
import { FULL_SIZES, QUICK_SIZES, type Sizes } from "./sizes.ts";
import { resourcesOf } from "./traces.ts";

const RUNNERS: Record<PhaseId, [title: string, PhaseRunner]> = {
  A: ["Baseline", runPhaseA],
  B: ["Sequences at once and KV cache", runPhaseB],
  C: ["Speculative decoding", runPhaseC],
  D: ["Talker deployment", runPhaseD],
  E: ["Sustained load, telemetry and guardrails", runPhaseE],
  F: ["Cache and throughput", runPhaseF],
  G: ["Mixed traffic and swap policies", runPhaseG],
};

/** Set for each measured system anew. */
const OWN = [
  "DATA_DIR",
  "TELEMETRY_LOG",
  "PORT",
  "HOST",
  "STUDENT_PORT",
  "TALKER_PORT",
  "LOG_LEVEL",
  "IDLE_UNLOAD_SECONDS",
  "REDIS_SERVER_BIN",
];

/** The runs that stand for before and after. */
const COMPARED_RUNS = ["stated-1", "stated-4"];

export interface PerformanceRunOptions {
  /** The command line's file. */
  main: string;
  outDir: string;
  phases: PhaseId[];
  quick: boolean;
  /** Default: those of `quick`, or the full ones. */
  sizes?: Sizes;
  seed: number;
  choices: PhaseChoices;
  env: NodeJS.ProcessEnv;
  command: string;
  /** Of mathllm. */
  version: string;
  say: (line: string) => void;
  signal: AbortSignal;
}

/**
 * Measures the phases, each on systems of its own, and resolves with the report. A phase that was measured in this folder before is not
 * measured again; one that fails is reported as failed, and the others go on. Interrupted by `signal`, the report holds what was measured.
 * @throws MathllmError `invalid-configuration`: the settings are wrong, or the folder holds a run of other settings.
 */
export class PerformanceRun {
  readonly #options: PerformanceRunOptions;
  readonly #sizes: Sizes;
  readonly #checkpoint: Checkpoint;
  readonly #config: Config;
  /** What of the environment is ours and set. */
  readonly #given: Settings;
  #engines: Evidence["versions"]["engines"] = [];

  constructor(options: PerformanceRunOptions) {
    this.#options = { ...options, outDir: path.resolve(options.outDir) };
    this.#sizes = options.sizes ?? (options.quick ? QUICK_SIZES : FULL_SIZES);
    this.#checkpoint = new Checkpoint(this.#options.outDir);
    this.#config = readConfig(options.env);
    const secret = Object.keys(options.choices.talkerB).find(isSecretSetting);
    if (secret !== undefined) {
      throw new MathllmError(
        "invalid-configuration",
        `--talker-b: expected no secret, since the report shows its settings and the command; got ${secret}. Set it in the environment.`,
      );
    }
    const names = SETTING_NAMES.filter((name) => !isSecretSetting(name) && !OWN.includes(name));
    this.#given = Object.fromEntries(names.flatMap((name) => (options.env[name] ? [[name, options.env[name]!]] : [])));
  }

  async run(): Promise<Report> {
    const { seed, quick, command, phases, say, signal, main, version } = this.#options;
    const [hardware, commit] = await Promise.all([readHardware(), readCommit(main)]);
    const redis = await findRedisBinary({ env: this.#options.env, log: () => {} });
    const startedAt = Date.now();
    const identity = await this.#checkpoint.open({
      id: new Date(startedAt).toISOString().replace(/[:.]/g, "-"),
      startedAt,
      mode: quick ? "quick" : "full",
      seed,
      conditions: {
        ...this.#given,
        version,
        commit: commit ?? "unknown",
        node: process.versions.node,
        cpu: `${hardware.cpuCores} × ${hardware.cpuModel}`,
        gpu: hardware.gpus.map(({ name }) => name).join(", ") || "none",
        maxNumSeqsTried: this.#options.choices.maxNumSeqs.join(","),
        ...Object.fromEntries(Object.entries(this.#options.choices.talkerB).map(([name, value]) => [`optionB.${name}`, value])),
      },
      resumed: 0,
      commands: [command],
      phasesAsked: phases,
    });
    const outcomes = new Map<PhaseId, PhaseOutcome>();
    for (const id of PHASE_IDS) {
      const earlier = await this.#checkpoint.outcome(id);
      if (earlier !== null) say(`phase ${id}: measured before`);
      const outcome = earlier ?? (phases.includes(id) && !signal.aborted ? await this.#phase(id, outcomes) : null);
      if (outcome !== null) outcomes.set(id, outcome);
    }
    const chosen = mergedSettings(outcomes);
    const beforeAfter = await this.#beforeAfter(outcomes, chosen);
    return completeReport({
      version: 1,
      run: this.#runOf(identity),
      hardware,
      versions: { mathllm: version, node: process.versions.node, redis: redis.version, engines: this.#engines },
      phases: PHASE_IDS.map((id) => outcomes.get(id)?.phase ?? this.#unmeasured(id)),
      beforeAfter,
      resources: [...outcomes.values()].flatMap(({ resources }) => resources),
      limits: [...outcomes.values()].flatMap(({ limits }) => limits),
      finalConfiguration: await this.#finalConfiguration(outcomes, chosen),
      graphs: mergedGraphs([...outcomes.values()]),
      formulas: FORMULAS.map(({ name, formula }) => ({ name, formula })),
    });
  }

  async #phase(id: PhaseId, before: Map<PhaseId, PhaseOutcome>): Promise<PhaseOutcome | null> {
    const { say, signal } = this.#options;
    const [title, run] = RUNNERS[id];
    say(`phase ${id}: ${title}`);
    const measured: Measured[] = [];
    const startedAt = Date.now();
    const times = () => ({ startedAt, finishedAt: Date.now() });
    // What an interruption left is no measurement.
    await rm(path.join(this.#options.outDir, phaseFolder(id)), { recursive: true, force: true });
    try {
      const outcome = await run(this.#context(id, before, measured));
      const whole: PhaseOutcome = { ...outcome, phase: { ...outcome.phase, ...times() }, resources: resourcesOf(id, measured) };
      await this.#checkpoint.keep(whole);
      return whole;
    } catch (error) {
      if (signal.aborted) return null;
      const reason = (error as Error).message.slice(0, 4000);
      say(`phase ${id} failed: ${reason}`);
      return {
        phase: { ...this.#unmeasured(id), status: "failed", reason, runs: measured.map(({ row }) => row), ...times() },
        settings: {},
        reasons: {},
        capacities: {},
        graphs: {},
        resources: resourcesOf(id, measured),
        limits: [],
      };
    }
  }

  #context(id: PhaseId, before: Map<PhaseId, PhaseOutcome>, measured: Measured[]): PhaseContext {
    const { seed, choices, say, signal } = this.#options;
    const settings = mergedSettings(before);
    const capacities: Capacities = Object.assign({}, ...[...before.values()].map((outcome) => outcome.capacities));
    return {
      id,
      sizes: this.#sizes,
      seed,
      settings,
      config: readConfig({ ...this.#options.env, ...settings }),
      choices,
      capacities,
      withSystem: (name, more, body) => this.#withSystem(path.join(phaseFolder(id), name), { ...settings, ...more }, body),
      measure: async (system, spec) => {
        const run = await this.#measure(system, spec, phaseFolder(id), seed + PHASE_IDS.indexOf(id) + 1);
        measured.push(run);
        return run;
      },
      say: (line) => say(`  ${line}`),
      signal,
    };
  }

  async #withSystem<T>(name: string, settings: Settings, body: (system: MeasuredSystem) => Promise<T>): Promise<T> {
    const { main, outDir, env, signal } = this.#options;
    signal.throwIfAborted();
    const folder = path.join(outDir, name);
    await mkdir(folder, { recursive: true });
    const modelsFolder = path.join(this.#config.dataDir, "models");
    const system = await MeasuredSystem.start({ main, name: path.basename(name), folder, modelsFolder, settings, env });
    try {
      return await body(system);
    } finally {
      await this.#noteEngines(system);
      await system.stop();
    }
  }

  async #measure(system: MeasuredSystem, spec: Parameters<PhaseContext["measure"]>[1], phase: string, seed: number): Promise<Measured> {
    const { outDir, signal } = this.#options;
    await system.load(firstModelOf(spec.plan.mix), this.#config.engineStartTimeoutMs);
    const { mix, maxTokens } = spec.plan;
    const warmUp = { mix, maxTokens, arrivals: { pattern: "closed" as const, concurrency: 2 }, requests: this.#sizes.warmUpRequests };
    // Other problems than the run's own, so that nothing of it is in a prefix cache.
    await runLoad({ ...warmUp, seed: (spec.seed ?? seed) + 1000, url: system.url, outDir: null }, { signal });
    await system.load(firstModelOf(spec.plan.mix), this.#config.engineStartTimeoutMs);
    return measureRun(system, spec, { outDir, phaseFolder: phase, seed, signal });
  }

  /** The final configuration, measured as the baseline was. */
  async #beforeAfter(outcomes: Map<PhaseId, PhaseOutcome>, chosen: Settings): Promise<Evidence["beforeAfter"]> {
    const { outDir, seed, signal, say } = this.#options;
    const baseline = outcomes.get("A");
    if (baseline === undefined || baseline.phase.status !== "measured")
      return { rows: [], reason: "The baseline (phase A) was not measured." };
    if (signal.aborted) return { rows: [], reason: "The run was interrupted before the final configuration was measured." };
    const earlier = await this.#checkpoint.comparison(chosen);
    if (earlier !== null) {
      say("final configuration: measured before");
      return earlier;
    }
    say("final configuration, measured as the baseline was");
    await rm(path.join(outDir, FINAL_FOLDER), { recursive: true, force: true });
    try {
      const rows: ComparisonRow[] = [];
      await this.#withSystem(path.join(FINAL_FOLDER, "system"), chosen, async (system) => {
        for (const spec of baselineRuns({ sizes: this.#sizes, seed }).filter(({ id }) => COMPARED_RUNS.includes(id))) {
          const before = baseline.phase.runs.find(({ id }) => id === spec.id)?.records;
          const after = await this.#measure(system, spec, FINAL_FOLDER, seed);
          if (before != null)
            rows.push(...compareRecords(spec.label, await readRecords(path.join(outDir, before)), after.records, { seed }));
        }
      });
      const beforeAfter = { rows, reason: rows.length === 0 ? "Too few requests to compare." : null };
      await this.#checkpoint.keepComparison(chosen, beforeAfter);
      return beforeAfter;
    } catch (error) {
      if (signal.aborted) return { rows: [], reason: "The run was interrupted while the final configuration was measured." };
      return { rows: [], reason: `The final configuration could not be measured: ${(error as Error).message}`.slice(0, 4000) };
    }
  }

  async #finalConfiguration(outcomes: Map<PhaseId, PhaseOutcome>, chosen: Settings): Promise<Evidence["finalConfiguration"]> {
    if (outcomes.size === 0) return null;
    const final = { ...this.#given, ...chosen };
    const env = envText(final, "What the performance run chose, on top of what was set before. Copy it to .env. Secrets are left out.");
    await writeFile(path.join(this.#options.outDir, "final.env"), env, { mode: 0o600 });
    const reasons = Object.assign({}, ...[...outcomes.values()].map((outcome) => outcome.reasons)) as Record<string, string>;
    const changes = changedSettings(this.#given, final).map((change) => ({ ...change, reason: reasons[change.name] ?? "chosen" }));
    return { env, changes };
  }

  async #noteEngines(system: MeasuredSystem): Promise<void> {
    const [gpu] = (await system.gpu().catch(() => null))?.gpus ?? [];
    if (gpu === undefined || this.#engines.length > 0) return;
    this.#engines = (["student", "talker"] as const).map((role) => {
      const { model, digest, contextTokens, capacity } = gpu.models[role];
      const engine = this.#config.profiles[role].mode;
      return { role, engine, version: null, model, digest, contextTokens, maxNumSeqs: capacity.maxNumSeqs };
    });
  }

  #runOf(identity: RunIdentity): Evidence["run"] {
    const { phases, signal } = this.#options;
    return {
      id: identity.id,
      startedAt: identity.startedAt,
      finishedAt: Date.now(),
      mode: identity.mode,
      resumed: identity.resumed,
      interrupted: signal.aborted,
      phasesAsked: [...new Set([...identity.phasesAsked, ...phases])].sort(),
      seeds: { run: identity.seed },
      commands: identity.commands,
      commit: identity.conditions.commit === "unknown" ? null : identity.conditions.commit!,
      fingerprint: fingerprintOf(identity),
      fingerprintOf: identity.conditions,
    };
  }

  #unmeasured(id: PhaseId): Evidence["phases"][number] {
    const { phases, signal } = this.#options;
    const reason = !phases.includes(id)
      ? "It was not asked for."
      : signal.aborted
        ? "The run was interrupted; the same command goes on."
        : null;
    return {
      id,
      title: RUNNERS[id][0],
      status: "skipped",
      reason: reason ?? "It was not reached.",
      startedAt: null,
      finishedAt: null,
      configuration: {},
      targets: [],
      runs: [],
      decision: null,
      notes: [],
      evidence: [],
    };
  }
}

/** What the phases chose, a later one over an earlier one. */
function mergedSettings(outcomes: Map<PhaseId, PhaseOutcome>): Settings {
  return Object.assign({}, ...[...outcomes.values()].map(({ settings }) => settings));
}

/** Lists are put together; of single graphs the last is shown. */
function mergedGraphs(outcomes: readonly PhaseOutcome[]): Evidence["graphs"] {
  const merged = structuredClone(NO_GRAPHS);
  for (const { graphs } of outcomes) {
    for (const [name, graph] of Object.entries(graphs) as [keyof typeof merged, unknown][]) {
      const before: unknown = merged[name];
      Object.assign(merged, { [name]: Array.isArray(before) ? [...before, ...(graph as unknown[])] : (graph ?? before) });
    }
  }
  return merged;
}

/** Phase letters, such as `A,C` or `A-D`. */
export function parsePhases(texts: readonly string[]): PhaseId[] {
  const letters = texts.flatMap((text) => text.toUpperCase().split(/[\s,]+/)).filter((text) => text !== "");
  const ids = letters.flatMap((letter) => {
    const [, from, to] = /^([A-G])(?:-([A-G]))?$/.exec(letter) ?? [];
    if (from === undefined)
      throw new MathllmError(
        "invalid-configuration",
        `Expected phases among ${PHASE_IDS.join(", ")}, such as A,C or A-D; came "${letter}".`,
      );
    const last = PHASE_IDS.indexOf((to ?? from) as PhaseId);
    return PHASE_IDS.slice(PHASE_IDS.indexOf(from as PhaseId), last + 1);
  });
  return ids.length === 0 ? [...PHASE_IDS] : PHASE_IDS.filter((id) => ids.includes(id));
}
