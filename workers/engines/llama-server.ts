import os from "node:os";
import path from "node:path";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { bearer } from "./authorization.ts";
import { childEnvironment } from "./child-environment.ts";
import { createEmbeddedEngine } from "./embedded.ts";
import type { EngineMetrics } from "./engine.ts";
import { HttpEngine, type HttpEngineOptions, type Launch, type ServerProgram } from "./http-engine.ts";
import { prepareGguf, presentModelFile } from "./model-file.ts";
import { programOutput } from "./program-version.ts";
import { metricSum } from "./prometheus-text.ts";

const ADVICE = "Install llama.cpp and set LLAMA_SERVER_BIN to its llama-server, or use MODE=embedded, which needs nothing.";
const DEFAULT_THREADS = 8;

export interface LlamaServerOptions extends HttpEngineOptions {
  /** The `llama-server` program. */
  bin: string;
  dataDir: string;
  hfToken?: string;
}

/** llama.cpp's server as a process of its own: the same GGUF files as `embedded`. */
export function createLlamaServerEngine(options: LlamaServerOptions): HttpEngine {
  return new HttpEngine(llamaServerProgram(options), options);
}

export function llamaServerProgram({ bin, dataDir, hfToken, environment = childEnvironment() }: LlamaServerOptions): ServerProgram {
  const present = (reference: string, signal: AbortSignal) => presentModelFile(reference, { dataDir, signal });
  return {
    keyVariable: "LLAMA_API_KEY",
    prepare: (profile, options) => prepareGguf(profile, { ...options, dataDir, hfToken }),
    launch: async (profile, port, signal): Promise<Launch> => {
      const help = await programOutput(bin, ["--help"], ADVICE, environment);
      const file = await present(profile.model, signal);
      const { enabled, draftModel } = profile.speculative;
      const draft = enabled && draftModel !== undefined ? await present(draftModel, signal) : undefined;
      const { args, notes } = llamaServerArguments(profile, port, file.path, draft?.path, help);
      return { command: bin, args, env: {}, notes, digest: file.digest };
    },
    contextTokens: async ({ baseUrl, apiKey }) => {
      const response = await fetch(`${baseUrl}/props`, { headers: bearer(apiKey) });
      const props = (await response.json()) as { default_generation_settings?: { n_ctx?: number } };
      return props.default_generation_settings?.n_ctx ?? 0;
    },
    metrics: (text): EngineMetrics => ({
      requestsRunning: metricSum(text, "llamacpp:requests_processing") ?? 0,
      requestsWaiting: metricSum(text, "llamacpp:requests_deferred"),
      promptTokensTotal: metricSum(text, "llamacpp:prompt_tokens_total") ?? 0,
      completionTokensTotal: metricSum(text, "llamacpp:tokens_predicted_total") ?? 0,
      draftTokensTotal: metricSum(text, "llamacpp:spec_decode_num_draft_tokens_total"),
      draftAcceptedTokensTotal: metricSum(text, "llamacpp:spec_decode_num_accepted_tokens_total"),
      kvCacheUsage: metricSum(text, "llamacpp:kv_cache_usage_ratio"),
      preemptionsTotal: null,
      prefixCacheHitTokensTotal: null,
      prefixCacheQueryTokensTotal: null,
    }),
    // The same file in the same library: the embedded engine's estimate holds.
    footprint: (profile) => createEmbeddedEngine({ dataDir, hfToken }).footprint(profile),
  };
}

/** llama-server's command line for what its `--help` knows. Pure. Throws `invalid-configuration` when a setting can't be had. */
export function llamaServerArguments(
  profile: ModelProfile,
  port: number,
  file: string,
  draft: string | undefined,
  help: string,
): { args: string[]; notes: string[] } {
  const knows = (flag: string) => new RegExp(`(^|[\\s,])${flag}([\\s,=]|$)`, "m").test(help);
  const { maxModelLen, maxNumSeqs, kvCacheBits, ngl, threads } = profile;
  const notes: string[] = [];
  // The context is shared out over the slots. `--fit` would silently take fewer layers or a shorter context: what does not fit must fail.
  const args = ["-m", file, "--host", "127.0.0.1", "--port", String(port), "--alias", path.basename(file, ".gguf")];
  args.push(
    "-c",
    String(maxModelLen * maxNumSeqs),
    "-np",
    String(maxNumSeqs),
    "-t",
    String(threads ?? Math.min(DEFAULT_THREADS, os.availableParallelism())),
  );
  if (ngl !== undefined) args.push("-ngl", String(ngl));
  if (knows("--metrics")) args.push("--metrics");
  if (knows("--fit")) args.push("--fit", "off");
  // One sequence's cache must not be given to another: slots of `maxModelLen` tokens each.
  if (knows("--no-kv-unified")) args.push("--no-kv-unified");
  if (knows("--no-webui")) args.push("--no-webui");
  if (kvCacheBits === 8) args.push("-ctk", "q8_0", "-ctv", "q8_0", "-fa", ...(/-fa,[^\n]*(on\|off|\[on)/.test(help) ? ["on"] : []));
  if (profile.swapSpaceGib !== undefined) notes.push("SWAP_SPACE: llama-server keeps no swap space; it is left out");
  if (profile.speculative.enabled) {
    if (draft === undefined) {
      if (!knows("--spec-type")) {
        throw new MathllmError(
          "invalid-configuration",
          "SPECULATIVE_ENABLED without DRAFT_MODEL: this llama-server has no --spec-type; set DRAFT_MODEL.",
        );
      }
      args.push("--spec-type", "ngram-simple");
      notes.push("SPECULATIVE_ENABLED without a draft: n-grams of the text are looked up");
    } else {
      args.push("-md", draft);
      if (knows("--spec-type")) args.push("--spec-type", "draft-simple");
      if (ngl !== undefined) args.push("-ngld", String(ngl));
    }
  }
  return { args, notes };
}
