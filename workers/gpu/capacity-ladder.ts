import type { ModelProfile } from "../../queues/config.ts";
import type { Capacity } from "../../queues/contracts.ts";

/** Shorter contexts serve no problem worth asking. */
const MIN_MODEL_LEN = 512;

export interface LadderStep {
  capacity: Capacity;
  /** What was changed, for people. */
  step: string;
}

/**
 * The answer to running out of memory, one step at a time, the cheapest for the user first:
 * half the sequences down to one; half the context down to 512 tokens; an 8-bit KV cache. null: nothing is left to give.
 */
export function nextStep({ maxNumSeqs, maxModelLen, kvCacheBits }: Capacity): LadderStep | null {
  if (maxNumSeqs > 1) {
    const fewer = Math.floor(maxNumSeqs / 2);
    return { capacity: { maxNumSeqs: fewer, maxModelLen, kvCacheBits }, step: `${fewer} sequences instead of ${maxNumSeqs}` };
  }
  if (maxModelLen > MIN_MODEL_LEN) {
    const shorter = Math.max(Math.floor(maxModelLen / 2), MIN_MODEL_LEN);
    return { capacity: { maxNumSeqs, maxModelLen: shorter, kvCacheBits }, step: `${shorter} tokens of context instead of ${maxModelLen}` };
  }
  if (kvCacheBits === 16) return { capacity: { maxNumSeqs, maxModelLen, kvCacheBits: 8 }, step: "an 8-bit KV cache instead of 16-bit" };
  return null;
}

export function capacityOf({ maxNumSeqs, maxModelLen, kvCacheBits }: ModelProfile): Capacity {
  return { maxNumSeqs, maxModelLen, kvCacheBits };
}

/** A ladder remembered for other settings says nothing of these. */
export function fingerprintOf({ mode, model, maxNumSeqs, maxModelLen, kvCacheBits, ngl, speculative }: ModelProfile): string {
  return JSON.stringify([mode, model, maxNumSeqs, maxModelLen, kvCacheBits, ngl ?? null, speculative]);
}
