import { MathllmError } from "../../queues/errors.ts";

/** What a Hugging Face `config.json` says about a model's size: pure arithmetic, nothing is read here. */

/** Layers that keep the same amount for each token. */
export interface KvGroup {
  layers: number;
  /** Key and value numbers one layer keeps for one token: 2 · KV heads · head size where both have one size. */
  valuesPerToken: number;
  /** Tokens that a sliding-window layer looks back; null: all of them. */
  windowTokens: number | null;
}

export interface ModelShape {
  /** The model's reference as it was asked for. */
  reference: string;
  format: "gguf" | "safetensors";
  architecture: string;
  layers: number;
  hiddenSize: number;
  intermediateSize: number;
  attentionHeads: number;
  /** The largest of the layers' counts where they differ; `kvGroups` counts exactly. */
  kvHeads: number;
  headDim: number;
  kvGroups: KvGroup[];
  vocabularySize: number;
  tiedEmbeddings: boolean;
  parameters: number;
  /** Weights as stored; what a GPU takes of them is for vram.ts to say. */
  weightsBytes: number;
  /** The token embedding's part of them: llama.cpp leaves it in host memory. */
  embeddingBytes: number;
  /** BF16, FP16, FP32, FP8, AWQ 4-bit, GPTQ 4-bit, Q4_K_M … */
  quantisation: string;
  trainedContextTokens: number;
  /** Where the weights' size comes from. */
  source: string;
}

/** One weight matrix: rows are stored one after the other and quantised along their length. */
interface Matrix {
  kind: "embedding" | "output" | "value" | "down" | "linear";
  rowLength: number;
  rows: number;
  /** Equal matrices of the same layer: experts. */
  count: number;
  layer: number;
}

export interface ConfigShape extends Omit<ModelShape, "reference" | "source" | "format"> {
  matrices: Matrix[];
  /** Biases and norms: never quantised. */
  smallParameters: number;
}

type Json = Record<string, unknown>;

const MOST_LAYERS = 10_000;
const MOST_WIDTH = 10_000_000;
const MOST_TOKENS = 1e9;

/** A GGUF file keeps norms and biases in 32 bits. */
const GGUF_SMALL_BYTES = 4;

export function invalidModel(where: string, expected: string, found: unknown): MathllmError {
  const text = typeof found === "string" ? found : asJson(found);
  const shown = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return new MathllmError("model-invalid", `${where}: expected ${expected}, found ${shown}.`);
}

function asJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? "nothing";
  } catch {
    // Nested deeper than the stack.
    return `a value of type ${typeof value}`;
  }
}

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null && !Array.isArray(value);

class ConfigReader {
  readonly where: string;
  readonly #json: Json;

  constructor(json: unknown, where: string) {
    if (!isObject(json)) throw invalidModel(where, "a JSON object", json);
    this.where = where;
    // Models that also see or hear keep the language model's numbers one level down.
    this.#json = isObject(json.text_config) ? { ...json, ...json.text_config } : json;
  }

  raw(name: string): unknown {
    return this.#json[name] ?? undefined;
  }

  count(names: string[], most: number, fallback?: number): number {
    for (const name of names) {
      const value = this.raw(name);
      if (value === undefined) continue;
      if (typeof value !== "number" || !Number.isInteger(value) || value < 1 || value > most) {
        throw invalidModel(this.where, `${name} to be a whole number from 1 to ${most}`, value);
      }
      return value;
    }
    if (fallback === undefined) throw invalidModel(this.where, `${names.join(" or ")}`, "neither, or null");
    return fallback;
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.raw(name);
    if (value === undefined) return fallback;
    if (typeof value !== "boolean") throw invalidModel(this.where, `${name} to be true or false`, value);
    return value;
  }

  text(name: string): string | undefined {
    const value = this.raw(name);
    if (value !== undefined && typeof value !== "string") throw invalidModel(this.where, `${name} to be a text`, value);
    return value;
  }

  object(name: string): Json | undefined {
    const value = this.raw(name);
    if (value !== undefined && !isObject(value)) throw invalidModel(this.where, `${name} to be an object`, value);
    return value;
  }

  list(name: string): unknown[] | undefined {
    const value = this.raw(name);
    if (value !== undefined && !Array.isArray(value)) throw invalidModel(this.where, `${name} to be a list`, value);
    return value;
  }
}

/**
 * The shape that a `config.json` describes, with the weights' size computed from it. Absent fields get transformers' defaults:
 * `head_dim` is hidden size / attention heads, `num_key_value_heads` is `num_attention_heads`. `where` names the file in errors.
 */
