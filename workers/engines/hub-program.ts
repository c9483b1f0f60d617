import { execFile } from "node:child_process";
import path from "node:path";
import { promisify } from "node:util";
import { MathllmError } from "../../queues/errors.ts";

const run = promisify(execFile);
const NAMES = ["hf", "huggingface-cli"];
const SHOWN_CHARS = 500;

/**
 * Has the hub's own program, which is installed with vLLM, bring a model of the hub into the cache that vLLM reads; what is there already is
 * not fetched again, and what broke off is resumed. Returns the model's folder, or null where there is no such program beside `vllmBin`.
 * Throws `model-download-failed`, and the signal's reason once aborted.
 */
export async function fetchIntoHubCache(
  model: string,
  vllmBin: string,
  environment: NodeJS.ProcessEnv,
  signal?: AbortSignal,
): Promise<string | null> {
  for (const name of NAMES) {
    const program = vllmBin.includes(path.sep) ? path.join(path.dirname(vllmBin), name) : name;
    try {
      // Meta's own copies of the weights, which vLLM does not read, lie in a folder of that name.
      const { stdout } = await run(program, ["download", model, "--exclude", "original/*"], {
        env: environment,
        signal,
        maxBuffer: 16 * 1_048_576,
      });
      return stdout.trim().split("\n").at(-1) ?? null;
    } catch (error) {
      signal?.throwIfAborted();
      if ((error as NodeJS.ErrnoException).code === "ENOENT") continue;
      const lastLines = ((error as { stderr?: string }).stderr ?? String(error)).trim().slice(-SHOWN_CHARS);
      throw new MathllmError(
        "model-download-failed",
        `Could not download ${model}: ${program} ended with: ${lastLines}. Check the name and the network; for a gated model accept its licence on the hub and set HF_TOKEN. What was fetched is kept.`,
      );
    }
  }
  return null;
}
