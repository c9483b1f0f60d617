import { open } from "node:fs/promises";
import { invalidModel, type KvGroup, kvGroups, type ModelShape } from "./model-shape-config.ts";

/**
 * Reads the header of a GGUF file (ggml's docs/gguf.md), never the weights. It does not use node-llama-cpp's reader, which takes
 * zeros for what lies beyond the end of a file and repeats as often as the file says: a cut or hostile header would never end.
 */

/** Where a header's bytes come from: a file, or a hub that answers range requests. */
export interface ByteSource {
  sizeBytes: number;
  /** Exactly `length` bytes unless the source ends before. */
  read(offset: number, length: number): Promise<Buffer>;
  close(): Promise<void>;
}

export async function openFileSource(file: string): Promise<ByteSource> {
  const handle = await open(file, "r");
  const { size } = await handle.stat();
  return {
    sizeBytes: size,
    read: async (offset, length) => {
      const buffer = Buffer.alloc(Math.max(0, Math.min(length, size - offset)));
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, offset);
      return buffer.subarray(0, bytesRead);
    },
    close: () => handle.close(),
  };
}

const CHUNK_BYTES = 1_048_576;
const MOST_HEADER_BYTES = 67_108_864;
const MOST_KEYS = 100_000;
const MOST_TENSORS = 1_000_000;
const MOST_KEPT_VALUES = 100_000;
const MOST_NESTING = 4;
const MOST_DIMENSIONS = 8;
const MOST_LAYERS = 10_000;
const MOST_WIDTH = 10_000_000;
const TOKENS_KEY = "tokenizer.ggml.tokens";

/** Numbers in a block and bytes of a block for each tensor type (ggml's type table). */
const TYPE_BLOCKS: Record<number, [numbers: number, bytes: number]> = {
  0: [1, 4],
  1: [1, 2],
  2: [32, 18],
  3: [32, 20],
  6: [32, 22],
  7: [32, 24],
  8: [32, 34],
  9: [32, 36],
  10: [256, 84],
  11: [256, 110],
  12: [256, 144],
  13: [256, 176],
  14: [256, 210],
  15: [256, 292],
  16: [256, 66],
  17: [256, 74],
  18: [256, 98],
  19: [256, 50],
  20: [32, 18],
  21: [256, 110],
  22: [256, 82],
  23: [256, 136],
  24: [1, 1],
  25: [1, 2],
  26: [1, 4],
  27: [1, 8],
  28: [1, 8],
  29: [256, 56],
  30: [1, 2],
  31: [32, 18],
  32: [32, 18],
  33: [32, 18],
  34: [256, 54],
  35: [256, 66],
  39: [32, 17],
  40: [64, 36],
};

/** `general.file_type` (llama.cpp's llama_ftype). */
const FILE_TYPES: Record<number, string> = {
  0: "FP32",
  1: "F16",
  2: "Q4_0",
  3: "Q4_1",
  7: "Q8_0",
  8: "Q5_0",
  9: "Q5_1",
  10: "Q2_K",
  11: "Q3_K_S",
  12: "Q3_K_M",
  13: "Q3_K_L",
  14: "Q4_K_S",
  15: "Q4_K_M",
  16: "Q5_K_S",
  17: "Q5_K_M",
  18: "Q6_K",
  19: "IQ2_XXS",
  20: "IQ2_XS",
  21: "Q2_K_S",
  22: "IQ3_XS",
  23: "IQ3_XXS",
  24: "IQ1_S",
  25: "IQ4_NL",
  26: "IQ3_S",
  27: "IQ3_M",
  28: "IQ2_S",
  29: "IQ2_M",
  30: "IQ4_XS",
  31: "IQ1_M",
  32: "BF16",
  36: "TQ1_0",
  37: "TQ2_0",
  38: "MXFP4",
};

/** Every how many layers one keeps all tokens, for files that have a window but don't say which layers (llama.cpp's own defaults). */
const WINDOW_PERIODS: Record<string, number> = { gemma2: 2, gemma3: 6, cohere2: 4, "gpt-oss": 2 };

type Scalar = number | string | boolean;

interface Tensor {
  name: string;
  dimensions: number[];
  elements: number;
  bytes: number;
}

interface Header {
  values: Map<string, Scalar | Scalar[]>;
  /** Of arrays, also of those whose entries are not kept. */
  lengths: Map<string, number>;
  tensors: Tensor[];
}

