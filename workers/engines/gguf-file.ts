import { stat } from "node:fs/promises";
import { readGgufFileInfo } from "node-llama-cpp";
import { MathllmError } from "../../queues/errors.ts";
import type { PrepareOptions } from "./engine.ts";

export interface ModelFile {
  path: string;
  /** SHA-256 of the whole file, hex. */
  digest: string;
  sizeBytes: number;
}

export interface ModelFileOptions extends PrepareOptions {
  /** Downloads go to `models/` below it; digests are remembered there. */
  dataDir: string;
  hfToken?: string;
}

/** Throws `model-invalid` unless the file is a whole GGUF file. */
export async function checkGguf(file: string): Promise<void> {
  try {
    const info = await readGgufFileInfo(file, { logWarnings: false });
    const lastByte = Math.max(0, ...(info.fullTensorInfo ?? []).map((tensor) => Number(tensor.filePart === 1 ? tensor.fileOffset : 0)));
    const { size } = await stat(file);
    if (lastByte >= size) throw new Error(`its tensors reach byte ${lastByte}, but it ends at ${size}: the file is cut short`);
  } catch (error) {
    throw new MathllmError("model-invalid", `Expected a whole GGUF file at ${file}; ${(error as Error).message}. Fetch it again.`);
  }
}