export function shapeOfConfig(json: unknown, where: string): ConfigShape {
  const config = new ConfigReader(json, where);
  const family = config.text("model_type") ?? "";
  const layers = config.count(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], MOST_LAYERS);
  const hiddenSize = config.count(["hidden_size", "n_embd", "d_model"], MOST_WIDTH);
  const attentionHeads = config.count(["num_attention_heads", "n_head", "n_heads"], MOST_WIDTH);
  const kvHeads = config.count(["num_key_value_heads", "num_kv_heads"], MOST_WIDTH, attentionHeads);
  if (config.raw("head_dim") === undefined && hiddenSize % attentionHeads !== 0) {
    throw invalidModel(where, "head_dim, or a hidden size that the attention heads divide", `${hiddenSize} / ${attentionHeads}`);
  }
  const headDim = config.count(["head_dim"], MOST_WIDTH, hiddenSize / attentionHeads);
  if (kvHeads > attentionHeads) throw invalidModel(where, `at most ${attentionHeads} KV heads, as many as attention heads`, kvHeads);
  const vocabularySize = config.count(["vocab_size"], MOST_WIDTH);
  const intermediateSize = config.count(["intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"], MOST_WIDTH, 4 * hiddenSize);
  const tiedEmbeddings = config.flag("tie_word_embeddings", ["gemma", "gemma2", "gemma3_text", "gpt2"].includes(family));
  const { matrices, smallParameters } = matricesOf(config, family, {
    layers,
    hiddenSize,
    attentionHeads,
    kvHeads,
    headDim,
    vocabularySize,
    intermediateSize,
    tiedEmbeddings,
  });
  const parameters = smallParameters + matrices.reduce((sum, matrix) => sum + elements(matrix), 0);
  const storage = storageOf(config);
  const plainBytes = storage.plainBits / 8;
  const linearBytes = (matrix: Matrix) =>
    (elements(matrix) * storage.linearBits) / 8 + matrix.count * matrix.rowLength * storage.bytesPerColumn;
  const isPlain = ({ kind }: Matrix) => kind === "embedding" || kind === "output";
  const weightsBytes = matrices.reduce(
    (sum, matrix) => sum + (isPlain(matrix) ? elements(matrix) * plainBytes : linearBytes(matrix)),
    smallParameters * plainBytes,
  );
  return {
    architecture: String(config.list("architectures")?.[0] ?? (family || "unknown")),
    layers,
    hiddenSize,
    intermediateSize,
    attentionHeads,
    kvHeads,
    headDim,
    kvGroups: kvGroupsOf(config, family, { layers, valuesPerToken: 2 * kvHeads * headDim }),
    vocabularySize,
    tiedEmbeddings,
    parameters,
    weightsBytes: Math.ceil(weightsBytes),
    embeddingBytes: vocabularySize * hiddenSize * plainBytes,
    quantisation: storage.name,
    trainedContextTokens: config.count(["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"], MOST_TOKENS, 4096),
    matrices,
    smallParameters,
  };
}

const elements = ({ rowLength, rows, count }: Matrix) => rowLength * rows * count;

type Sizes = Pick<
  ModelShape,
  "layers" | "hiddenSize" | "attentionHeads" | "kvHeads" | "headDim" | "vocabularySize" | "intermediateSize" | "tiedEmbeddings"
>;

