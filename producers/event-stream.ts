import { setTimeout as delay } from "node:timers/promises";
import { EventSourceParserStream } from "eventsource-parser/stream";

const RECONNECT_MS = 500;
/** So often in a row without any event; then the reason is thrown. */
const MAX_TRIES = 10;

export interface SentEvent {
  id?: string;
  event: string;
  data: string;
}

/**
 * Server-sent events. A connection that breaks off is opened again, and goes on after the last event that had an id. Ends when the server
 * answers 204: there is no more. Throws what `open` throws when it was never opened, when that `isFinal` or comes again and again, and when
 * `signal` aborts.
 */
export async function* sentEvents(
  open: (headers: Record<string, string>) => Promise<Response>,
  { isFinal, signal }: { isFinal: (error: unknown) => boolean; signal?: AbortSignal },
): AsyncGenerator<SentEvent> {
  let lastId: string | undefined;
  let opened = false;
  for (let tries = 1; ; tries++) {
    try {
      const response = await open(lastId === undefined ? {} : { "last-event-id": lastId });
      opened = true;
      if (response.status === 204 || response.body === null) return;
      for await (const { id, event, data } of response.body
        .pipeThrough(new TextDecoderStream())
        .pipeThrough(new EventSourceParserStream())) {
        tries = 0;
        lastId = id ?? lastId;
        yield { id, event: event ?? "message", data };
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (!opened || tries >= MAX_TRIES || isFinal(error)) throw error;
    }
    await delay(RECONNECT_MS, undefined, { signal });
  }
}
