import path from "node:path";
import { GgufInsights, readGgufFileInfo } from "node-llama-cpp";
import type { Logger } from "pino";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { bearer, modelServerKey } from "./authorization.ts";
import { ChatClient } from "./chat-client.ts";
import { childEnvironment } from "./child-environment.ts";
import type { EmbeddedProfile, FromChild, ToChild } from "./embedded-messages.ts";
import type { Endpoint, Engine, EngineExit, EngineMetrics, Footprint, PreparedModel, PrepareOptions, ReadyModel } from "./engine.ts";
import type { ModelFile } from "./gguf-file.ts";
import { prepareGguf, presentModelFile, resolveModelFile } from "./model-file.ts";
import { ServerProcess } from "./server-process.ts";

const LISTEN_TIMEOUT_MS = 60_000;
const SERVER_SCRIPT = path.join(import.meta.dirname, "embedded-server.ts");
const DRAFTING_THREADS = 4;

export interface EmbeddedEngineOptions {
  dataDir: string;
  hfToken?: string;
  /** What the library's estimate of a load may come to at most, bytes. */
  ramCapBytes?: number;
  vramCapBytes?: number;
  /** The child's; unset: what of ours it may see. */
  environment?: NodeJS.ProcessEnv;
  log?: Logger;
}

/** A model server of our own around node-llama-cpp, as a child process: any GGUF, on CPU or GPU. */
export function createEmbeddedEngine(options: EmbeddedEngineOptions): Engine {
  return new EmbeddedEngine(options);
}

class EmbeddedEngine implements Engine {
  readonly #options: EmbeddedEngineOptions;
  readonly #process: ServerProcess;
  readonly #stopped = new AbortController();
  #baseUrl = "";
  #apiKey = "";
  #modelId = "";
  #file: ModelFile | undefined;

  constructor(options: EmbeddedEngineOptions) {
    this.#options = options;
    this.#process = new ServerProcess(options.log);
  }

  get exited(): Promise<EngineExit> {
    return this.#process.exited;
  }

  prepare(profile: ModelProfile, options: PrepareOptions = {}): Promise<PreparedModel> {
    const { dataDir, hfToken } = this.#options;
    return prepareGguf(profile, { ...options, dataDir, hfToken });
  }