/** The weight matrices of a decoder as transformers builds it: attention with q, k, v, o, a gated or plain feed-forward, experts. */
function matricesOf(config: ConfigReader, family: string, sizes: Sizes): { matrices: Matrix[]; smallParameters: number } {
  const { layers, hiddenSize, attentionHeads, kvHeads, headDim, vocabularySize, intermediateSize, tiedEmbeddings } = sizes;
  const gated = !["gpt2", "gpt_neox", "gptj", "phi", "falcon", "opt", "bloom", "starcoder2", "mpt", "gpt_bigcode"].includes(family);
  const experts = config.count(["num_local_experts", "num_experts", "n_routed_experts"], MOST_LAYERS, 1);
  const expertSize = experts === 1 ? intermediateSize : config.count(["moe_intermediate_size", "intermediate_size"], MOST_WIDTH);
  const sharedSize = experts === 1 ? 0 : config.count(["shared_expert_intermediate_size"], MOST_WIDTH, 0);
  const queryWidth = attentionHeads * headDim;
  const kvWidth = kvHeads * headDim;
  const matrices: Matrix[] = [{ kind: "embedding", rowLength: hiddenSize, rows: vocabularySize, count: 1, layer: 0 }];
  if (!tiedEmbeddings) matrices.push({ kind: "output", rowLength: hiddenSize, rows: vocabularySize, count: 1, layer: 0 });
  for (let layer = 0; layer < layers; layer++) {
    const add = (kind: Matrix["kind"], rowLength: number, rows: number, count = 1) =>
      matrices.push({ kind, rowLength, rows, count, layer });
    add("linear", hiddenSize, queryWidth);
    add("linear", hiddenSize, kvWidth);
    add("value", hiddenSize, kvWidth);
    add("linear", queryWidth, hiddenSize);
    add("linear", hiddenSize, expertSize, experts * (gated ? 2 : 1));
    add("down", expertSize, hiddenSize, experts);
    if (experts > 1) add("linear", hiddenSize, experts);
    if (sharedSize > 0) {
      add("linear", hiddenSize, sharedSize, gated ? 2 : 1);
      add("down", sharedSize, hiddenSize);
    }
  }
  const biases = family === "qwen2" || family === "qwen2_moe" || config.flag("attention_bias", false) ? queryWidth + 2 * kvWidth : 0;
  const headNorms = family.startsWith("qwen3") || family.startsWith("gemma3") ? 2 * headDim : 0;
  const norms = (family === "gemma2" || family.startsWith("gemma3") ? 4 : 2) * hiddenSize;
  return { matrices, smallParameters: layers * (biases + headNorms + norms) + hiddenSize };
}

/** Which layers keep all tokens and which only a window: `layer_types` where the config has it, else each family's own rule. */
function kvGroupsOf(
  config: ConfigReader,
  family: string,
  { layers, valuesPerToken }: { layers: number; valuesPerToken: number },
): KvGroup[] {
  const types = config.list("layer_types");
  if (types !== undefined) {
    if (types.length !== layers) throw invalidModel(config.where, `layer_types with ${layers} entries`, types.length);
    const sliding = types.filter((type) => type === "sliding_attention" || type === "chunked_attention").length;
    // Layers with a state of constant size keep nothing for each token.
    const stateful = types.filter((type) => type === "linear_attention" || type === "mamba" || type === "conv").length;
    const windowTokens = sliding > 0 ? config.count(["sliding_window", "attention_chunk_size"], MOST_TOKENS) : 0;
    return kvGroups(layers - stateful, sliding, valuesPerToken, windowTokens);
  }
  const latent = config.raw("kv_lora_rank") === undefined ? 0 : config.count(["kv_lora_rank"], MOST_WIDTH);
  // Multi-head latent attention keeps one compressed vector and the rotary part for keys and values together.
  if (latent > 0) return kvGroups(layers, 0, latent + config.count(["qk_rope_head_dim"], MOST_WIDTH, 0), 0);
  if (config.raw("sliding_window") === undefined || !config.flag("use_sliding_window", true)) return kvGroups(layers, 0, valuesPerToken, 0);
  const windowTokens = config.count(["sliding_window"], MOST_TOKENS);
  if (family.startsWith("qwen")) {
    const full = Math.min(layers, config.count(["max_window_layers"], MOST_LAYERS, layers));
    return kvGroups(layers, layers - full, valuesPerToken, windowTokens);
  }
  const period = config.count(
    ["sliding_window_pattern"],
    MOST_LAYERS,
    family === "gemma2" || family === "cohere2" ? 2 : family.startsWith("gemma3") ? 6 : 0,
  );
  if (period > 0) return kvGroups(layers, layers - Math.floor(layers / period), valuesPerToken, windowTokens);
  const everywhere = family === "mistral" || family === "mixtral" || family === "phi3" || family === "starcoder2";
  return kvGroups(layers, everywhere ? layers : 0, valuesPerToken, windowTokens);
}

/** Groups of `layers` layers, of which `sliding` have a window. */
export function kvGroups(layers: number, sliding: number, valuesPerToken: number, windowTokens: number): KvGroup[] {
  const groups: KvGroup[] = [
    { layers: layers - sliding, valuesPerToken, windowTokens: null },
    { layers: sliding, valuesPerToken, windowTokens },
  ];
  return groups.filter((group) => group.layers > 0);
}

interface Storage {
  name: string;
  /** Bits a number of the linear layers takes, scales included. */
  linearBits: number;
  /** What a quantiser keeps for each input column beside that. */
  bytesPerColumn: number;
  /** Embeddings, output, norms and biases: not quantised. */
  plainBits: number;
}

