import readline from "node:readline";
import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { bearer } from "./authorization.ts";
import { ChatClient } from "./chat-client.ts";
import type { Endpoint, Engine, EngineExit, EngineMetrics, Footprint, PreparedModel, PrepareOptions, ReadyModel } from "./engine.ts";

const UNLOAD_POLL_MS = 100;
const UNLOAD_TIMEOUT_MS = 30_000;
const REQUEST_TIMEOUT_MS = 10_000;
const SHOWN_CHARS = 500;
const UNKNOWN_METRICS: EngineMetrics = {
  requestsRunning: 0,
  requestsWaiting: null,
  promptTokensTotal: 0,
  completionTokensTotal: 0,
  draftTokensTotal: null,
  draftAcceptedTokensTotal: null,
  kvCacheUsage: null,
  preemptionsTotal: null,
  prefixCacheHitTokensTotal: null,
  prefixCacheQueryTokensTotal: null,
};

/** A server that someone else runs: what differs is how a model gets into its memory and out of it. */
interface Elsewhere {
  /** Only where models are fetched at our word: brings the model onto the server's disk. */
  prepare?(profile: ModelProfile, options: PrepareOptions): Promise<void>;
  /** Brings the model into memory; resolves when it can answer. */
  load(profile: ModelProfile, signal: AbortSignal): Promise<void>;
  /** Resolves when the memory is free. */
  unload(profile: ModelProfile): Promise<void>;
  health(profile: ModelProfile, signal: AbortSignal): Promise<void>;
  /** Tokens per sequence. */
  contextTokens(profile: ModelProfile): Promise<number>;
}

/** Someone else runs the server and its memory: nothing is loaded or freed, and nothing of it is this GPU's. */
export const createRemoteEngine = (): Engine => new ElsewhereEngine(remote);

/** Ollama runs the server; models are brought in and out of the GPU's memory through its API. */
export const createOllamaEngine = (): Engine => new ElsewhereEngine(ollama);

async function ask(url: string, init: RequestInit, apiKey?: string): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(url, {
      signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
      ...init,
      headers: { "content-type": "application/json", ...bearer(apiKey) },
    });
  } catch (error) {
    const reason = (error as Error).cause instanceof Error ? ((error as Error).cause as Error).message : (error as Error).message;
    throw new MathllmError(
      "engine-failed",
      `Expected a model server at ${url}; ${reason}. Start it, or correct STUDENT_URL or TALKER_URL.`,
    );
  }
  const text = await response.text();
  if (!response.ok)
    throw new MathllmError(
      response.status === 404 ? "model-missing" : "engine-failed",
      `${url} answered ${response.status}: ${text.slice(0, SHOWN_CHARS)}`,
    );
  try {
    return JSON.parse(text);
  } catch {
    throw new MathllmError("engine-failed", `Expected JSON from ${url}; got ${text.slice(0, 100)}.`);
  }
}

const modelsOf = async ({ url, apiKey }: ModelProfile, signal?: AbortSignal) =>
  ((await ask(`${url}/v1/models`, signal === undefined ? {} : { signal }, apiKey)) as { data?: { id: string; max_model_len?: number }[] })
    .data ?? [];

const remote: Elsewhere = {
  load: async (profile, signal) => {
    const models = await modelsOf(profile, signal);
    if (models.some(({ id }) => id === profile.model)) return;
    throw new MathllmError(
      "model-missing",
      `${profile.url} does not serve ${profile.model}; it serves ${models.map(({ id }) => id).join(", ") || "nothing"}.`,
    );
  },
  unload: async () => {},
  health: async (profile, signal) => void (await modelsOf(profile, signal)),
  contextTokens: async (profile) => (await modelsOf(profile)).find(({ id }) => id === profile.model)?.max_model_len ?? profile.maxModelLen,
};

type Loaded = { models?: { name?: string; model?: string }[] };

const pullLineSchema = z.object({ error: z.string().optional(), completed: z.number().optional(), total: z.number().optional() });

