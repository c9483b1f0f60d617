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

/**
 * The Student's answer to a problem, or what most of `samples` answers say. Keys hold texts as the model's messages do, without any likeness
 * between texts: two requests with the same key have identical messages.
 */
export function solveKey(
  model: PublishedModel,
  { problem, messages, sampling, samples = 1 }: Pick<JobData, "problem" | "messages" | "sampling" | "samples">,
): string {
  return keyOf("solve", model, sampling, [...(messages ?? [problem]), ...(samples === 1 ? [] : [samples])]);
}

/** The Talker's answer to a text. */
export function talkKey(
  model: PublishedModel,
  { problem, messages, sampling }: Pick<JobData, "problem" | "messages" | "sampling">,
): string {
  return keyOf("talk", model, sampling, messages ?? [problem]);
}

/** The Talker's explanation of this very solution. */
export function explainKey(
  model: PublishedModel,
  { problem, sampling }: Pick<JobData, "problem" | "sampling">,
  solved: StageResult,
): string {
  return keyOf("explain", model, sampling, [problem, solved.text, solved.answer]);
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
