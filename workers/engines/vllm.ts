import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { readModelShape } from "../gpu/model-shape.ts";
import { kvBytes } from "../gpu/vram.ts";
import { bearer } from "./authorization.ts";
import { childEnvironment } from "./child-environment.ts";
import type { EngineMetrics, Footprint, PrepareOptions } from "./engine.ts";
import { digestOf } from "./file-digest.ts";
import { HttpEngine, type HttpEngineOptions, type Launch, type ServerAddress, type ServerProgram } from "./http-engine.ts";
import { fetchIntoHubCache } from "./hub-program.ts";
import { programOutput } from "./program-version.ts";
import { metricSum } from "./prometheus-text.ts";
import { vllmArguments } from "./vllm-dialect.ts";

const ADVICE = "Install vLLM (a CUDA machine: pip install vllm) and set VLLM_BIN to its vllm program, or use MODE=embedded or llamacpp.";
const GUARD_FOLDER = path.join(import.meta.dirname, "vllm-guard");
const SLEEP_TIMEOUT_MS = 60_000;
const SLEEP_POLL_MS = 50;
const WEIGHT_FILES = /\.(safetensors|bin|pt|gguf)$/;

export interface VllmOptions extends HttpEngineOptions {
  /** The `vllm` program. */
  bin: string;
  /** Digests are remembered there. */
  dataDir: string;
  hfToken?: string;
}

/** vLLM as a process of its own. */
export function createVllmEngine(options: VllmOptions): HttpEngine {
  return new HttpEngine(vllmProgram(options), options);
}

export function vllmProgram({ bin, dataDir, hfToken, environment = childEnvironment(), log }: VllmOptions): ServerProgram {
  return {
    keyVariable: "VLLM_API_KEY",
    prepare: async ({ model, speculative }, options) => {
      const { enabled, draftModel } = speculative;
      const models = enabled && draftModel !== undefined ? [model, draftModel] : [model];
      const files = await Promise.all(models.map((name) => filesOf(name, { bin, dataDir, hfToken, environment, log }, options)));
      return { files: files.flat() };
    },
    launch: async (profile, port): Promise<Launch> => {
      const version = await vllmVersion(bin, environment);
      const { args, env, notes } = vllmArguments(profile, port, version);
      const pythonPath = [GUARD_FOLDER, environment.PYTHONPATH].filter(Boolean).join(path.delimiter);
      const digest = await modelDigest(profile.model, dataDir);
      // Only what it downloads by itself needs the token.
      const token: Record<string, string> = hfToken !== undefined && (await downloads(profile)) ? { HF_TOKEN: hfToken } : {};
      return { command: bin, args, env: { ...env, ...token, PYTHONPATH: pythonPath }, notes, digest };
    },
    contextTokens: async ({ baseUrl, apiKey }) => {
      const response = await fetch(`${baseUrl}/v1/models`, { headers: bearer(apiKey) });
      const { data } = (await response.json()) as { data: { max_model_len?: number }[] };
      return data[0]?.max_model_len ?? 0;
    },
    metrics: (text): EngineMetrics => ({
      requestsRunning: metricSum(text, "vllm:num_requests_running") ?? 0,
      requestsWaiting: metricSum(text, "vllm:num_requests_waiting"),
      promptTokensTotal: metricSum(text, "vllm:prompt_tokens_total") ?? 0,
      completionTokensTotal: metricSum(text, "vllm:generation_tokens_total") ?? 0,
      draftTokensTotal: metricSum(text, "vllm:spec_decode_num_draft_tokens_total"),
      draftAcceptedTokensTotal: metricSum(text, "vllm:spec_decode_num_accepted_tokens_total"),
      kvCacheUsage: metricSum(text, "vllm:kv_cache_usage_perc"),
      preemptionsTotal: metricSum(text, "vllm:num_preemptions_total"),
      prefixCacheHitTokensTotal: metricSum(text, "vllm:prefix_cache_hits_total"),
      prefixCacheQueryTokensTotal: metricSum(text, "vllm:prefix_cache_queries_total"),
    }),
    footprint: async ({ model, maxModelLen, maxNumSeqs, kvCacheBits }): Promise<Footprint> => {
      const shape = await readModelShape(model, { dataDir, offline: true });
      return { weightsBytes: shape.weightsBytes, contextBytes: kvBytes(shape, "vllm", maxModelLen, maxNumSeqs, kvCacheBits) };
    },
    sleep: async (server, level) => {
      await post(server, `/sleep?level=${level}`, AbortSignal.timeout(SLEEP_TIMEOUT_MS));
      // The call may return before it sleeps.
      await untilSleeping(server, true, AbortSignal.timeout(SLEEP_TIMEOUT_MS));
      sleepLevels.set(server.baseUrl, level);
    },
    wake: async (server, signal) => {
      if (sleepLevels.get(server.baseUrl) === 2) {
        // Level 2 has dropped the weights: room for them first, then they are read again, then the KV cache.
        await post(server, "/wake_up?tags=weights", signal);
        await post(server, "/collective_rpc", signal, { method: "reload_weights" });
        await post(server, "/wake_up?tags=kv_cache", signal);
      } else await post(server, "/wake_up", signal);
      await untilSleeping(server, false, signal);
    },
  };
}

