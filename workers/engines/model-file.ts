import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, readFile, rename, rm, stat, statfs, writeFile } from "node:fs/promises";
import path from "node:path";
import { createModelDownloader, resolveModelFile as findModelFile, readGgufFileInfo } from "node-llama-cpp";
import { z } from "zod";
import { MathllmError } from "../../queues/errors.ts";

export interface ModelFile {
  path: string;
  /** SHA-256 of the whole file, hex. */
  digest: string;
  sizeBytes: number;
}

export interface DownloadProgress {
  downloadedBytes: number;
  totalBytes: number;
}

export interface ModelFileOptions {
  /** Downloads go to `models/` below it; digests are remembered there. */
  dataDir: string;
  hfToken?: string;
  onProgress?: (progress: DownloadProgress) => void;
  signal?: AbortSignal;
}

const DISK_MARGIN_BYTES = 256 * 1024 * 1024;
const HUB_TIMEOUT_MS = 30_000;
const DEFAULT_HUB = "https://huggingface.co";

/**
 * A GGUF file for a reference: a path, or `hf:user/repository:quantisation` or `hf:user/repository/file.gguf`, which is
 * downloaded once; from then on no hub is asked. Throws `model-missing`, `model-invalid` or `model-download-failed`, each with
 * what to do, and the signal's reason once aborted.
 */
export async function resolveModelFile(reference: string, options: ModelFileOptions): Promise<ModelFile> {
  if (reference.startsWith("hf:")) return downloaded(reference, options);
  const file = path.resolve(reference);
  const sizeBytes = await fileSize(file);
  await checkGguf(file);
  return { path: file, sizeBytes, digest: await digestOf(file, options.dataDir) };
}

async function fileSize(file: string): Promise<number> {
  try {
    const found = await stat(file);
    if (!found.isFile()) throw new Error("it is not a file");
    return found.size;
  } catch (error) {
    throw new MathllmError(
      "model-missing",
      `Expected a GGUF file at ${file}; ${(error as Error).message}. Set STUDENT_MODEL, TALKER_MODEL or the draft to a file that is there, or to hf:user/repository:quantisation.`,
    );
  }
}

async function checkGguf(file: string): Promise<void> {
  try {
    const info = await readGgufFileInfo(file, { logWarnings: false });
    const lastByte = Math.max(0, ...(info.fullTensorInfo ?? []).map((tensor) => Number(tensor.filePart === 1 ? tensor.fileOffset : 0)));
    const { size } = await stat(file);
    if (lastByte >= size) throw new Error(`its tensors reach byte ${lastByte}, but it ends at ${size}: the file is cut short`);
  } catch (error) {
    throw new MathllmError("model-invalid", `Expected a whole GGUF file at ${file}; ${(error as Error).message}. Fetch it again.`);
  }
}

async function downloaded(reference: string, { dataDir, hfToken, onProgress, signal }: ModelFileOptions): Promise<ModelFile> {
  const folder = path.join(dataDir, "models");
  await mkdir(folder, { recursive: true });
  const earlier = await downloadedEarlier(reference, folder, dataDir);
  if (earlier !== undefined) return earlier;
  try {
    // First: the library tries a hub that does not answer for a quarter of an hour, this does not.
    const published = await publishedFiles(reference, hfToken);
    const downloader = await createModelDownloader({
      modelUri: reference,
      dirPath: folder,
      tokens: hfToken === undefined ? undefined : { huggingFace: hfToken },
      onProgress: ({ downloadedSize, totalSize }) => onProgress?.({ downloadedBytes: downloadedSize, totalBytes: totalSize }),
      // What is there already is resumed the next time.
      deleteTempFileOnCancel: false,
    });
    const totalBytes = downloader.totalSize;
    const present = await stat(downloader.entrypointFilePath).catch(() => undefined);
    if (present?.size !== totalBytes) {
      await checkDiskSpace(folder, totalBytes - downloader.downloadedSize, reference);
      await downloader.download({ signal });
      // A cancelled download resolves as if it were complete.
      signal?.throwIfAborted();
    }
    const file = downloader.entrypointFilePath;
    await checkGguf(file);
    const digest = await digestOf(file, dataDir);
    const digests = published.filter(({ size }) => size === totalBytes).map(({ oid }) => oid);
    if (digests.length > 0 && !digests.includes(digest)) {
      await rm(file, { force: true });
      throw new MathllmError(
        "model-invalid",
        `Expected ${reference} to have SHA-256 ${digests.join(" or ")}, got ${digest}. The file was removed; try again.`,
      );
    }
    return { path: file, sizeBytes: totalBytes, digest };
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof MathllmError) throw error;
    throw new MathllmError("model-download-failed", downloadAdvice(reference, error as Error, hfToken !== undefined), { cause: error });
  }
}

