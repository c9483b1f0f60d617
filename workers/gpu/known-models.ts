import { GGUF_QUANTISATIONS, type GgufQuantisation, ggufWeights, type ModelShape, shapeOfConfig } from "./model-shape-config.ts";

/**
 * Models whose shape is known without asking a hub, so that a plan works offline. The numbers are those of the models' published
 * config.json; sizes are computed from them, and `published` (bytes of the GGUF files on the hub) is there to check that against.
 */

/** Models of one family have the same tokens under the same numbers; only the padding at the end may differ. */
export type TokenizerFamily = "qwen2" | "llama3" | "llama2";

export interface KnownModel {
  /** Names on the hub; all have this shape. */
  names: string[];
  tokenizer: TokenizerFamily;
  config: Record<string, unknown>;
  /** A repository with GGUF files of it. */
  ggufRepository?: string;
  /** Bytes of the GGUF files there, to the digits the hub shows. */
  published?: Partial<Record<GgufQuantisation, number>>;
  /** The same weights quantised for vLLM, on the hub. */
  awqRepository?: string;
}

const qwen2 = (config: Record<string, unknown>) => ({
  architectures: ["Qwen2ForCausalLM"],
  model_type: "qwen2",
  torch_dtype: "bfloat16",
  use_sliding_window: false,
  ...config,
});
const llama = (config: Record<string, unknown>) => ({
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  torch_dtype: "bfloat16",
  ...config,
});

const QWEN_7B = {
  hidden_size: 3584,
  intermediate_size: 18_944,
  num_hidden_layers: 28,
  num_attention_heads: 28,
  num_key_value_heads: 4,
  vocab_size: 152_064,
  tie_word_embeddings: false,
};
const QWEN_1_5B = {
  hidden_size: 1536,
  intermediate_size: 8960,
  num_hidden_layers: 28,
  num_attention_heads: 12,
  num_key_value_heads: 2,
  vocab_size: 151_936,
  tie_word_embeddings: true,
};
const QWEN_0_5B = {
  hidden_size: 896,
  intermediate_size: 4864,
  num_hidden_layers: 24,
  num_attention_heads: 14,
  num_key_value_heads: 2,
  vocab_size: 151_936,
  tie_word_embeddings: true,
};
const LLAMA_8B = {
  hidden_size: 4096,
  intermediate_size: 14_336,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  vocab_size: 128_256,
  tie_word_embeddings: false,
  max_position_embeddings: 131_072,
};
const AWQ = { quant_method: "awq", bits: 4, group_size: 128, zero_point: true, version: "gemm" };

export const KNOWN_MODELS: KnownModel[] = [
  {
    names: ["nvidia/OpenMath-Nemotron-7B"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_7B, max_position_embeddings: 131_072 }),
    ggufRepository: "bartowski/nvidia_OpenMath-Nemotron-7B-GGUF",
    published: { Q4_K_M: 4.68e9, Q8_0: 8.1e9 },
  },
  {
    names: ["nvidia/OpenMath-Nemotron-1.5B"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_1_5B, max_position_embeddings: 131_072 }),
    ggufRepository: "bartowski/nvidia_OpenMath-Nemotron-1.5B-GGUF",
    published: { Q4_K_M: 0.986e9, Q8_0: 1.65e9 },
  },
  {
    names: ["Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-Math-7B-Instruct"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_7B, max_position_embeddings: 4096 }),
    ggufRepository: "bartowski/Qwen2.5-Math-7B-Instruct-GGUF",
    published: { Q4_K_M: 4.68e9, Q8_0: 8.1e9 },
  },
  {
    names: ["Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-1.5B-Instruct"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_1_5B, max_position_embeddings: 4096 }),
    ggufRepository: "bartowski/Qwen2.5-Math-1.5B-Instruct-GGUF",
    published: { Q4_K_M: 0.986e9, Q8_0: 1.65e9 },
  },
  {
    names: ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_7B, max_position_embeddings: 32_768 }),
    ggufRepository: "bartowski/Qwen2.5-7B-Instruct-GGUF",
    published: { Q4_K_M: 4.68e9, Q8_0: 8.1e9 },
    awqRepository: "Qwen/Qwen2.5-7B-Instruct-AWQ",
  },
  {
    names: ["Qwen/Qwen2.5-7B-Instruct-AWQ"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_7B, max_position_embeddings: 32_768, torch_dtype: "float16", quantization_config: AWQ }),
    ggufRepository: "bartowski/Qwen2.5-7B-Instruct-GGUF",
  },
  {
    names: ["Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_1_5B, max_position_embeddings: 32_768 }),
    ggufRepository: "bartowski/Qwen2.5-1.5B-Instruct-GGUF",
    published: { Q4_K_M: 0.986e9, Q8_0: 1.65e9 },
  },
  {
    names: ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B"],
    tokenizer: "qwen2",
    config: qwen2({ ...QWEN_0_5B, max_position_embeddings: 32_768 }),
    ggufRepository: "bartowski/Qwen2.5-0.5B-Instruct-GGUF",
    published: { Q4_K_M: 0.398e9, Q8_0: 0.531e9 },
  },
  {
    names: ["meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"],
    tokenizer: "llama3",
    config: llama(LLAMA_8B),
    ggufRepository: "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
    published: { Q4_K_M: 4.92e9, Q8_0: 8.54e9 },
    awqRepository: "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
  },
  {
    names: ["hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"],
    tokenizer: "llama3",
    config: llama({ ...LLAMA_8B, torch_dtype: "float16", quantization_config: AWQ }),
    ggufRepository: "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
  },
  {
    names: ["meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B"],
    tokenizer: "llama3",
    config: llama({
      hidden_size: 2048,
      intermediate_size: 8192,
      num_hidden_layers: 16,
      num_attention_heads: 32,
      num_key_value_heads: 8,
      head_dim: 64,
      vocab_size: 128_256,
      tie_word_embeddings: true,
      max_position_embeddings: 131_072,
    }),
    ggufRepository: "bartowski/Llama-3.2-1B-Instruct-GGUF",
    published: { Q4_K_M: 0.808e9, Q8_0: 1.32e9 },
  },
  {
    names: ["TinyLlama/TinyLlama-1.1B-Chat-v1.0"],
    tokenizer: "llama2",
    config: llama({
      hidden_size: 2048,
      intermediate_size: 5632,
      num_hidden_layers: 22,
      num_attention_heads: 32,
      num_key_value_heads: 4,
      vocab_size: 32_000,
      tie_word_embeddings: false,
      max_position_embeddings: 2048,
    }),
    ggufRepository: "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF",
    published: { Q4_K_M: 0.669e9, Q8_0: 1.17e9 },
  },
];

