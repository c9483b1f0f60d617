import { once } from "node:events";
import http from "node:http";
import { createParser } from "eventsource-parser";

export interface SentEvent {
  id: string | undefined;
  event: string | undefined;
  // biome-ignore lint/suspicious/noExplicitAny: each kind of event has a form of its own
  data: any;
}

/** A listener of server-sent events, on a connection of its own. */
export class EventStream {
  readonly events: SentEvent[] = [];
  readonly response: http.IncomingMessage;
  /** The server ended it, or it left. */
  readonly ended: Promise<void>;

  static async open(url: string, headers: Record<string, string> = {}): Promise<EventStream> {
    const request = http.get(url, { headers, agent: false });
    const [response] = (await once(request, "response")) as [http.IncomingMessage];
    return new EventStream(response);
  }

  constructor(response: http.IncomingMessage) {
    this.response = response;
    const parser = createParser({ onEvent: ({ id, event, data }) => this.events.push({ id, event, data: JSON.parse(data) }) });
    response.setEncoding("utf8");
    response.on("data", (text: string) => parser.feed(text));
    response.on("error", () => {});
    this.ended = new Promise((resolve) => response.once("close", resolve));
  }

  get status(): number {
    return this.response.statusCode!;
  }

  of(event: string): SentEvent["data"][] {
    return this.events.filter((each) => each.event === event).map(({ data }) => data);
  }

  /** What a client shows of a model: its text, begun anew whenever it is told so. */
  text(model: string, sample: number | null = null): string {
    let text = "";
    for (const { event, data } of this.events) {
      if (data.model !== model || data.sample !== sample) continue;
      if (event === "model") text = "";
      if (event === "token") text += data.text;
    }
    return text;
  }

  get lastId(): string | undefined {
    return this.events.findLast(({ id }) => id !== undefined && id !== "")?.id;
  }

  leave(): void {
    this.response.destroy();
  }
}
