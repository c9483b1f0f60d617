import type { ErrorCode } from "../../queues/errors.ts";

/** What the embedded engine and its child process say to each other. */
export interface EmbeddedProfile {
  modelPath: string;
  modelId: string;
  digest: string;
  draftPath?: string;
  port: number;
  /** What every request has to bring. */
  apiKey: string;
  maxModelLen: number;
  maxNumSeqs: number;
  kvCacheBits: 16 | 8;
  /** Estimates above are refused. */
  ramCapBytes?: number;
  vramCapBytes?: number;
  ngl?: number;
  threads?: number;
}

/** `listen` comes first and allocates nothing; `load` follows once the parent has recorded who holds the memory. */
export type ToChild = { type: "listen"; profile: EmbeddedProfile } | { type: "load" };

export type FromChild =
  | { type: "listening"; port: number }
  | { type: "ready"; contextTokens: number }
  | { type: "failed"; code: ErrorCode; detail: string };
