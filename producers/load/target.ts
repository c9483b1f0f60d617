import type { PlannedRequest } from "./request-plan.ts";

/** What came of one request. Time stamps are epoch milliseconds on the generator's clock. */
export interface Answer {
  status: "completed" | "failed" | "refused";
  errorClass: string | null;
  errorDetail: string | null;
  acceptedAt: number | null;
  pickedAt: number | null;
  firstTokenAt: number | null;
  finishedAt: number;
  queueWaitMs: number | null;
  swapWaitMs: number | null;
  itlMs: number[] | null;
  tpotMs: number | null;
  tokensIn: number | null;
  tokensOut: number | null;
  truncated: boolean;
  cached: boolean;
  coalesced: boolean;
  /** The final answer as extracted; null when there is none. */
  answer: string | null;
  model: string | null;
  clockOffsetMs: number;
}

/** Where requests go. */
export interface Target {
  /** Throws `engine-failed` when nobody answers there. */
  check(): Promise<void>;
  /** Never rejects but with the signal's reason. */
  send(request: PlannedRequest, signal: AbortSignal): Promise<Answer>;
  close(): Promise<void>;
}

/** Epoch milliseconds with fractions, never stepping back. */
export const nowMs = (): number => performance.timeOrigin + performance.now();

export function failedAnswer(errorClass: string, errorDetail: string, status: "failed" | "refused" = "failed"): Answer {
  return {
    status,
    errorClass,
    errorDetail: errorDetail.slice(0, MAX_DETAIL_CHARS),
    acceptedAt: null,
    pickedAt: null,
    firstTokenAt: null,
    finishedAt: nowMs(),
    queueWaitMs: null,
    swapWaitMs: null,
    itlMs: null,
    tpotMs: null,
    tokensIn: null,
    tokensOut: null,
    truncated: false,
    cached: false,
    coalesced: false,
    answer: null,
    model: null,
    clockOffsetMs: 0,
  };
}

const MAX_DETAIL_CHARS = 300;
