import { readdir, readFile, stat } from "node:fs/promises";
import path from "node:path";
import { MathllmError } from "../../queues/errors.ts";
import { knownModel, knownShape, parseHubName } from "./known-models.ts";
import { invalidModel, type ModelShape, shapeOfConfig } from "./model-shape-config.ts";
import { type ByteSource, ggufTokens, openFileSource, shapeOfGguf } from "./model-shape-gguf.ts";

export type { KvGroup, ModelShape } from "./model-shape-config.ts";

export interface ModelShapeOptions {
  /** Where downloads lie (`models/` below it); unset: they are not looked at. */
  dataDir?: string;
  hfToken?: string;
  /** Default: HF_ENDPOINT, else huggingface.co. */
  hub?: string;
  /** Nothing is asked of the hub: what is neither here nor known is `model-missing`. */
  offline?: boolean;
  timeoutMs?: number;
}

const DEFAULT_HUB = "https://huggingface.co";
const HUB_TIMEOUT_MS = 10_000;
const MOST_JSON_BYTES = 64 * 1_048_576;
const DEFAULT_QUANTISATION = "Q4_K_M";

/**
 * What a model needs, told by its own files without loading weights: a GGUF file, a folder as transformers keeps it, or a name on
 * the hub (`owner/name`, `hf:owner/name:quantisation`, `hf:owner/name/file.gguf`). Known models and earlier downloads need no
 * network; of others only headers and JSON are fetched. Throws `model-missing`, `model-invalid` or `model-download-failed`.
 */
export async function readModelShape(reference: string, options: ModelShapeOptions = {}): Promise<ModelShape> {
  return readable(reference, () => shapeAt(reference, options));
}

async function shapeAt(reference: string, options: ModelShapeOptions): Promise<ModelShape> {
  const local = await localPath(reference, options);
  if (local !== undefined) {
    const shape = local.isFolder ? await shapeOfFolder(local.path) : await shapeOfGguf(local.path, openFileSource);
    return { ...shape, reference };
  }
  const known = knownShape(reference);
  if (known !== undefined) return known;
  if (options.offline === true) throw new MathllmError("model-missing", `${reference} is neither on this machine nor known.`);
  const hub = new Hub(options);
  const file = /^hf:([\w.-]+\/[\w.-]+)\/(.+\.gguf)$/i.exec(reference);
  if (file !== null) return { ...(await hub.ggufShape(file[1]!, file[2]!)), reference };
  const name = parseHubName(reference);
  if (name === undefined) {
    throw new MathllmError(
      "model-missing",
      `Expected a GGUF file, a model's folder, owner/name or hf:owner/name:quantisation, found ${reference}.`,
    );
  }
  return { ...(await hub.shape(name.repository, name.quantisation)), reference };
}

/** The tokens of a model in order of their numbers, where its tokenizer is on this machine; null where it is not. */
export async function readTokens(reference: string, options: ModelShapeOptions = {}): Promise<string[] | null> {
  return readable(reference, async () => {
    const local = await localPath(reference, options);
    if (local === undefined) return null;
    return local.isFolder ? tokensOfFolder(local.path) : ggufTokens(local.path, openFileSource);
  });
}

/** What the system refuses (no permission, a part that is gone) is a model that is not there to be read. */
async function readable<T>(reference: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    if (error instanceof MathllmError || !(error instanceof Error) || !("syscall" in error)) throw error;
    throw new MathllmError("model-missing", `Expected to read ${reference}; ${error.message}.`, { cause: error });
  }
}

async function localPath(reference: string, { dataDir }: ModelShapeOptions): Promise<{ path: string; isFolder: boolean } | undefined> {
  if (reference.startsWith("hf:")) {
    const folder = dataDir === undefined ? undefined : path.join(dataDir, "models");
    const found = folder === undefined ? undefined : await downloaded(reference, folder);
    return found === undefined ? undefined : { path: found, isFolder: false };
  }
  const place = path.resolve(reference);
  const found = await stat(place).catch(() => undefined);
  if (found?.isFile()) {
    return { path: path.basename(place) === "config.json" ? path.dirname(place) : place, isFolder: path.basename(place) === "config.json" };
  }
  if (found?.isDirectory()) return { path: place, isFolder: true };
  if (parseHubName(reference) !== undefined) return undefined;
  throw new MathllmError("model-missing", `Expected a GGUF file, or a folder with config.json, at ${place}; nothing is there.`);
}