class Cursor {
  readonly where: string;
  readonly #source: ByteSource;
  #buffer: Buffer = Buffer.alloc(0);
  #bufferStart = 0;
  offset = 0;

  constructor(source: ByteSource, where: string) {
    this.#source = source;
    this.where = where;
  }

  get remaining(): number {
    return Math.min(this.#source.sizeBytes, MOST_HEADER_BYTES) - this.offset;
  }

  #expect(length: number, what: string): void {
    if (length > this.remaining) {
      throw invalidModel(this.where, `${length} bytes of ${what} at byte ${this.offset}`, `${Math.max(0, this.remaining)} before its end`);
    }
  }

  skip(length: number, what: string): void {
    this.#expect(length, what);
    this.offset += length;
  }

  async take(length: number, what: string): Promise<Buffer> {
    this.#expect(length, what);
    let start = this.offset - this.#bufferStart;
    if (start < 0 || start + length > this.#buffer.length) {
      this.#buffer = await this.#source.read(this.offset, Math.max(length, CHUNK_BYTES));
      this.#bufferStart = this.offset;
      start = 0;
      if (this.#buffer.length < length)
        throw invalidModel(this.where, `${length} bytes of ${what}`, `${this.#buffer.length}: it ended early`);
    }
    this.offset += length;
    return this.#buffer.subarray(start, start + length);
  }

  async u32(what: string): Promise<number> {
    return (await this.take(4, what)).readUInt32LE();
  }

  async u64(what: string, most: number): Promise<number> {
    const value = (await this.take(8, what)).readBigUInt64LE();
    if (value > BigInt(most)) throw invalidModel(this.where, `at most ${most} for ${what}`, String(value));
    return Number(value);
  }

  async text(what: string): Promise<string> {
    const length = await this.u64(`the length of ${what}`, this.remaining);
    return (await this.take(length, what)).toString("utf8");
  }

  async skipText(what: string): Promise<void> {
    this.skip(await this.u64(`the length of ${what}`, this.remaining), what);
  }
}

const STRING = 8;
const ARRAY = 9;
/** Bytes and reading of the value types of fixed width. */
const FIXED: Record<number, [bytes: number, read: (buffer: Buffer) => Scalar]> = {
  0: [1, (buffer) => buffer.readUInt8()],
  1: [1, (buffer) => buffer.readInt8()],
  2: [2, (buffer) => buffer.readUInt16LE()],
  3: [2, (buffer) => buffer.readInt16LE()],
  4: [4, (buffer) => buffer.readUInt32LE()],
  5: [4, (buffer) => buffer.readInt32LE()],
  6: [4, (buffer) => buffer.readFloatLE()],
  7: [1, (buffer) => buffer.readUInt8() !== 0],
  10: [8, (buffer) => Number(buffer.readBigUInt64LE())],
  11: [8, (buffer) => Number(buffer.readBigInt64LE())],
  12: [8, (buffer) => buffer.readDoubleLE()],
};

async function readArray(cursor: Cursor, key: string, header: Header, keepTexts: boolean, nesting = 0): Promise<void> {
  if (nesting > MOST_NESTING) throw invalidModel(cursor.where, `at most ${MOST_NESTING} arrays in one another`, key);
  const type = await cursor.u32(`the type of ${key}`);
  const smallest = type === STRING ? 8 : type === ARRAY ? 12 : FIXED[type]?.[0];
  if (smallest === undefined) throw invalidModel(cursor.where, `a known type for the entries of ${key}`, type);
  const length = await cursor.u64(`the length of ${key}`, Math.floor(cursor.remaining / smallest));
  if (nesting === 0) header.lengths.set(key, length);
  const kept: Scalar[] = [];
  if (type === ARRAY) {
    for (let i = 0; i < length; i++) await readArray(cursor, key, header, false, nesting + 1);
  } else if (type === STRING) {
    for (let i = 0; i < length; i++) {
      if (keepTexts) kept.push(await cursor.text(key));
      else await cursor.skipText(key);
    }
  } else {
    const [bytes, read] = FIXED[type]!;
    if (nesting === 0 && length <= MOST_KEPT_VALUES) {
      const entries = await cursor.take(bytes * length, key);
      for (let i = 0; i < length; i++) kept.push(read(entries.subarray(i * bytes)));
    } else {
      cursor.skip(bytes * length, key);
    }
  }
  if (nesting === 0) header.values.set(key, kept);
}

async function readHeader(source: ByteSource, where: string, keepTokens: boolean): Promise<Header> {
  const cursor = new Cursor(source, where);
  const magic = (await cursor.take(4, "the GGUF mark")).toString("latin1");
  if (magic !== "GGUF") throw invalidModel(where, "a GGUF file, which begins with GGUF", magic);
  const version = await cursor.u32("the version");
  if (version !== 2 && version !== 3) throw invalidModel(where, "GGUF version 2 or 3, little-endian", version);
  const tensorCount = await cursor.u64("the number of tensors", MOST_TENSORS);
  const keyCount = await cursor.u64("the number of keys", MOST_KEYS);
  const header: Header = { values: new Map(), lengths: new Map(), tensors: [] };
  for (let i = 0; i < keyCount; i++) {
    const key = await cursor.text("a key");
    const type = await cursor.u32(`the type of ${key}`);
    if (type === STRING) header.values.set(key, await cursor.text(key));
    else if (type === ARRAY) await readArray(cursor, key, header, keepTokens && key === TOKENS_KEY);
    else {
      const fixed = FIXED[type];
      if (fixed === undefined) throw invalidModel(where, `a known type for ${key}`, type);
      header.values.set(key, fixed[1](await cursor.take(fixed[0], key)));
    }
  }
  for (let i = 0; i < tensorCount; i++) header.tensors.push(await readTensor(cursor));
  return header;
}

async function readTensor(cursor: Cursor): Promise<Tensor> {
  const name = await cursor.text("a tensor's name");
  const count = await cursor.u32(`the dimensions of ${name}`);
  if (count > MOST_DIMENSIONS) throw invalidModel(cursor.where, `at most ${MOST_DIMENSIONS} dimensions for ${name}`, count);
  const dimensions: number[] = [];
  for (let i = 0; i < count; i++) dimensions.push(await cursor.u64(`a dimension of ${name}`, Number.MAX_SAFE_INTEGER));
  const type = await cursor.u32(`the type of ${name}`);
  await cursor.take(8, `the offset of ${name}`);
  const block = TYPE_BLOCKS[type];
  if (block === undefined) throw invalidModel(cursor.where, `a known tensor type for ${name}`, type);
  const elements = dimensions.reduce((product, dimension) => product * dimension, 1);
  return { name, dimensions, elements, bytes: Math.ceil(elements / block[0]) * block[1] };
}

const PART = /-(\d{5})-of-(\d{5})(\.gguf)$/;
const MOST_PARTS = 1000;

/** The shape in a GGUF file's header. `openSource` is asked for the file and, where it is split, for its other parts. */
export async function shapeOfGguf(
  location: string,
  openSource: (location: string) => Promise<ByteSource>,
): Promise<Omit<ModelShape, "reference">> {
  const read = async (part: string) => {
    const source = await openSource(part);
    try {
      return await readHeader(source, part, false);
    } finally {
      await source.close();
    }
  };
  const header = await read(location);
  const parts = Number(PART.exec(location)?.[2] ?? 1);
  if (parts > MOST_PARTS) throw invalidModel(location, `at most ${MOST_PARTS} parts`, parts);
  for (let part = 1; part <= parts; part++) {
    const other = location.replace(PART, `-${String(part).padStart(5, "0")}-of-$2$3`);
    if (other !== location) header.tensors = header.tensors.concat((await read(other)).tensors);
  }
  return shapeOfHeader(header, location);
}

/** The tokens of a GGUF file in order; null when it has none. */
export async function ggufTokens(location: string, openSource: (location: string) => Promise<ByteSource>): Promise<string[] | null> {
  const source = await openSource(location);
  try {
    return ((await readHeader(source, location, true)).values.get(TOKENS_KEY) as string[] | undefined) ?? null;
  } finally {
    await source.close();
  }
}

function shapeOfHeader({ values, lengths, tensors }: Header, where: string): Omit<ModelShape, "reference"> {
  const architecture = values.get("general.architecture");
  if (typeof architecture !== "string" || architecture === "") throw invalidModel(where, "general.architecture", architecture);
  const checked = (key: string, value: unknown, least: number, most: number): number => {
    if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) {
      throw invalidModel(where, `${key} to be a whole number from ${least} to ${most}`, value);
    }
    return value;
  };
  const count = (name: string, most: number, fallback?: number, least = 1): number => {
    const key = `${architecture}.${name}`;
    const value = values.get(key);
    return value === undefined && fallback !== undefined ? fallback : checked(key, value, least, most);
  };
  const layers = count("block_count", MOST_LAYERS);
  /** One number for all layers, or an array with one for each. */
  const perLayer = (name: string, fallback: number[]): number[] => {
    const key = `${architecture}.${name}`;
    const value = values.get(key);
    if (value === undefined) return fallback;
    if (!Array.isArray(value)) return Array<number>(layers).fill(checked(key, value, 0, MOST_WIDTH));
    if (value.length < layers) throw invalidModel(where, `${key} with ${layers} entries`, value.length);
    return value.slice(0, layers).map((each) => checked(key, each, 0, MOST_WIDTH));
  };
  const hiddenSize = count("embedding_length", MOST_WIDTH);
  const heads = perLayer("attention.head_count", []);
  const attentionHeads = Math.max(0, ...heads);
  if (attentionHeads === 0)
    throw invalidModel(where, `${architecture}.attention.head_count`, values.get(`${architecture}.attention.head_count`) ?? "nothing");
  const kvHeads = perLayer("attention.head_count_kv", heads);
  const headDim = count("attention.key_length", MOST_WIDTH, Math.floor(hiddenSize / attentionHeads));
  const valueDim = count("attention.value_length", MOST_WIDTH, headDim);
  const embedding = tensors.find(({ name }) => name === "token_embd.weight");
  const output = tensors.find(({ name }) => name === "output.weight");
  const vocabularySize = embedding?.dimensions[1] ?? lengths.get(TOKENS_KEY) ?? count("vocab_size", MOST_WIDTH);
  const windows = windowsOf(values, architecture, layers, count("attention.sliding_window", 1e9, 0, 0), where);
  const latent = count("attention.kv_lora_rank", MOST_WIDTH, 0, 0);
  const groups = new Map<string, KvGroup>();
  kvHeads.forEach((headsOfLayer, layer) => {
    const valuesPerToken = latent > 0 ? latent + count("rope.dimension_count", MOST_WIDTH, 0, 0) : headsOfLayer * (headDim + valueDim);
    if (valuesPerToken === 0) return;
    const key = `${valuesPerToken} ${windows[layer]}`;
    const [group] = kvGroups(1, windows[layer] === null ? 0 : 1, valuesPerToken, windows[layer] ?? 0);
    groups.set(key, { ...group!, layers: (groups.get(key)?.layers ?? 0) + 1 });
  });
  const fileType = values.get("general.file_type");
  return {
    format: "gguf",
    architecture,
    layers,
    hiddenSize,
    intermediateSize: Math.max(...perLayer("feed_forward_length", [4 * hiddenSize])),
    attentionHeads,
    kvHeads: Math.max(...kvHeads),
    headDim,
    kvGroups: [...groups.values()],
    vocabularySize,
    tiedEmbeddings: output === undefined,
    parameters: tensors.reduce((sum, tensor) => sum + tensor.elements, 0),
    weightsBytes: tensors.reduce((sum, tensor) => sum + tensor.bytes, 0),
    embeddingBytes: embedding?.bytes ?? 0,
    quantisation: FILE_TYPES[Number(fileType)] ?? "GGUF",
    trainedContextTokens: count("context_length", 1e9, 4096),
    source: `the tensors of ${where}`,
  };
}

/** Each layer's window, null for layers that keep all tokens. */
function windowsOf(values: Header["values"], architecture: string, layers: number, windowTokens: number, where: string): (number | null)[] {
  const all = Array<number | null>(layers).fill(null);
  if (windowTokens === 0) return all;
  const pattern = values.get(`${architecture}.attention.sliding_window_pattern`);
  if (Array.isArray(pattern)) {
    if (pattern.length < layers)
      throw invalidModel(where, `${architecture}.attention.sliding_window_pattern with ${layers} entries`, pattern.length);
    return all.map((_, layer) => (pattern[layer] ? windowTokens : null));
  }
  const period = typeof pattern === "number" ? pattern : (WINDOW_PERIODS[architecture] ?? 0);
  return period > 1 ? all.map((_, layer) => ((layer + 1) % period === 0 ? null : windowTokens)) : all;
}
