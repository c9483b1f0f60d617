import type { Config } from "../../queues/config.ts";
import type { Role } from "../../queues/names.ts";
import type { LoadOptions } from "../load/load-options.ts";
import type { LoadRecord } from "../load/record.ts";
import type { LoadSummary } from "../load/summary.ts";
import type { Evidence, Graphs, Phase, PhaseId, RunRow } from "../report/schema.ts";
import type { MeasuredSystem } from "./measured-system.ts";
import type { ProcessMemory } from "./process-memory.ts";
import type { Settings } from "./settings.ts";
import type { Sizes } from "./sizes.ts";
import type { TelemetryRecords } from "./telemetry-file.ts";

/** One run of the load generator within a phase. */
export interface RunSpec {
  /** Names its folder and its row: unique in its phase. */
  id: string;
  label: string;
  role: Role | null;
  shape: RunRow["shape"];
  /** What of the configuration this run is about. */
  settings?: RunRow["settings"];
  plan: Omit<LoadOptions, "url" | "outDir" | "seed">;
  /** Default: the run's own seed. Runs that are to be compared send the same problems. */
  seed?: number;
  /** E2E of a good request. */
  sloMs?: number;
}

export interface Measured {
  row: RunRow;
  summary: LoadSummary;
  records: LoadRecord[];
  telemetry: TelemetryRecords;
  /** The worker's file, relative to the report. */
  telemetryFile: string;
  /** Of the API's process, once a second. */
  apiMemory: ProcessMemory[];
}

/** Requests a second that a model served with all its sequences busy. */
export type Capacities = Partial<Record<Role, number>>;

export interface PhaseContext {
  id: PhaseId;
  sizes: Sizes;
  seed: number;
  /** Environment settings that the phases before chose, on top of the user's own. */
  settings: Settings;
  /** The configuration with them. */
  config: Config;
  /** The user's options for the phases. */
  choices: PhaseChoices;
  capacities: Capacities;
  /** Starts the product with more settings on top, hands it over, and stops it however `body` ends. */
  withSystem<T>(name: string, settings: Settings, body: (system: MeasuredSystem) => Promise<T>): Promise<T>;
  /** Loads the model that the run needs first, and warms it up. */
  measure(system: MeasuredSystem, spec: RunSpec): Promise<Measured>;
  say(line: string): void;
  signal: AbortSignal;
}

export interface PhaseChoices {
  /** Phase B. */
  maxNumSeqs: number[];
  /** Phase D: settings of option B; empty: what this machine offers. */
  talkerB: Settings;
}

/** What a phase leaves: its part of the report, and what the phases after it go on with. */
export interface PhaseOutcome {
  phase: Phase;
  /** Settings it chose. */
  settings: Settings;
  /** Why it chose each. */
  reasons: Record<string, string>;
  capacities: Capacities;
  graphs: Partial<Graphs>;
  resources: Evidence["resources"];
  limits: Evidence["limits"];
}

export type PhaseRunner = (context: PhaseContext) => Promise<Omit<PhaseOutcome, "resources">>;
