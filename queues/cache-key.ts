import { createHash } from "node:crypto";
import type { JobData, PublishedModel, Sampling, SolveRequest, StageResult } from "./contracts.ts";

/**
 * Raised when the same parts come to mean another answer. Of form 1 were the entries that held an answer for all problems that differed only in
 * their blanks.
 */
const KEY_FORM = 2;

export type CacheMode = SolveRequest["cache"];

/** Whether a request's answer may be looked up or kept: a deterministic one, unless it says otherwise. */
export function isCacheable({ sampling, cache }: { sampling: Sampling; cache?: CacheMode }): boolean {
  if (cache === "off") return false;
  return cache === "on" || cache === "refresh" || sampling.temperature === 0;
}

type Asked = Pick<JobData, "problem" | "messages" | "sampling">;

/**
 * The Student's answer to a problem, or what most of `samples` answers say. Keys hold texts as the model's messages do, without any likeness
 * between texts: two requests with the same key have identical messages.
 */
export function solveKey(model: PublishedModel, asked: Asked & Pick<JobData, "samples">): string {
  const { sampling, samples = 1 } = asked;
  return keyOf("solve", model, sampling, [askedDigest(asked), ...(samples === 1 ? [] : [samples])]);
}

/** The Talker's answer to a text. */
export function talkKey(model: PublishedModel, asked: Asked): string {
  return keyOf("talk", model, asked.sampling, [askedDigest(asked)]);
}

/** The Talker's explanation of this very solution. */
export function explainKey(model: PublishedModel, asked: Asked, solved: StageResult): string {
  return keyOf("explain", model, asked.sampling, [askedDigest(asked), solved.text, solved.answer]);
}

/** Digests of what is asked, by the request that asks it: its keys are needed several times, and it may be long. */
const digests = new WeakMap<Asked, string>();

function askedDigest(asked: Asked): string {
  let digest = digests.get(asked);
  if (digest === undefined) {
    digest = digestOf(asked.messages ?? asked.problem);
    digests.set(asked, digest);
  }
  return digest;
}

function keyOf(kind: string, { modelId, digest, promptVersion, maxTokens }: PublishedModel, sampling: Sampling, texts: unknown[]): string {
  const { temperature, topP, topK, minP, seed, stop } = sampling;
  const limit = Math.min(sampling.maxTokens ?? maxTokens, maxTokens);
  return digestOf([KEY_FORM, kind, modelId, digest, promptVersion, temperature, topP, topK, minP, seed, stop, limit, ...texts]);
}

/** 32 hexadecimal digits of SHA-256. */
export function digestOf(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 32);
}
