import type { ModelProfile } from "../../queues/config.ts";
import { compareVersions } from "./program-version.ts";

/** vLLM's command line for one version: the owner's settings in the words that this version knows. Pure. */
export interface VllmArguments {
  args: string[];
  env: Record<string, string>;
  /** What was translated or left out, and why. */
  notes: string[];
}

/** A class of ours, which has to be on PYTHONPATH. Every version knows the option. */
const GUARD = "mathllm_guard.Guard";
/** `--swap-space` is an unknown argument since this version; what is nearest is the offloading of KV blocks to host memory. */
const SWAP_SPACE_GONE = "0.18";
/** `--speculative-config` took the place of `--speculative-model` and its kin. */
const SPECULATIVE_CONFIG_SINCE = "0.8";
const KV_OFFLOADING_SINCE = "0.12";
const DRAFT_TOKENS = 5;

export function vllmArguments(profile: ModelProfile, port: number, version: string): VllmArguments {
  const { model, role, gpuMemoryUtilization, maxModelLen, maxNumSeqs, kvCacheBits, enforceEager, sleepLevel } = profile;
  const since = (first: string) => compareVersions(version, first) >= 0;
  const args = ["serve", model, "--host", "127.0.0.1", "--port", String(port), "--served-model-name", role, "--middleware", GUARD];
  args.push(
    "--gpu-memory-utilization",
    String(gpuMemoryUtilization),
    "--max-model-len",
    String(maxModelLen),
    "--max-num-seqs",
    String(maxNumSeqs),
  );
  const env: Record<string, string> = {};
  const notes: string[] = [];
  if (kvCacheBits === 8) args.push("--kv-cache-dtype", "fp8");
  if (enforceEager) args.push("--enforce-eager");
  if (sleepLevel > 0) {
    args.push("--enable-sleep-mode");
    env.VLLM_SERVER_DEV_MODE = "1";
  }
  if (profile.swapSpaceGib !== undefined) {
    const gib = String(profile.swapSpaceGib);
    if (!since(SWAP_SPACE_GONE)) args.push("--swap-space", gib);
    else if (profile.swapSpaceGib > 0 && since(KV_OFFLOADING_SINCE)) {
      args.push("--kv-offloading-size", gib);
      notes.push(
        `SWAP_SPACE=${gib}: vLLM ${version} has no --swap-space any more; --kv-offloading-size ${gib} keeps KV blocks in host memory instead`,
      );
    }
  }
  if (profile.speculative.enabled) {
    const { draftModel } = profile.speculative;
    const method = draftModel === undefined ? { method: "ngram", prompt_lookup_max: 4 } : { method: "draft_model", model: draftModel };
    if (since(SPECULATIVE_CONFIG_SINCE)) {
      args.push("--speculative-config", JSON.stringify({ ...method, num_speculative_tokens: DRAFT_TOKENS }));
      if (draftModel === undefined) notes.push("SPECULATIVE_ENABLED without a draft: n-grams of the prompt are looked up");
    } else if (draftModel === undefined) {
      args.push("--speculative-model", "[ngram]", "--ngram-prompt-lookup-max", "4", "--num-speculative-tokens", String(DRAFT_TOKENS));
    } else args.push("--speculative-model", draftModel, "--num-speculative-tokens", String(DRAFT_TOKENS));
  }
  return { args, env, notes };
}