/** The file of an earlier download, as node-llama-cpp names it; nothing is fetched. */
async function downloaded(reference: string, folder: string): Promise<string | undefined> {
  if ((await stat(folder).catch(() => undefined)) === undefined) return undefined;
  const { resolveModelFile } = await import("node-llama-cpp");
  return resolveModelFile(reference, { directory: folder, download: false, cli: false }).catch(() => undefined);
}

async function readJson(file: string): Promise<unknown> {
  const found = await stat(file);
  if (found.size > MOST_JSON_BYTES) throw invalidModel(file, `a JSON file of at most ${MOST_JSON_BYTES} bytes`, `${found.size} bytes`);
  return parseJson(await readFile(file, "utf8"), file);
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw invalidModel(where, "JSON", `${text.slice(-40)} (${(error as Error).message})`);
  }
}

async function readJsonIfThere(file: string): Promise<unknown> {
  return (await stat(file).catch(() => undefined))?.isFile() ? readJson(file) : undefined;
}

async function shapeOfFolder(folder: string): Promise<Omit<ModelShape, "reference">> {
  const configFile = path.join(folder, "config.json");
  const config = await readJsonIfThere(configFile);
  if (config === undefined) {
    const ggufs = (await readdir(folder)).filter((name) => name.endsWith(".gguf"));
    const hint = ggufs.length > 0 ? ` It has ${ggufs.slice(0, 3).join(", ")}: name one of them.` : "";
    throw new MathllmError("model-missing", `Expected config.json in ${folder}; it is not there.${hint}`);
  }
  const shape = shapeOf(config, configFile);
  for (const name of ["model.safetensors.index.json", "pytorch_model.bin.index.json"]) {
    const index = await readJsonIfThere(path.join(folder, name));
    if (index !== undefined)
      return { ...shape, weightsBytes: totalSizeOf(index, path.join(folder, name)), source: `total_size in ${name}` };
  }
  const files = (await readdir(folder)).filter((name) => name.endsWith(".safetensors"));
  let weightsBytes = 0;
  for (const file of files) weightsBytes += await safetensorsBytes(path.join(folder, file));
  return weightsBytes === 0 ? shape : { ...shape, weightsBytes, source: `the headers of ${files.join(", ")}` };
}

function shapeOf(config: unknown, where: string): Omit<ModelShape, "reference"> {
  const { matrices: _, smallParameters: __, ...shape } = shapeOfConfig(config, where);
  return { ...shape, format: "safetensors", source: `computed from ${where}` };
}

function totalSizeOf(index: unknown, where: string): number {
  const total = (index as { metadata?: { total_size?: unknown } } | null)?.metadata?.total_size;
  if (typeof total !== "number" || !Number.isInteger(total) || total < 1) {
    throw invalidModel(where, "metadata.total_size to be a whole number of bytes", total);
  }
  return total;
}

/** A safetensors file begins with its header's length and the header: a JSON object with each tensor's place. */
async function safetensorsBytes(file: string): Promise<number> {
  const source = await openFileSource(file);
  try {
    const lengthBytes = await source.read(0, 8);
    if (lengthBytes.length < 8) throw invalidModel(file, "8 bytes with the header's length", `${lengthBytes.length}`);
    const length = lengthBytes.readBigUInt64LE();
    if (length > BigInt(Math.min(MOST_JSON_BYTES, source.sizeBytes - 8))) {
      throw invalidModel(file, `a header of at most ${Math.min(MOST_JSON_BYTES, source.sizeBytes - 8)} bytes`, String(length));
    }
    const header = parseJson((await source.read(8, Number(length))).toString("utf8"), file);
    if (typeof header !== "object" || header === null || Array.isArray(header)) throw invalidModel(file, "a header with tensors", header);
    let bytes = 0;
    for (const [name, tensor] of Object.entries(header)) {
      if (name === "__metadata__") continue;
      const [start, end] = (tensor as { data_offsets?: unknown[] } | null)?.data_offsets ?? [];
      if (typeof start !== "number" || typeof end !== "number" || !(end >= start && start >= 0)) {
        throw invalidModel(file, `data_offsets of ${name} to be two rising numbers`, tensor);
      }
      bytes += end - start;
    }
    return bytes;
  } finally {
    await source.close();
  }
}

