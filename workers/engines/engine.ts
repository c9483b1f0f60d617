import type { ModelProfile } from "../../queues/config.ts";

/** A model server is started with this in its environment: its parent's `pid:startTicks`. So one that outlives its parent is known for what it is. */
export const PARENT_VARIABLE = "MATHLLM_PARENT";

/** A running model server: a process with a port that speaks the OpenAI chat API. */
export interface Endpoint {
  /** `http://127.0.0.1:8009`, without `/v1`. */
  baseUrl: string;
  /** What it wants as a bearer token; undefined: nothing. */
  apiKey: string | undefined;
  /** null for a server that someone else runs. */
  pid: number | null;
  /** Field 22 of /proc/PID/stat (clock ticks since boot), so that a recycled pid is not mistaken for the server; null off Linux. */
  startTicks: number | null;
}

/** What a model server says of itself when it is ready. */
export interface ReadyModel {
  /** The name the server answers to. */
  modelId: string;
  /** SHA-256 of the weight file, hex. */
  digest: string;
  /** Tokens per sequence: the smaller of `maxModelLen` and what the model was trained for. */
  contextTokens: number;
}

/** How far a preparation is, bytes. */
export interface PreparationProgress {
  /** `waiting`: another process is fetching the same. */
  doing: "downloading" | "checking" | "waiting";
  doneBytes: number;
  /** null while it is not known. */
  totalBytes: number | null;
}

export interface PrepareOptions {
  signal?: AbortSignal;
  onProgress?: (progress: PreparationProgress) => void;
  /** Resolves when it may fetch over the network: one model at a time, the one needed first. */
  downloadTurn?: () => Promise<void>;
}

export interface PreparedModel {
  /** Paths of what a load reads on this machine; while they are unchanged the model needs no new preparation. */
  files: string[];
}

export interface Footprint {
  weightsBytes: number;
  contextBytes: number;
}

/** Counters since the start of the server; null where the engine does not report one. */
export interface EngineMetrics {
  requestsRunning: number;
  requestsWaiting: number | null;
  promptTokensTotal: number;
  completionTokensTotal: number;
  draftTokensTotal: number | null;
  draftAcceptedTokensTotal: number | null;
  /** Share of the KV cache in use, 0 to 1. */
  kvCacheUsage: number | null;
  /** Requests put off for want of KV cache. */
  preemptionsTotal: number | null;
  prefixCacheHitTokensTotal: number | null;
  prefixCacheQueryTokensTotal: number | null;
}

export interface EngineExit {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** The last lines the server printed. */
  lastLines: string[];
}

/**
 * One model server of one profile. Used once: start, ready, stop. What it reads has been prepared before, by this engine or another one
 * of the same profile, so that `start` waits for no network and reads no weights to check them.
 *
 *   new ──start()──► starting ──ready()──► ready ──stop()──► stopped
 *                        └── the process exits by itself ──► exited (see `exited`)
 */
export interface Engine {
  /**
   * Brings all that `start` needs onto this machine, and checks it: nothing is started and no memory of the GPU is taken. What was done
   * before is found again. Throws `model-missing`, `model-invalid`, `model-download-failed`, `engine-missing`, `invalid-configuration`,
   * and the signal's reason once aborted; what was fetched by then is kept.
   */
  prepare(profile: ModelProfile, options?: PrepareOptions): Promise<PreparedModel>;
  /** Spawns the server; resolves when its process exists. Throws `model-missing`, `model-invalid`, `port-in-use`. */
  start(profile: ModelProfile): Promise<Endpoint>;
  /**
   * Resolves when the server has loaded the model and has generated one token. Throws
   * `engine-failed` with the last lines when it exits or `timeoutMs` passes, `out-of-memory` when that is why.
   */
  ready(timeoutMs: number): Promise<ReadyModel>;
  /** Resolves only when the process is gone and its memory with it; kills it after `graceMs`. Safe to call twice and before `ready`. */
  stop(graceMs: number): Promise<void>;
  /** What `start` would run, as it could be typed in a shell, and what of the settings was put into other words; nothing is started. */
  dryRun(profile: ModelProfile): Promise<{ command: string; notes: string[] }>;
  /** Only where a model outlives its worker in someone else's server: frees what an earlier worker of this GPU left loaded. */
  clear?(profile: ModelProfile): Promise<void>;
  /** Only where the engine can: gives the GPU's memory back but for a residual, and keeps the process. Rejects when it did not fall asleep. */
  sleep?(level: 1 | 2): Promise<void>;
  /** The reverse; resolves when it can answer again. */
  wake?(timeoutMs: number): Promise<void>;
  /** Resolves when the running server answers its health check; rejects after `timeoutMs`. */
  health(timeoutMs: number): Promise<void>;
  /** Bytes the profile would need, read from the model's own file, before anything is loaded. */
  footprint(profile: ModelProfile): Promise<Footprint>;
  metrics(): Promise<EngineMetrics>;
  /** Resolves when the process has exited, asked to or not. Never rejects. */
  readonly exited: Promise<EngineExit>;
}

/** The one NVIDIA GPU that a model server may use, with its number in the order of the PCI bus; `none` hides them all. */
export type VisibleGpu = { uuid: string; index: number | null } | "none";

/** `gpu`: undefined leaves the choice to the server. */
export type EngineFactory = (profile: ModelProfile, gpu?: VisibleGpu) => Engine;