  async start(profile: ModelProfile): Promise<Endpoint> {
    const { enabled, draftModel } = profile.speculative;
    const file = await this.#present(profile.model);
    const draft = enabled && draftModel ? await this.#present(draftModel) : undefined;
    this.#file = file;
    this.#modelId = path.basename(file.path, ".gguf");
    this.#stopped.signal.throwIfAborted();
    // With several sequences Node's thread pool in the child has to be one: node-llama-cpp samples them at the same time, and llama.cpp
    // reorders its logits when first read, so answers would get each other's tokens. Drafting (one sequence) needs more.
    const poolThreads = draft === undefined ? 1 : DRAFTING_THREADS;
    const identity = await this.#process.start(
      process.execPath,
      [SERVER_SCRIPT],
      { ...(this.#options.environment ?? childEnvironment()), UV_THREADPOOL_SIZE: String(poolThreads) },
      { ipc: true },
    );
    this.#apiKey = modelServerKey(profile);
    const message: EmbeddedProfile = {
      modelPath: file.path,
      modelId: this.#modelId,
      digest: file.digest,
      draftPath: draft?.path,
      port: profile.port,
      apiKey: this.#apiKey,
      maxModelLen: profile.maxModelLen,
      // The library's drafting stands still when several sequences draft at once.
      maxNumSeqs: draft === undefined ? profile.maxNumSeqs : 1,
      kvCacheBits: profile.kvCacheBits,
      ramCapBytes: this.#options.ramCapBytes,
      vramCapBytes: this.#options.vramCapBytes,
      ngl: profile.ngl,
      threads: profile.threads,
    };
    const listening = this.#answer("listening", LISTEN_TIMEOUT_MS);
    this.#tell({ type: "listen", profile: message });
    const { port } = await listening;
    this.#baseUrl = `http://127.0.0.1:${port}`;
    return { baseUrl: this.#baseUrl, apiKey: this.#apiKey, ...identity };
  }

  async dryRun(profile: ModelProfile): Promise<{ command: string; notes: string[] }> {
    const { path: file } = await this.#present(profile.model);
    const notes = [`It is told over its channel to serve ${file} at 127.0.0.1:${profile.port}.`];
    return { command: `${process.execPath} ${SERVER_SCRIPT}`, notes };
  }

  async ready(timeoutMs: number): Promise<ReadyModel> {
    const deadline = AbortSignal.timeout(timeoutMs);
    const ready = this.#answer("ready", timeoutMs);
    this.#tell({ type: "load" });
    const { contextTokens } = await ready;
    const client = new ChatClient(this.#baseUrl, { apiKey: this.#apiKey });
    try {
      await client.chat({ messages: [{ role: "user", content: "1 + 1" }], maxTokens: 1 }, { signal: deadline });
    } catch (error) {
      throw deadline.aborted ? this.#process.late("ready", timeoutMs) : error;
    } finally {
      await client.close();
    }
    return { modelId: this.#modelId, digest: this.#file!.digest, contextTokens };
  }

  async stop(graceMs: number): Promise<void> {
    this.#stopped.abort(new MathllmError("engine-failed", "The model server was stopped before it was started."));
    await this.#process.stop(graceMs);
  }

  async health(timeoutMs: number): Promise<void> {
    const response = await fetch(`${this.#baseUrl}/health`, { signal: AbortSignal.timeout(timeoutMs) });
    await response.arrayBuffer();
    if (!response.ok) throw new MathllmError("engine-failed", `The model server's health check answered ${response.status}.`);
  }

  async footprint(profile: ModelProfile): Promise<Footprint> {
    const { dataDir, hfToken } = this.#options;
    const file = await resolveModelFile(profile.model, { dataDir, hfToken });
    const insights = await GgufInsights.from(await readGgufFileInfo(file.path, { logWarnings: false }));
    const gpuLayers = Math.min(profile.ngl ?? insights.totalLayers, insights.totalLayers);
    const contextSize = Math.min(profile.maxModelLen, insights.trainContextSize ?? profile.maxModelLen);
    const weights = await insights.estimateModelResourceRequirementsV2({ gpuLayers });
    const context = await insights.estimateContextResourceRequirementsV2({
      contextSize,
      sequences: profile.maxNumSeqs,
      modelGpuLayers: gpuLayers,
    });
    return { weightsBytes: weights.cpuRam + weights.gpuVram, contextBytes: context.cpuRam + context.gpuVram };
  }

  async metrics(): Promise<EngineMetrics> {
    const response = await fetch(`${this.#baseUrl}/metrics`, { headers: bearer(this.#apiKey), signal: AbortSignal.timeout(2000) });
    const text = await response.text();
    const value = (name: string): number => Number(new RegExp(`^mathllm_engine_${name} (\\S+)$`, "m").exec(text)?.[1] ?? 0);
    return {
      requestsRunning: value("requests_running"),
      requestsWaiting: value("requests_waiting"),
      promptTokensTotal: value("prompt_tokens_total"),
      completionTokensTotal: value("completion_tokens_total"),
      draftTokensTotal: value("draft_tokens_total"),
      draftAcceptedTokensTotal: value("draft_accepted_tokens_total"),
      kvCacheUsage: null,
      preemptionsTotal: null,
      prefixCacheHitTokensTotal: null,
      prefixCacheQueryTokensTotal: null,
    };
  }

  #present(reference: string): Promise<ModelFile> {
    return presentModelFile(reference, { dataDir: this.#options.dataDir, signal: this.#stopped.signal });
  }

  #tell(message: ToChild): void {
    // A child that is gone shows in `exited`; that the message did not reach it says nothing more.
    this.#process.child!.send(message, () => {});
  }

  /** The child's next message of this type; rejects with its own error, its exit, or the time-out. */
  async #answer<T extends FromChild["type"]>(type: T, timeoutMs: number): Promise<Extract<FromChild, { type: T }>> {
    const child = this.#process.child;
    if (child === undefined) throw new MathllmError("engine-failed", "The model server was not started.");
    let timer: NodeJS.Timeout | undefined;
    let onMessage: (message: unknown) => void = () => {};
    try {
      return await new Promise((resolve, reject) => {
        onMessage = (raw) => {
          const message = raw as FromChild;
          if (message.type === type) resolve(message as Extract<FromChild, { type: T }>);
          if (message.type === "failed") reject(new MathllmError(message.code, message.detail));
        };
        child.on("message", onMessage);
        timer = setTimeout(() => reject(this.#process.late(type, timeoutMs)), timeoutMs);
        this.#process.died("starting").catch(reject);
      });
    } finally {
      clearTimeout(timer);
      child.off("message", onMessage);
    }
  }
}