async function tokensOfFolder(folder: string): Promise<string[] | null> {
  const file = path.join(folder, "tokenizer.json");
  const tokenizer = (await readJsonIfThere(file)) as { model?: { vocab?: unknown }; added_tokens?: unknown } | null | undefined;
  if (tokenizer === undefined) return null;
  const tokens: string[] = [];
  const set = (token: unknown, id: unknown) => {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > 10_000_000) throw invalidModel(file, `a number for ${token}`, id);
    tokens[id] = String(token);
  };
  const vocabulary = tokenizer?.model?.vocab;
  // Unigram vocabularies are lists of tokens with their scores.
  if (Array.isArray(vocabulary)) for (const [id, entry] of vocabulary.entries()) set(Array.isArray(entry) ? entry[0] : entry, id);
  else if (typeof vocabulary === "object" && vocabulary !== null) for (const [token, id] of Object.entries(vocabulary)) set(token, id);
  else throw invalidModel(file, "model.vocab", vocabulary);
  const added = Array.isArray(tokenizer?.added_tokens) ? tokenizer.added_tokens : [];
  for (const token of added as ({ content?: unknown; id?: unknown } | null)[]) set(token?.content, token?.id);
  return Array.from(tokens, (token) => token ?? "");
}

/** JSON and headers from a hub that speaks Hugging Face's addresses. */
class Hub {
  readonly #base: string;
  readonly #headers: Record<string, string>;
  readonly #timeoutMs: number;

  constructor({ hub, hfToken, timeoutMs }: ModelShapeOptions) {
    this.#base = (hub ?? (process.env.HF_ENDPOINT || DEFAULT_HUB)).replace(/\/+$/, "");
    this.#headers = hfToken === undefined ? {} : { authorization: `Bearer ${hfToken}` };
    this.#timeoutMs = timeoutMs ?? HUB_TIMEOUT_MS;
  }

