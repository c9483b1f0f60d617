import { stat } from "node:fs/promises";
import path from "node:path";
import type { ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { PreparationProgress, PreparedModel } from "./engine.ts";
import { digestOf } from "./file-digest.ts";
import { checkGguf, type ModelFile, type ModelFileOptions } from "./gguf-file.ts";
import { downloadedEarlier, downloadModel } from "./model-download.ts";
import { SharedWork } from "./shared-work.ts";

const resolving = new SharedWork<ModelFile, PreparationProgress>();

/**
 * A GGUF file for a reference: a path, or `hf:user/repository:quantisation` or `hf:user/repository/file.gguf`, which is
 * downloaded once; from then on no hub is asked. Throws `model-missing`, `model-invalid` or `model-download-failed`, each with
 * what to do, and the signal's reason once aborted. One that is being resolved is not resolved beside that.
 */
export function resolveModelFile(reference: string, options: ModelFileOptions): Promise<ModelFile> {
  const key = `${path.resolve(options.dataDir)} ${reference}`;
  return resolving.run(key, options, (signal, onProgress) => {
    const own = { ...options, signal, onProgress };
    return reference.startsWith("hf:") ? downloadModel(reference, own) : localFile(reference, own);
  });
}

/** The same of what is on this machine already, as it is after `resolveModelFile`: nothing is downloaded. Throws `model-missing` otherwise. */
export async function presentModelFile(reference: string, options: Pick<ModelFileOptions, "dataDir" | "signal">): Promise<ModelFile> {
  if (!reference.startsWith("hf:")) return resolveModelFile(reference, options);
  const file = await downloadedEarlier(reference, options.dataDir);
  if (file !== undefined) return file;
  throw new MathllmError(
    "model-missing",
    `Expected ${reference} to have been downloaded into ${options.dataDir}; it is not there any more.`,
  );
}

/** Brings the model of a profile that runs GGUF files onto this machine, and its draft. */
export async function prepareGguf({ model, speculative }: ModelProfile, options: ModelFileOptions): Promise<PreparedModel> {
  const { enabled, draftModel } = speculative;
  const files: string[] = [];
  for (const reference of enabled && draftModel !== undefined ? [model, draftModel] : [model]) {
    files.push((await resolveModelFile(reference, options)).path);
  }
  return { files };
}

async function localFile(reference: string, options: ModelFileOptions): Promise<ModelFile> {
  const file = path.resolve(reference);
  const sizeBytes = await fileSize(file);
  await checkGguf(file);
  return { path: file, sizeBytes, digest: await digestOf(file, options.dataDir, options) };
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
