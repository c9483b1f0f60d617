import net from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { seededRandom } from "../../maths/seeded-random.ts";
import { type HostileRequest, hostileRequests } from "./requests.ts";
import { type Answer, send } from "./wire.ts";

export interface AssaultOptions {
  port: number;
  seed: number;
  requests: number;
  concurrency: number;
  /** An `Authorization` value that most of the requests carry. */
  authorization: string | null;
  onProgress?: (done: number) => void;
}

export interface AssaultResult {
  requests: number;
  /** How many answers had each status; `none`: closed without an answer. */
  statuses: Record<string, number>;
  /** What must not have happened. */
  violations: string[];
}

const STACK = /\n\s+at |node_modules|node:internal|file:\/\/|\.ts:\d+|(Type|Reference|Range|Syntax)Error:/;

/** Sends seeded hostile requests, several at once, and looks at every answer. */
export async function assault({ port, seed, requests, concurrency, authorization, onProgress }: AssaultOptions): Promise<AssaultResult> {
  const stream = hostileRequests(seededRandom(seed), authorization);
  const statuses: Record<string, number> = {};
  const violations: string[] = [];
  let sent = 0;
  const lane = async () => {
    while (sent < requests && violations.length < 20) {
      const number = sent++;
      const request = stream.next().value as HostileRequest;
      try {
        const answer = await send(request, port);
        statuses[answer.status ?? "none"] = (statuses[answer.status ?? "none"] ?? 0) + 1;
        for (const violation of violationsOf(request, answer)) violations.push(`${number} ${describe(request)}: ${violation}`);
      } catch (error) {
        violations.push(`${number} ${describe(request)}: ${(error as Error).message}`);
      }
      onProgress?.(number + 1);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, lane));
  return { requests: sent, statuses, violations };
}

function describe({ kind, method, target, body }: HostileRequest): string {
  return `${method} ${target.slice(0, 100)} (${kind}) ${JSON.stringify(body.subarray(0, 200).toString("latin1"))}`;
}

/** Pure. */
export function violationsOf(request: HostileRequest, { status, head, body }: Answer): string[] {
  const found: string[] = [];
  if (status === null) return request.isCutOff ? [] : ["it was closed without an answer"];
  const shown = body.slice(0, 300);
  if (status >= 500) found.push(`${status} ${shown}`);
  if (/^x-injected:/im.test(head)) found.push("a header was injected");
  if (status >= 400 && STACK.test(body)) found.push(`the server's inside is shown: ${shown}`);
  const isJson = /^content-type: application\/(problem\+)?json/im.test(head);
  if (isJson && !/transfer-encoding: chunked/i.test(head) && request.method !== "HEAD") {
    try {
      JSON.parse(Buffer.from(body, "latin1").toString("utf8"));
    } catch {
      found.push(`not the JSON that it says it is: ${shown}`);
    }
  }
  if (/"polluted":true/.test(body) && status < 400) found.push("a prototype was polluted");
  return found;
}

/** Opens connections that begin a request and never end it. Returns their end. */
export async function holdUp(port: number, count: number, head: string): Promise<() => void> {
  const sockets = await Promise.all(
    Array.from({ length: count }, async () => {
      const socket = net.connect(port, "127.0.0.1");
      socket.on("error", () => {});
      await new Promise((resolve) => socket.once("connect", resolve));
      socket.write(head);
      return socket;
    }),
  );
  // Each of them says a little more now and then, so that it is not idle.
  const stopped = new AbortController();
  void (async () => {
    while (!stopped.signal.aborted) {
      for (const socket of sockets) socket.write("1");
      await delay(200, undefined, { signal: stopped.signal }).catch(() => {});
    }
  })();
  return () => {
    stopped.abort();
    for (const socket of sockets) socket.destroy();
  };
}
