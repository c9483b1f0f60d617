import { mkdir, rm, stat, statfs } from "node:fs/promises";
import path from "node:path";
import { createModelDownloader, resolveModelFile as findModelFile } from "node-llama-cpp";
import { z } from "zod";
import { MathllmError } from "../../queues/errors.ts";
import { digestOf, knownDigest } from "./file-digest.ts";
import { withFileLock } from "./file-lock.ts";
import { checkGguf, type ModelFile, type ModelFileOptions } from "./gguf-file.ts";

const DISK_MARGIN_BYTES = 256 * 1024 * 1024;
const HUB_TIMEOUT_MS = 30_000;
/** The library tries a hub that has fallen silent for a quarter of an hour. */
const STALL_TIMEOUT_MS = 60_000;
const DEFAULT_HUB = "https://huggingface.co";

type DownloadOptions = ModelFileOptions & { signal: AbortSignal };

/**
 * The file of an `hf:` reference, from an earlier download or the hub. Only one process at a time fetches it into a folder; what was fetched of a download that broke off is resumed.
 */
export async function downloadModel(reference: string, options: DownloadOptions): Promise<ModelFile> {
  const { dataDir, hfToken, signal, onProgress } = options;
  const earlier = await downloadedEarlier(reference, dataDir);
  if (earlier !== undefined) return earlier;
  const folder = modelFolder(dataDir);
  await mkdir(folder, { recursive: true });
  try {
    // Before the library, which would try a hub that can't be reached for a quarter of an hour.
    const published = await publishedFiles(reference, signal, hfToken);
    await options.downloadTurn?.();
    const onWaiting = () => onProgress?.({ doing: "waiting", doneBytes: 0, totalBytes: null });
    return await withFileLock(path.join(folder, lockName(reference)), { signal, onWaiting }, async (whileLocked) => {
      const fetchedMeanwhile = await downloadedEarlier(reference, dataDir);
      return fetchedMeanwhile ?? (await download(reference, folder, published, { ...options, signal: whileLocked }));
    });
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof MathllmError) throw error;
    throw new MathllmError("model-download-failed", downloadAdvice(reference, error as Error, hfToken !== undefined), { cause: error });
  }
}

/** A file of an earlier download that was checked whole and has not changed since; undefined when the hub has to be asked. */
export async function downloadedEarlier(reference: string, dataDir: string): Promise<ModelFile | undefined> {
  const directory = modelFolder(dataDir);
  const file = await findModelFile(reference, { directory, download: false, cli: false }).catch(() => undefined);
  if (file === undefined) return undefined;
  const digest = await knownDigest(file, dataDir);
  return digest === undefined ? undefined : { path: file, sizeBytes: (await stat(file)).size, digest };
}

function modelFolder(dataDir: string): string {
  return path.join(dataDir, "models");
}

/** The library names a file after its reference, so one lock a reference is one a file. */
function lockName(reference: string): string {
  return reference.replaceAll(/[^\w.-]+/g, "_");
}

async function download(
  reference: string,
  folder: string,
  published: { oid: string; size: number }[],
  { dataDir, hfToken, onProgress, signal }: DownloadOptions,
): Promise<ModelFile> {
  const stalled = new AbortController();
  const stall = setTimeout(() => {
    const seconds = STALL_TIMEOUT_MS / 1000;
    stalled.abort(
      new MathllmError("model-download-failed", `The hub has sent nothing of ${reference} for ${seconds} s; what came is kept.`),
    );
  }, STALL_TIMEOUT_MS);
  const ended = AbortSignal.any([signal, stalled.signal]);
  let doneBytes = 0;
  let file: string;
  let totalBytes: number;
  try {
    const creating = createModelDownloader({
      modelUri: reference,
      dirPath: folder,
      tokens: hfToken === undefined ? undefined : { huggingFace: hfToken },
      onProgress: ({ downloadedSize, totalSize }) => {
        if (downloadedSize !== doneBytes) stall.refresh();
        doneBytes = downloadedSize;
        onProgress?.({ doing: "downloading", doneBytes, totalBytes: totalSize });
      },
      // What is there already is resumed the next time.
      deleteTempFileOnCancel: false,
    });
    const downloader = await unlessAborted(creating, ended);
    totalBytes = downloader.totalSize;
    file = downloader.entrypointFilePath;
    const present = await stat(file).catch(() => undefined);
    if (present?.size !== totalBytes) {
      await checkDiskSpace(folder, totalBytes - downloader.downloadedSize, reference);
      await downloader.download({ signal: ended });
      // A cancelled download resolves as if it were complete.
      ended.throwIfAborted();
    }
  } finally {
    clearTimeout(stall);
  }
  await checkGguf(file);
  const digest = await digestOf(file, dataDir, { signal, onProgress });
  const digests = published.filter(({ size }) => size === totalBytes).map(({ oid }) => oid);
  if (digests.length > 0 && !digests.includes(digest)) {
    await rm(file, { force: true });
    throw new MathllmError(
      "model-invalid",
      `Expected ${reference} to have SHA-256 ${digests.join(" or ")}, got ${digest}. The file was removed; try again.`,
    );
  }
  return { path: file, sizeBytes: totalBytes, digest };
}

/** Rejects with the signal's reason, whatever becomes of work that can't be aborted. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
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
async function publishedFiles(reference: string, signal: AbortSignal, hfToken?: string): Promise<{ oid: string; size: number }[]> {
  const repository = /^hf:([^/]+\/[^/:#]+)/.exec(reference)?.[1];
  const hub = process.env.MODEL_ENDPOINT || process.env.HF_ENDPOINT || DEFAULT_HUB;
  const response = await fetch(`${hub.replace(/\/+$/, "")}/api/models/${repository}/tree/main?recursive=1`, {
    headers: hfToken === undefined ? {} : { authorization: `Bearer ${hfToken}` },
    signal: AbortSignal.any([signal, AbortSignal.timeout(HUB_TIMEOUT_MS)]),
  });
  if (!response.ok) return [];
  const tree = treeSchema.safeParse(await response.json());
  return (tree.data ?? []).flatMap(({ lfs }) => lfs ?? []);
}
