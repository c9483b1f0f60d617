import type { ModelProfile } from "../../queues/config.ts";
import type { RequestKind } from "../load/record.ts";
import type { RunSpec } from "./phase.ts";
import type { Sizes } from "./sizes.ts";

/**
 * The two shapes of a request that the phases measure. `stated`: a prompt of at most 256 tokens and at most 128 tokens of answer; the
 * owner's targets judge it. `natural`: problems as they are, answered to their end; it tells accuracy and truncation.
 */
export const STATED_MAX_TOKENS = 128;
/** Long prompts begin here, or at half the context where that is less. */
const LONG_PROMPT_TOKENS = 2048;

type Plan = RunSpec["plan"];

export function planOf(shape: "stated" | "natural", kind: RequestKind, concurrency: number, requests: number): Plan {
  return {
    arrivals: { pattern: "closed", concurrency },
    requests,
    mix: { [kind]: 1 },
    ...(shape === "stated" ? { maxTokens: STATED_MAX_TOKENS, allowTruncated: true } : {}),
  };
}

/** One request at a time, or several. */
export function closedRun(
  {
    id,
    label,
    kind,
    shape,
    concurrency,
  }: { id: string; label: string; kind: RequestKind; shape: "stated" | "natural"; concurrency: number },
  sizes: Sizes,
  more: Partial<RunSpec> = {},
): RunSpec {
  const requests = concurrency === 1 ? sizes.singleRequests : Math.max(sizes.batchRequests, 4 * concurrency);
  return { id, label, role: kind === "talker" ? "talker" : "student", shape, plan: planOf(shape, kind, concurrency, requests), ...more };
}

/** The length from which on a prompt counts as long for this model, and whether the context cut it. */
export function longPrompt(contextTokens: number): { tokens: number; byContext: boolean } {
  const half = Math.floor(contextTokens / 2);
  return half < LONG_PROMPT_TOKENS ? { tokens: half, byContext: true } : { tokens: LONG_PROMPT_TOKENS, byContext: false };
}

/** What of a model's profile can change a figure, for a phase's configuration. */
export function profileSettings(profile: ModelProfile): Record<string, string | number | boolean | null> {
  const name = profile.role.toUpperCase();
  return {
    [`${name}_MODE`]: profile.mode,
    [`${name}_MODEL`]: profile.model.split("/").slice(-2).join("/"),
    [`${name}_MAX_NUM_SEQS`]: profile.maxNumSeqs,
    [`${name}_MAX_MODEL_LEN`]: profile.maxModelLen,
    [`${name}_KV_CACHE_BITS`]: profile.kvCacheBits,
    [`${name}_SPECULATIVE_ENABLED`]: profile.speculative.enabled,
    [`${name}_NGL`]: profile.ngl ?? null,
    [`${name}_THREADS`]: profile.threads ?? null,
  };
}
