import { once } from "node:events";
import type { Response } from "express";

const HEARTBEAT_MS = 15_000;
/** A listener that takes nothing for so long while something is there for it is cut off. */
const UNREAD_MS = 5000;

/** Writes server-sent events to one listener, as fast as it takes them, with a comment from time to time so that nobody in between hangs up. */
export class EventWriter {
  /** Aborts when the listener has left or was cut off. */
  readonly left: AbortSignal;
  readonly #response: Response;
  #beat: NodeJS.Timeout | undefined;

  constructor(response: Response) {
    this.#response = response;
    const left = new AbortController();
    this.left = left.signal;
    if (response.destroyed) left.abort();
    response.on("close", () => {
      clearInterval(this.#beat);
      if (!response.writableFinished) left.abort();
    });
  }

  /** Sends the headers; until then the answer can still become an error. */
  open(): void {
    if (this.isOpen || this.left.aborted) return;
    this.#response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no" });
    this.#response.flushHeaders();
    this.#beat = setInterval(() => {
      if (!this.#response.writableNeedDrain) this.#response.write(": still here\n\n");
    }, HEARTBEAT_MS);
  }

  get isOpen(): boolean {
    return this.#response.headersSent;
  }

  /** Resolves when there is room for more. */
  async send(text: string): Promise<void> {
    if (this.left.aborted || this.#response.write(text)) return;
    const cut = setTimeout(() => this.#response.destroy(), UNREAD_MS);
    await once(this.#response, "drain", { signal: this.left }).catch(() => {});
    clearTimeout(cut);
  }

  end(): void {
    clearInterval(this.#beat);
    this.#response.end();
  }
}