export const DEFAULT_GGUF: GgufQuantisation = "Q4_K_M";

interface HubName {
  repository: string;
  quantisation?: string;
}

/** `owner/name`, `hf:owner/name` or `hf:owner/name:quantisation`; undefined for anything else. */
export function parseHubName(reference: string): HubName | undefined {
  const [, repository, quantisation] = /^(?:hf:)?([\w.-]+\/[\w.-]+?)(?::([\w.-]+))?$/.exec(reference) ?? [];
  if (repository === undefined || /(^|\/)\.{1,2}(\/|$)/.test(repository) || /\.gguf$/i.test(repository)) return undefined;
  return { repository, quantisation };
}

/** The known model a reference is of, by its own name or that of its GGUF repository (also a file in it). */
export function knownModel(reference: string): { model: KnownModel; quantisation?: GgufQuantisation } | undefined {
  const file = /^hf:([\w.-]+\/[\w.-]+)\/[^:]*?[-.]([A-Z0-9_]+)\.gguf$/i.exec(reference);
  const name = file === null ? parseHubName(reference) : { repository: file[1]!, quantisation: file[2] };
  if (name === undefined) return undefined;
  const repository = name.repository.toLowerCase();
  const direct = KNOWN_MODELS.find(({ names }) => names.some((each) => each.toLowerCase() === repository));
  if (direct !== undefined && name.quantisation === undefined) return { model: direct };
  const model = KNOWN_MODELS.find(({ ggufRepository }) => ggufRepository?.toLowerCase() === repository);
  const wanted = (name.quantisation ?? DEFAULT_GGUF).toUpperCase();
  const quantisation = GGUF_QUANTISATIONS.find((each) => each === wanted);
  return model === undefined || quantisation === undefined ? undefined : { model, quantisation };
}

/** The shape of a known model, without any file or hub. */
export function knownShape(reference: string): ModelShape | undefined {
  const known = knownModel(reference);
  if (known === undefined) return undefined;
  const { matrices: _, smallParameters: __, ...shape } = shapeOfConfig(known.model.config, known.model.names[0]!);
  if (known.quantisation === undefined) {
    return { ...shape, reference, format: "safetensors", source: `the known shape of ${known.model.names[0]}` };
  }
  return ggufShape(known.model, reference, known.quantisation);
}

/** The shape of a known model as a GGUF file. */
export function ggufShape(model: KnownModel, reference: string, quantisation: GgufQuantisation): ModelShape {
  const config = shapeOfConfig(model.config, model.names[0]!);
  const { matrices: _, smallParameters: __, ...shape } = config;
  return {
    ...shape,
    ...ggufWeights(config, quantisation),
    reference,
    format: "gguf",
    quantisation,
    source: `the known shape of ${model.names[0]} in ${quantisation}`,
  };
}
