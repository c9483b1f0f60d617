import { createParser } from "/live/eventsource-parser.js";
import { problemOf } from "./problem.js";

/** @import { Failure } from "./problem.js" */

/** An API that says nothing for so long, not even that it is still there, is gone. */
const SILENT_MS = 20_000;
const RETRY_MS = 500;
const RETRY_CAP_MS = 5000;

/**
 * Reads server-sent events, and goes on after the last one whenever the connection is lost, until it is stopped. By `fetch` and not by
 * `EventSource`, which tells nobody why it was refused.
 *
 *   connecting ──200──► open ──ends, breaks, falls silent──► waiting ──in a moment, or back online──► connecting
 *       ├──refused (4xx)──► stopped          stop(): stopped
 *       └──204: everything was told──► stopped
 *
 * @param {string} address
 * @param {object} listener
 * @param {(name: string, data: any, id: string | undefined) => void} listener.onEvent
 * @param {() => void} [listener.onOpen]
 * @param {(retryMs: number) => void} [listener.onLost] it is tried again by itself
 * @param {(failure: Failure) => void} [listener.onRefused] it is not
 * @returns {() => void} the end of it
 */
export function readEvents(address, { onEvent, onOpen, onLost, onRefused }) {
  const stopped = new AbortController();
  /** @type {string | undefined} */
  let lastId;
  let retryMs = RETRY_MS;

  async function read() {
    const attempt = new AbortController();
    const signal = AbortSignal.any([stopped.signal, attempt.signal]);
    let silence = setTimeout(() => attempt.abort(), SILENT_MS);
    try {
      const headers = { accept: "text/event-stream", ...(lastId === undefined ? {} : { "last-event-id": lastId }) };
      const response = await fetch(address, { headers, cache: "no-store", signal });
      if (response.status === 204) return stopped.abort();
      if (!response.ok || response.body === null) {
        if (response.status >= 500 || response.status === 429) return;
        const failure = await problemOf(response);
        stopped.abort();
        onRefused?.(failure);
        return;
      }
      onOpen?.();
      const parser = createParser({
        onEvent: ({ id, event = "message", data }) => {
          lastId = id ?? lastId;
          retryMs = RETRY_MS;
          if (!stopped.signal.aborted) onEvent(event, JSON.parse(data), id);
        },
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(silence);
        silence = setTimeout(() => attempt.abort(), SILENT_MS);
        parser.feed(value);
      }
    } catch (error) {
      // A broken connection is what the next attempt is for; anything else is a fault of this page.
      if (!signal.aborted && !(error instanceof TypeError)) console.error(error);
    } finally {
      clearTimeout(silence);
      attempt.abort();
    }
  }

  void (async () => {
    while (!stopped.signal.aborted) {
      await read();
      if (stopped.signal.aborted) return;
      onLost?.(retryMs);
      await pause(retryMs, stopped.signal);
      retryMs = Math.min(retryMs * 2, RETRY_CAP_MS);
    }
  })();
  return () => stopped.abort();
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal
 */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const over = new AbortController();
    const end = () => {
      clearTimeout(timer);
      over.abort();
      resolve(undefined);
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end, { signal: over.signal });
    window.addEventListener("online", end, { signal: over.signal });
  });
}