/** A file of an earlier download that was checked whole and has not changed since; undefined when the hub has to be asked. */
async function downloadedEarlier(reference: string, folder: string, dataDir: string): Promise<ModelFile | undefined> {
  const file = await findModelFile(reference, { directory: folder, download: false, cli: false }).catch(() => undefined);
  if (file === undefined) return undefined;
  const digest = (await readDigests(digestsFile(dataDir)))[await digestKey(file)];
  return digest === undefined ? undefined : { path: file, sizeBytes: await fileSize(file), digest };
}

function downloadAdvice(reference: string, error: Error, hasToken: boolean): string {
  const refused = /\b40[13]\b|unauthori[sz]ed|forbidden/i.test(
    `${error.message} ${String((error as { statusCode?: number }).statusCode ?? "")}`,
  );
  const advice = refused
    ? hasToken
      ? "The hub refused HF_TOKEN: accept the model's licence with that account, or use a token that may read it."
      : "The model is gated: accept its licence on the hub and set HF_TOKEN."
    : "Check the name and the network and try again; what was fetched is kept and resumed.";
  return `Could not download ${reference}: ${error.message}. ${advice}`;
}

async function checkDiskSpace(folder: string, neededBytes: number, reference: string): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  const freeBytes = bavail * bsize;
  if (freeBytes < neededBytes + DISK_MARGIN_BYTES) {
    throw new MathllmError(
      "model-download-failed",
      `Expected ${neededBytes + DISK_MARGIN_BYTES} bytes free in ${folder} for ${reference}, found ${freeBytes}. Free some or set DATA_DIR to another disk.`,
    );
  }
}

const treeSchema = z.array(z.object({ lfs: z.object({ oid: z.string(), size: z.number() }).optional() }));

/** Size and SHA-256 of the files in a repository; empty when the hub does not say. Throws when it does not answer. */
async function publishedFiles(reference: string, hfToken?: string): Promise<{ oid: string; size: number }[]> {
  const repository = /^hf:([^/]+\/[^/:#]+)/.exec(reference)?.[1];
  const hub = process.env.MODEL_ENDPOINT || process.env.HF_ENDPOINT || DEFAULT_HUB;
  const response = await fetch(`${hub.replace(/\/+$/, "")}/api/models/${repository}/tree/main?recursive=1`, {
    headers: hfToken === undefined ? {} : { authorization: `Bearer ${hfToken}` },
    signal: AbortSignal.timeout(HUB_TIMEOUT_MS),
  });
  if (!response.ok) return [];
  const tree = treeSchema.safeParse(await response.json());
  return (tree.data ?? []).flatMap(({ lfs }) => lfs ?? []);
}

/** SHA-256 of a file, remembered by path, size and time of change: reading five gigabytes at every load would cost half a minute. */
export async function digestOf(file: string, dataDir: string): Promise<string> {
  const cacheFile = digestsFile(dataDir);
  const key = await digestKey(file);
  const cache = await readDigests(cacheFile);
  const known = cache[key];
  if (known !== undefined) return known;
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  const digest = hash.digest("hex");
  await mkdir(dataDir, { recursive: true });
  const temporary = `${cacheFile}.${randomUUID()}`;
  await writeFile(temporary, JSON.stringify({ ...(await readDigests(cacheFile)), [key]: digest }));
  await rename(temporary, cacheFile);
  return digest;
}

function digestsFile(dataDir: string): string {
  return path.join(dataDir, "model-digests.json");
}

async function digestKey(file: string): Promise<string> {
  const { size, mtimeMs } = await stat(file);
  return `${file}:${size}:${mtimeMs}`;
}

async function readDigests(cacheFile: string): Promise<Record<string, string>> {
  try {
    return z.record(z.string(), z.string()).parse(JSON.parse(await readFile(cacheFile, "utf8")));
  } catch {
    return {};
  }
}
