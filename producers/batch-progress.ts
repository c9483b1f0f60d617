import type { WriteStream } from "node:tty";
import { SingleBar } from "cli-progress";
import type { BatchView } from "../queues/batch-contracts.ts";
import type { BatchProgress } from "./batch.ts";

const PLAIN_EVERY_MS = 5000;

/** How a batch gets on: a bar on a terminal, a line every five seconds elsewhere. */
export class BatchProgressView {
  readonly #out: WriteStream;
  readonly #startedAt = performance.now();
  #bar: SingleBar | null = null;
  #phase: BatchProgress["phase"] | null = null;
  #printedAt = Number.NEGATIVE_INFINITY;
  /** Lines that had ended at the first look, and when that was. */
  #first: { ended: number; at: number } | null = null;

  constructor(out: WriteStream) {
    this.#out = out;
  }

  show(progress: BatchProgress): void {
    if (progress.phase === "waiting for room") {
      this.stop();
      this.#out.write(`${progress.detail} Going on in ${progress.seconds} s.\n`);
      return;
    }
    if (progress.phase === "going on" || progress.phase === "starting anew") {
      this.stop();
      this.#out.write(`${earlierText(progress)}\n`);
      return;
    }
    const { done, total, text } = progress.phase === "sending" ? sendingOf(progress) : this.#runningOf(progress.batch);
    const isNew = progress.phase !== this.#phase;
    this.#phase = progress.phase;
    if (this.#out.isTTY) {
      this.#draw(progress.phase, isNew, done, total, text);
      return;
    }
    const now = performance.now();
    if (!isNew && done < total && now - this.#printedAt < PLAIN_EVERY_MS) return;
    this.#printedAt = now;
    const seconds = ((now - this.#startedAt) / 1000).toFixed(0);
    this.#out.write(`${seconds.padStart(6)} s  ${progress.phase} ${done} of ${total}${text === "" ? "" : `  ${text}`}\n`);
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = null;
    this.#phase = null;
  }

  #draw(phase: string, isNew: boolean, done: number, total: number, text: string): void {
    if (isNew || this.#bar === null) {
      this.#bar?.stop();
      this.#bar = new SingleBar({ format: "{phase} {bar} {value} of {total}  {text}", stream: this.#out, hideCursor: true, etaBuffer: 1 });
      this.#bar.start(total, done, { phase, text });
    }
    this.#bar.update(done, { text });
  }

  #runningOf({ counts, accuracy, etaMs }: BatchView): { done: number; total: number; text: string } {
    const { total, invalid, waiting, active, failed } = counts;
    const done = total - waiting - active;
    this.#first ??= { ended: done, at: performance.now() };
    // What is left at the rate so far, or as the API expects.
    const perMs = (done - this.#first.ended) / (performance.now() - this.#first.at);
    const leftMs = perMs > 0 ? (waiting + active) / perMs : etaMs;
    const parts = [
      ...(active > 0 ? [`${active} running`] : []),
      ...(failed + invalid > 0 ? [`${failed + invalid} failed`] : []),
      ...(accuracy?.accuracy == null ? [] : [`${(100 * accuracy.accuracy).toFixed(1)} % right`]),
      ...(leftMs === null || done === total ? [] : [`ETA ${timeText(leftMs)}`]),
    ];
    return { done, total, text: parts.join("  ") };
  }
}

/** What an earlier run of the same command had sent, when, and by which models it is answered. */
function earlierText({ phase, batch }: { phase: "going on" | "starting anew"; batch: BatchView }): string {
  const { batchId, counts, timestamps, models } = batch;
  const sent = `batch ${batchId}, sent ${new Date(timestamps.createdAt).toLocaleString("sv")} (${counts.completed} of ${counts.total} completed)`;
  const named = (model: BatchView["models"][number]) => `${model.role} ${model.modelId} (${model.digest.slice(0, 12)})`;
  if (phase === "going on") {
    return `Going on with ${sent}, answered by ${models.length === 0 ? "no model so far" : models.map(named).join(" and ")}.`;
  }
  const changed = models.filter(({ current }) => !current).map(named);
  return `The model has been changed: ${sent}, is given up, since it may have answers of ${changed.join(" and ")}. All its lines are sent anew.`;
}

function sendingOf({ sent, total }: { sent: number; total: number }): { done: number; total: number; text: string } {
  return { done: sent, total, text: "" };
}

function timeText(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  const two = (value: number) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}