/** A scale of 16 bits for each group of weights. */
const SCALE_BITS = 16;

/**
 * How the weights are stored. Quantisers of the hub leave embedding and output layer alone and keep for each group of weights a
 * 16-bit scale and, where they have one, a zero point as wide as a weight.
 */
function storageOf(config: ConfigReader): Storage {
  const dtype = (config.text("torch_dtype") ?? config.text("dtype") ?? "bfloat16").replace(/^torch\./, "");
  const plain = { float32: ["FP32", 32], float: ["FP32", 32], float16: ["FP16", 16], half: ["FP16", 16], bfloat16: ["BF16", 16] }[dtype];
  if (plain === undefined) throw invalidModel(config.where, "torch_dtype or dtype to be bfloat16, float16 or float32", dtype);
  const [name, plainBits] = plain as [string, number];
  const settings = config.object("quantization_config");
  if (settings === undefined) return { name, linearBits: plainBits, bytesPerColumn: 0, plainBits };
  const quantiser = new ConfigReader(settings, `${config.where}, quantization_config`);
  const method = (quantiser.text("quant_method") ?? (quantiser.raw("load_in_4bit") === true ? "bitsandbytes" : undefined))?.toLowerCase();
  const grouped = (label: string, bits: number, groupSize: number, zeroPoint: boolean, bytesPerColumn = 0): Storage => ({
    name: `${label} ${bits}-bit`,
    linearBits: bits + (groupSize > 0 ? (SCALE_BITS + (zeroPoint ? bits : 0)) / groupSize : 0),
    bytesPerColumn,
    plainBits,
  });
  const bits = (fallback?: number) => quantiser.count(["bits", "w_bit"], 16, fallback);
  const groupSize = () => (quantiser.raw("group_size") === -1 ? 0 : quantiser.count(["group_size", "q_group_size"], MOST_WIDTH, 128));
  switch (method) {
    case "awq":
      return grouped("AWQ", bits(4), groupSize(), quantiser.flag("zero_point", true));
    case "gptq":
      // An index of 32 bits tells each input column's group.
      return grouped("GPTQ", bits(4), groupSize(), true, 4);
    case "fp8":
    case "fbgemm_fp8":
      return { name: "FP8", linearBits: 8, bytesPerColumn: 0, plainBits };
    case "mxfp4":
      return { name: "MXFP4", linearBits: 4.25, bytesPerColumn: 0, plainBits };
    case "bitsandbytes":
      if (quantiser.flag("load_in_8bit", false)) return { name: "bitsandbytes 8-bit", linearBits: 8, bytesPerColumn: 0, plainBits };
      // A 32-bit scale for 64 weights, itself kept in 8 bits with double quantisation.
      return {
        name: "bitsandbytes 4-bit",
        linearBits: 4 + (quantiser.flag("bnb_4bit_use_double_quant", false) ? 8 / 64 + 32 / (64 * 256) : 32 / 64),
        bytesPerColumn: 0,
        plainBits,
      };
    case "compressed-tensors": {
      const group = Object.values(quantiser.object("config_groups") ?? {})[0];
      const weights = new ConfigReader(isObject(group) ? (group.weights ?? {}) : {}, `${quantiser.where}, config_groups`);
      const width = weights.count(["num_bits"], 16, 8);
      if (weights.text("type") === "float" && width === 8) return { name: "FP8", linearBits: 8, bytesPerColumn: 0, plainBits };
      return grouped(
        "compressed-tensors",
        width,
        weights.raw("group_size") === undefined ? 0 : weights.count(["group_size"], MOST_WIDTH),
        false,
      );
    }
    case "modelopt":
      return /FP4/i.test(quantiser.text("quant_algo") ?? "")
        ? { name: "NVFP4", linearBits: 4.5, bytesPerColumn: 0, plainBits }
        : { name: "FP8", linearBits: 8, bytesPerColumn: 0, plainBits };
    default:
      throw invalidModel(
        quantiser.where,
        "quant_method to be awq, gptq, fp8, fbgemm_fp8, mxfp4, bitsandbytes, compressed-tensors or modelopt",
        method,
      );
  }
}

/** Bits a number takes in llama.cpp's block formats: a block's bytes over its numbers (ggml's type table). */
const GGUF_BITS = { F16: 16, BF16: 16, Q8_0: 8.5, Q6_K: 6.5625, Q5_K: 5.5, Q5_1: 6, Q5_0: 5.5, Q4_K: 4.5, Q4_0: 4.5 } as const;
type GgufType = keyof typeof GGUF_BITS;