const ollama: Elsewhere = {
  prepare: async ({ url, model }, { signal, onProgress, downloadTurn }) => {
    const body = JSON.stringify({ model });
    const within = AbortSignal.any([...(signal === undefined ? [] : [signal]), AbortSignal.timeout(REQUEST_TIMEOUT_MS)]);
    try {
      await ask(`${url}/api/show`, { method: "POST", signal: within, body });
      return;
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof MathllmError && error.code === "model-missing")) throw error;
    }
    await downloadTurn?.();
    // It goes on where an earlier pull broke off. One line for each step of each of the model's layers.
    const response = await fetch(`${url}/api/pull`, { method: "POST", signal, body });
    const failed = (reason: string) =>
      new MathllmError("model-download-failed", `Ollama at ${url} could not pull ${model}: ${reason}. Check the name and its network.`);
    if (!response.ok) throw failed((await response.text()).slice(0, SHOWN_CHARS));
    for await (const line of readline.createInterface({ input: Readable.fromWeb(response.body!) })) {
      const { error, completed, total } = pullLineSchema.parse(JSON.parse(line));
      if (error !== undefined) throw failed(error);
      if (total !== undefined) onProgress?.({ doing: "downloading", doneBytes: completed ?? 0, totalBytes: total });
    }
  },
  // A prompt of nothing only loads; `keep_alive` -1 keeps it until we say otherwise.
  load: async ({ url, model }, signal) =>
    void (await ask(`${url}/api/generate`, { method: "POST", signal, body: JSON.stringify({ model, keep_alive: -1, stream: false }) })),
  unload: async ({ url, model }) => {
    const giveUpAt = Date.now() + UNLOAD_TIMEOUT_MS;
    const isLoaded = async () =>
      ((await ask(`${url}/api/ps`, {})) as Loaded).models?.some((each) => isSame(each.name ?? each.model ?? "", model)) === true;
    if (!(await isLoaded())) return;
    await ask(`${url}/api/generate`, { method: "POST", body: JSON.stringify({ model, keep_alive: 0, stream: false }) });
    while (await isLoaded()) {
      if (Date.now() > giveUpAt)
        throw new MathllmError("engine-failed", `Ollama at ${url} has not unloaded ${model} within ${UNLOAD_TIMEOUT_MS} ms.`);
      await delay(UNLOAD_POLL_MS);
    }
  },
  health: async ({ url }, signal) => void (await ask(`${url}/api/version`, { signal })),
  contextTokens: async ({ maxModelLen }) => maxModelLen,
};

/** `model` and `model:latest` are one. */
function isSame(a: string, b: string): boolean {
  const full = (name: string) => (name.includes(":") ? name : `${name}:latest`);
  return full(a) === full(b);
}

class ElsewhereEngine implements Engine {
  readonly exited: Promise<EngineExit>;
  readonly #server: Elsewhere;
  readonly #stopped = new AbortController();
  #resolveExited!: (exit: EngineExit) => void;
  #profile: ModelProfile | undefined;

  constructor(server: Elsewhere) {
    this.#server = server;
    this.exited = new Promise((resolve) => {
      this.#resolveExited = resolve;
    });
  }

  async dryRun({ url, model }: ModelProfile): Promise<{ command: string; notes: string[] }> {
    return { command: "", notes: [`Nothing is started: ${model} is served at ${url}.`] };
  }

  async prepare(profile: ModelProfile, options: PrepareOptions = {}): Promise<PreparedModel> {
    await this.#server.prepare?.(profile, options);
    return { files: [] };
  }

  async start(profile: ModelProfile): Promise<Endpoint> {
    this.#profile = profile;
    await this.#server.health(profile, this.#within(REQUEST_TIMEOUT_MS));
    return { baseUrl: profile.url!, apiKey: profile.apiKey, pid: null, startTicks: null };
  }

  async ready(timeoutMs: number): Promise<ReadyModel> {
    const profile = this.#profile!;
    const signal = this.#within(timeoutMs);
    try {
      await this.#server.load(profile, signal);
      const client = new ChatClient(profile.url!, { model: profile.model, apiKey: profile.apiKey });
      try {
        await client.chat({ messages: [{ role: "user", content: "1 + 1" }], maxTokens: 1 }, { signal });
      } finally {
        await client.close();
      }
    } catch (error) {
      if (error instanceof MathllmError) throw error;
      throw new MathllmError(
        "engine-failed",
        `${profile.model} at ${profile.url} was not ready within ${timeoutMs} ms. Raise ENGINE_START_TIMEOUT_MS.`,
      );
    }
    return { modelId: profile.model, digest: `${profile.mode}:${profile.model}`, contextTokens: await this.#server.contextTokens(profile) };
  }

  async stop(): Promise<void> {
    this.#stopped.abort(new MathllmError("engine-failed", "The model server was given up while it loaded."));
    const profile = this.#profile;
    if (profile !== undefined) {
      await this.#server.unload(profile).catch(async (error) => {
        // A server that is not there any more holds no memory.
        const answers = await this.health(REQUEST_TIMEOUT_MS).then(
          () => true,
          () => false,
        );
        if (answers) throw error;
      });
    }
    this.#resolveExited({ code: 0, signal: null, lastLines: [] });
  }

  async clear(profile: ModelProfile): Promise<void> {
    await this.#server.unload(profile);
  }

  async health(timeoutMs: number): Promise<void> {
    await this.#server.health(this.#profile!, AbortSignal.timeout(timeoutMs));
  }

  async footprint(): Promise<Footprint> {
    return { weightsBytes: 0, contextBytes: 0 };
  }

  async metrics(): Promise<EngineMetrics> {
    return UNKNOWN_METRICS;
  }

  #within(timeoutMs: number): AbortSignal {
    return AbortSignal.any([this.#stopped.signal, AbortSignal.timeout(timeoutMs)]);
  }
}