const sleepLevels = new Map<string, 1 | 2>();

async function post({ baseUrl, apiKey }: ServerAddress, address: string, signal: AbortSignal, body: object = {}): Promise<void> {
  const url = `${baseUrl}${address}`;
  const headers = { "content-type": "application/json", ...bearer(apiKey) };
  const response = await fetch(url, { method: "POST", signal, headers, body: JSON.stringify(body) });
  const text = await response.text();
  if (!response.ok) throw new MathllmError("engine-failed", `${url} answered ${response.status}: ${text.slice(0, 300)}`);
}

async function untilSleeping({ baseUrl, apiKey }: ServerAddress, sleeping: boolean, signal: AbortSignal): Promise<void> {
  for (;;) {
    const response = await fetch(`${baseUrl}/is_sleeping`, { headers: bearer(apiKey), signal });
    if (((await response.json()) as { is_sleeping?: boolean }).is_sleeping === sleeping) return;
    await delay(SLEEP_POLL_MS, undefined, { signal });
  }
}

const versions = new Map<string, Promise<string>>();

/** `0.32.0`. Starting Python and importing vLLM takes seconds, so it is asked once. */
export function vllmVersion(bin: string, environment: NodeJS.ProcessEnv): Promise<string> {
  const known = versions.get(bin);
  if (known !== undefined) return known;
  const asked = programOutput(bin, ["--version"], ADVICE, environment).then((output) => {
    const version = /^v?(\d+\.\d+(?:\.\d+)?)/m.exec(output)?.[1];
    if (version === undefined)
      throw new MathllmError(
        "engine-missing",
        `Expected ${bin} --version to print a version; got ${output.trim().slice(0, 200)}. ${ADVICE}`,
      );
    return version;
  });
  asked.catch(() => versions.delete(bin));
  versions.set(bin, asked);
  return asked;
}

/** Whether the model or its draft is a name on the hub, which vLLM asks for by itself. */
async function downloads({ model, speculative }: ModelProfile): Promise<boolean> {
  const draft = speculative.enabled ? speculative.draftModel : undefined;
  return (await weightFiles(model)).length === 0 || (draft !== undefined && (await weightFiles(draft)).length === 0);
}

/** The weight files of a model that is on this machine once this has resolved; none are known where vLLM has to fetch it at its start. */
async function filesOf(
  model: string,
  { bin, dataDir, hfToken, environment, log }: VllmOptions,
  options: PrepareOptions,
): Promise<string[]> {
  if (isFolder(model) || (await weightFiles(model)).length > 0) {
    await modelDigest(model, dataDir, options);
    return weightFiles(model);
  }
  await options.downloadTurn?.();
  options.onProgress?.({ doing: "downloading", doneBytes: 0, totalBytes: null });
  const folder = await fetchIntoHubCache(model, bin, { ...environment, HF_TOKEN: hfToken }, options.signal);
  if (folder !== null) return weightFiles(folder);
  log?.warn({ model }, "there is no hf program beside vllm: vLLM fetches the model itself when it starts, within ENGINE_START_TIMEOUT_MS");
  return [];
}

function isFolder(model: string): boolean {
  return path.isAbsolute(model) || model.startsWith(".");
}

/** The weight files of a local folder; of a name on the hub none are known here. */
async function weightFiles(model: string): Promise<string[]> {
  const files = await readdir(model).catch(() => []);
  return files.filter((file) => WEIGHT_FILES.test(file)).map((file) => path.join(model, file));
}

/** SHA-256 over the folder's configuration and weight files; of a name on the hub over the name. */
async function modelDigest(model: string, dataDir: string, options: PrepareOptions = {}): Promise<string> {
  const files = await weightFiles(model);
  const hash = createHash("sha256");
  if (files.length === 0) {
    if (isFolder(model)) {
      throw new MathllmError(
        "model-missing",
        `Expected a Hugging Face folder with weights at ${model}; there is none. Set STUDENT_MODEL or TALKER_MODEL to one, or to owner/name.`,
      );
    }
    return hash.update(model).digest("hex");
  }
  for (const name of ["config.json", "tokenizer.json", "tokenizer_config.json"]) {
    hash.update(await readFile(path.join(model, name)).catch(() => ""));
  }
  for (const file of files.sort()) hash.update(await digestOf(file, dataDir, options));
  return hash.digest("hex");
}