  async shape(repository: string, quantisation: string | undefined): Promise<Omit<ModelShape, "reference">> {
    const config = quantisation === undefined ? await this.#json(`${repository}/resolve/main/config.json`) : undefined;
    if (config === undefined) return this.#ggufOf(repository, quantisation);
    const shape = shapeOf(config, `${repository}/config.json`);
    const index = await this.#json(`${repository}/resolve/main/model.safetensors.index.json`);
    if (index !== undefined) {
      const where = `${repository}/model.safetensors.index.json`;
      return { ...shape, weightsBytes: totalSizeOf(index, where), source: `total_size in ${where}` };
    }
    const weightsBytes = (await this.#files(repository))
      .filter(({ name }) => /^[^/]+\.safetensors$/.test(name))
      .reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    return weightsBytes === 0 ? shape : { ...shape, weightsBytes, source: `the safetensors files of ${repository}` };
  }

  async #ggufOf(repository: string, quantisation = DEFAULT_QUANTISATION): Promise<Omit<ModelShape, "reference">> {
    const names = (await this.#files(repository)).map(({ name }) => name).filter((name) => /\.gguf$/i.test(name));
    const wanted = quantisation.toLowerCase();
    const file = names.find((name) =>
      new RegExp(`[-._]${wanted.replaceAll(/[^\w]/g, "\\$&")}(-\\d{5}-of-\\d{5})?\\.gguf$`).test(name.toLowerCase()),
    );
    if (file === undefined) {
      throw new MathllmError(
        "model-missing",
        `Expected config.json or a ${quantisation} GGUF file in ${repository} on ${this.#base}, found ${names.slice(0, 12).join(", ") || "neither"}.`,
      );
    }
    return this.ggufShape(repository, file);
  }

  ggufShape(repository: string, file: string): Promise<Omit<ModelShape, "reference">> {
    return shapeOfGguf(`${repository}/resolve/main/${file}`, (location) => this.#open(location));
  }

  async #files(repository: string): Promise<{ name: string; sizeBytes: number }[]> {
    const tree = await this.#json(`api/models/${repository}/tree/main?recursive=1`);
    if (tree === undefined) throw this.#missing(repository);
    if (!Array.isArray(tree)) throw invalidModel(`${this.#base}/${repository}`, "a list of files", tree);
    return (tree as ({ path?: unknown; size?: unknown } | null)[]).map((entry) => {
      if (typeof entry?.path !== "string") throw invalidModel(`${this.#base}/${repository}`, "a list of files with paths", entry);
      return { name: entry.path, sizeBytes: typeof entry.size === "number" && entry.size >= 0 ? entry.size : 0 };
    });
  }

  async #open(location: string): Promise<ByteSource> {
    const range = async (offset: number, length: number) => {
      const response = await this.#fetch(location, { range: `bytes=${offset}-${offset + length - 1}` });
      if (response === undefined) throw this.#missing(location);
      if (response.status !== 206) {
        await response.body?.cancel();
        throw this.#failed(location, `it answered ${response.status} where part of a file was asked for`);
      }
      return response;
    };
    const first = await range(0, 1);
    await first.arrayBuffer();
    const sizeBytes = Number(/\/(\d+)$/.exec(first.headers.get("content-range") ?? "")?.[1]);
    if (!Number.isFinite(sizeBytes)) throw this.#failed(location, "it did not tell the file's size");
    return {
      sizeBytes,
      read: async (offset, length) => {
        const wanted = Math.min(length, sizeBytes - offset);
        if (wanted <= 0) return Buffer.alloc(0);
        return Buffer.from(await (await range(offset, wanted)).arrayBuffer());
      },
      close: async () => {},
    };
  }

  /** undefined where the hub has nothing. */
  async #json(location: string): Promise<unknown> {
    const response = await this.#fetch(location, {});
    if (response === undefined) return undefined;
    const announced = Number(response.headers.get("content-length") ?? 0);
    if (announced > MOST_JSON_BYTES) throw this.#failed(location, `it would send ${announced} bytes`);
    try {
      return parseJson(await response.text(), `${this.#base}/${location}`);
    } catch (error) {
      throw error instanceof MathllmError ? error : this.#failed(location, (error as Error).message);
    }
  }

  async #fetch(location: string, headers: Record<string, string>): Promise<Response | undefined> {
    let response: Response;
    try {
      const url = new URL(`${this.#base}/${location}`);
      response = await fetch(url, { headers: { ...this.#headers, ...headers }, signal: AbortSignal.timeout(this.#timeoutMs) });
    } catch (error) {
      const cause = (error as { cause?: Error }).cause?.message;
      throw this.#failed(location, cause ? `${(error as Error).message}: ${cause}` : (error as Error).message);
    }
    if (response.ok) return response;
    await response.body?.cancel();
    if (response.status === 404) return undefined;
    const refused = response.status === 401 || response.status === 403;
    const advice = refused ? "; the model is gated or private: accept its licence and set HF_TOKEN" : "";
    throw this.#failed(location, `it answered ${response.status}${advice}`);
  }

  #missing(location: string): MathllmError {
    return new MathllmError("model-missing", `Expected ${location} on ${this.#base}; it is not there. Check the name.`);
  }

  #failed(location: string, reason: string): MathllmError {
    return new MathllmError(
      "model-download-failed",
      `Could not read ${location} from ${this.#base}: ${reason}. Only headers are asked for; a GGUF file or a folder with config.json needs no hub.`,
    );
  }
}

/** Whether the tokenizers of two models are known to be of one family, of different ones, or not known (undefined). */
export function sameTokenizerFamily(one: string, other: string): boolean | undefined {
  const [a, b] = [knownModel(one), knownModel(other)];
  return a === undefined || b === undefined ? undefined : a.model.tokenizer === b.model.tokenizer;
}