export const GGUF_QUANTISATIONS = ["Q4_K_M", "Q4_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16"] as const;
export type GgufQuantisation = (typeof GGUF_QUANTISATIONS)[number];

const K_BLOCK = 256;
/** What llama.cpp takes for rows that its 256-wide blocks do not divide. */
const NARROW: Partial<Record<GgufType, GgufType>> = { Q6_K: "Q8_0", Q5_K: "Q5_1", Q4_K: "Q5_0" };

/** llama-quantize gives every third layer, and the first and last eighth, more bits. */
const getsMoreBits = (layer: number, layers: number) => {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
};

function ggufType({ kind, layer }: Matrix, quantisation: GgufQuantisation, layers: number, tied: boolean): GgufType {
  if (quantisation === "F16" || quantisation === "BF16" || quantisation === "Q8_0" || quantisation === "Q6_K") return quantisation;
  const base: GgufType = quantisation === "Q5_K_M" ? "Q5_K" : "Q4_K";
  // A tied embedding is the output layer too, and is quantised as one.
  if (kind === "output" || (kind === "embedding" && tied)) return "Q6_K";
  if (kind !== "value" && kind !== "down") return base;
  if (quantisation === "Q4_K_S") return (kind === "value" ? layer < 4 : layer < Math.floor(layers / 8)) ? "Q5_K" : base;
  return getsMoreBits(layer, layers) ? "Q6_K" : base;
}

/** What llama-quantize makes of a model: its mixtures are fixed, so a GGUF file's size is known before there is one. */
export function ggufWeights(shape: ConfigShape, quantisation: GgufQuantisation): { weightsBytes: number; embeddingBytes: number } {
  const bytesOf = (matrix: Matrix) => {
    const wanted = ggufType(matrix, quantisation, shape.layers, shape.tiedEmbeddings);
    const type = matrix.rowLength % K_BLOCK === 0 ? wanted : (NARROW[wanted] ?? wanted);
    return (elements(matrix) * GGUF_BITS[type]) / 8;
  };
  return {
    weightsBytes: Math.ceil(shape.matrices.reduce((sum, matrix) => sum + bytesOf(matrix), GGUF_SMALL_BYTES * shape.smallParameters)),
    embeddingBytes: Math.ceil(bytesOf(shape.matrices[0]!)),
  };
}

/** How else a model's weights can be kept: as the hub has them for vLLM, or as a GGUF file. */
export const VARIANTS = ["BF16", "FP8", "AWQ 4-bit", "Q8_0", "Q4_K_M"] as const;
export type Variant = (typeof VARIANTS)[number];

const VARIANT_SETTINGS: Partial<Record<Variant, Json>> = {
  FP8: { quant_method: "fp8" },
  "AWQ 4-bit": { quant_method: "awq", bits: 4, group_size: 128 },
};
/** A shape rebuilt from its own numbers counts as the same model when it has as many parameters, but for biases. */
const REBUILT_TOLERANCE = 0.02;

/** The same model with its weights kept in another way; undefined for models that are not built as usual (experts, shared layers). */
export function variantOf(shape: ModelShape, variant: Variant): ModelShape | undefined {
  const qwen2 = /^qwen2/i.test(shape.architecture);
  const config = {
    architectures: [shape.architecture],
    model_type: qwen2 ? "qwen2" : "llama",
    hidden_size: shape.hiddenSize,
    intermediate_size: shape.intermediateSize,
    num_hidden_layers: shape.layers,
    num_attention_heads: shape.attentionHeads,
    num_key_value_heads: shape.kvHeads,
    head_dim: shape.headDim,
    vocab_size: shape.vocabularySize,
    tie_word_embeddings: shape.tiedEmbeddings,
    max_position_embeddings: shape.trainedContextTokens,
    quantization_config: VARIANT_SETTINGS[variant],
  };
  const rebuilt = shapeOfConfig(config, shape.reference);
  if (Math.abs(rebuilt.parameters - shape.parameters) > REBUILT_TOLERANCE * shape.parameters) return undefined;
  const { matrices: _, smallParameters: __, kvGroups: ___, ...numbers } = rebuilt;
  const isGguf = variant === "Q8_0" || variant === "Q4_K_M";
  return {
    ...shape,
    ...numbers,
    ...(isGguf ? ggufWeights(rebuilt, variant) : {}),
    format: isGguf ? "gguf" : "safetensors",
    quantisation: variant,
    source: `computed for ${variant}`,
  };
}
