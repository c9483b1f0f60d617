import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { promisify } from "node:util";
import type { Config } from "../../queues/config.ts";

/** The GPU's UUID; without one, a name made of the data directory, so that separate systems on a CPU don't exclude each other. */
export async function gpuIdOf(config: Pick<Config, "gpuId" | "dataDir">): Promise<string> {
  if (config.gpuId !== undefined) return config.gpuId;
  try {
    const { stdout } = await promisify(execFile)("nvidia-smi", ["--query-gpu=uuid", "--format=csv,noheader"], { timeout: 10_000 });
    const uuid = stdout.split("\n")[0]?.trim();
    if (uuid) return uuid;
  } catch {
    // No NVIDIA driver: the models run on the CPU.
  }
  return `cpu-${createHash("sha256").update(config.dataDir).digest("hex").slice(0, 16)}`;
}
