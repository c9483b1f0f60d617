/** How much each phase measures. `quick` asks the same questions of fewer requests; its intervals are wider, and the report says so. */
export interface Sizes {
  /** Requests of a run with one request at a time, and with several. */
  singleRequests: number;
  batchRequests: number;
  longPromptRequests: number;
  /** Sent first and left out of every figure. */
  warmUpRequests: number;
  /** Seconds of each rate on the way to the knee. */
  kneeStepS: number;
  /** Phase E. */
  sustainedS: number;
  guardrailS: number;
  /** Phase F, cached requests in an open loop. */
  cachedS: number;
  /** Phase G, for each policy. */
  policyS: number;
}

export const FULL_SIZES: Sizes = {
  singleRequests: 100,
  batchRequests: 200,
  longPromptRequests: 30,
  warmUpRequests: 8,
  kneeStepS: 30,
  sustainedS: 900,
  guardrailS: 60,
  cachedS: 300,
  policyS: 240,
};

export const QUICK_SIZES: Sizes = {
  singleRequests: 30,
  batchRequests: 60,
  longPromptRequests: 10,
  warmUpRequests: 4,
  kneeStepS: 6,
  sustainedS: 75,
  guardrailS: 20,
  cachedS: 30,
  policyS: 30,
};
