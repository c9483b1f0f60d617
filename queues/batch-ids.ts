import { randomBytes } from "node:crypto";
import type { JobKind } from "./names.ts";

/**
 * A line's job has the id that its batch and its place in it give: handing the line in again finds the job that is there, and a job's id
 * tells where it belongs.
 */
const BATCH_ID_PATTERN = /^batch-[0-9a-f]{24}$/;
const INDEX_DIGITS = 8;
export const MAX_BATCH_LINES = 16 ** INDEX_DIGITS;

export function newBatchId(): string {
  return `batch-${randomBytes(12).toString("hex")}`;
}

export function isBatchId(id: string): boolean {
  return BATCH_ID_PATTERN.test(id);
}

export function batchJobId(kind: JobKind, batchId: string, index: number): string {
  return `${kind}-${batchId.slice("batch-".length)}${index.toString(16).padStart(INDEX_DIGITS, "0")}`;
}
