import { z } from "zod";
import type { Role } from "./names.ts";
import { optionalSetting, setting } from "./setting.ts";
import { flag, port, serverUrl, wholeNumber } from "./setting-values.ts";

/** `llamacpp` starts llama-server; `ollama` and `remote` use a server that runs already. */
const ENGINE_MODES = ["embedded", "vllm", "llamacpp", "ollama", "remote"] as const;

export const DEFAULT_OLLAMA_URL = "http://127.0.0.1:11434";

/** The settings of both models, declared once: how one role's model server is run. Token counts are per sequence. */
export function profileSettings(role: Role, own: { port: number; maxNumSeqs: number; example: string }) {
  const name = (suffix: string) => `${role.toUpperCase()}_${suffix}`;
  return {
    mode: setting(name("MODE"), z.enum(ENGINE_MODES), {
      default: "embedded",
      about: "embedded: ours, needs nothing. llamacpp: starts llama-server. vllm: starts vLLM. ollama, remote: a server that runs already.",
    }),
    model: optionalSetting(name("MODEL"), z.string(), {
      example: own.example,
      about:
        "embedded, llamacpp: a GGUF file, or hf:user/repository:quantisation, which is downloaded once; unset: the shipped tiny model. vllm: owner/name or a Hugging Face folder. ollama, remote: the name the server knows it by.",
    }),
    /** 0 takes a free port. */
    port: setting(name("PORT"), port, {
      default: own.port,
      about: "Where the model server that is started here listens; 0 takes a free port.",
    }),
    url: optionalSetting(name("URL"), serverUrl, {
      about: `ollama (unset: ${DEFAULT_OLLAMA_URL}), remote: where the server is, without /v1.`,
    }),
    apiKey: optionalSetting(name("API_KEY"), z.string(), {
      secret: true,
      about:
        "ollama, remote: the server's key, if it wants one. Otherwise the key that the server started here asks for; unset: a new one each time.",
    }),
    maxModelLen: setting(name("MAX_MODEL_LEN"), wholeNumber(64, 1_048_576), {
      default: 4096,
      unit: "tokens",
      about: "The longest sequence, problem and answer together; the model's own context bounds it.",
    }),
    maxNumSeqs: setting(name("MAX_NUM_SEQS"), wholeNumber(1, 256), { default: own.maxNumSeqs, about: "Requests at once." }),
    kvCacheBits: setting(
      name("KV_CACHE_BITS"),
      z.enum(["16", "8"], { error: "expected 16 or 8" }).transform((bits): 16 | 8 => (bits === "8" ? 8 : 16)),
      { default: 16, about: "16, or 8: half the KV cache's memory for slightly other answers." },
    ),
    /** The most tokens one answer may have. */
    maxTokens: setting(name("MAX_TOKENS"), wholeNumber(1, 131_072), { default: 1024, unit: "tokens", about: "The longest answer." }),
    speculative: {
      enabled: setting(name("SPECULATIVE_ENABLED"), flag, {
        default: 0,
        about: "1: speculative decoding. The embedded engine then serves one request at a time.",
      }),
      draftModel: optionalSetting(name("DRAFT_MODEL"), z.string(), {
        about: "The draft for speculative decoding, of the same vocabulary as the model.",
      }),
    },
    /** vllm: the share of the GPU's memory that it takes. */
    gpuMemoryUtilization: setting(name("GPU_MEMORY_UTILIZATION"), z.coerce.number().min(0.05).max(1), {
      default: 0.85,
      about: "vllm: the share of the GPU's memory that it takes.",
    }),
    swapSpaceGib: optionalSetting(name("SWAP_SPACE"), z.coerce.number().min(0).max(1024), {
      unit: "GiB",
      about: "vllm: host memory for what does not fit into the KV cache. Passed in the words that the installed version knows.",
    }),
    enforceEager: setting(name("ENFORCE_EAGER"), flag, { default: 0, about: "1: vllm uses no CUDA graphs: less memory, slower." }),
    /** vllm: instead of being stopped it sleeps, its weights in host memory (1) or dropped (2); 0: it is stopped. */
    sleepLevel: setting(
      name("SLEEP_LEVEL"),
      wholeNumber(0, 2).transform((level) => level as 0 | 1 | 2),
      {
        default: 0,
        about: "vllm: at a swap it sleeps instead of being stopped, its weights in host memory (1) or dropped (2); 0: it is stopped.",
      },
    ),
    /** Layers on the GPU; undefined lets the engine choose. */
    ngl: optionalSetting(name("NGL"), wholeNumber(0, 10_000), {
      about: "embedded, llamacpp: layers on the GPU. Unset: as many as fit.",
    }),
    /** CPU threads; undefined lets the engine choose by the model's size. */
    threads: optionalSetting(name("THREADS"), wholeNumber(1, 1024), {
      about: "embedded: CPU threads; unset: 1 for a tiny model, else all cores but one. llamacpp: unset: 8, or as many as there are.",
    }),
  };
}
