import net from "node:net";
import type { HostileRequest } from "./requests.ts";

const ANSWER_MS = 20_000;
/** An answer that never ends (events) is looked at so long. */
const ENDLESS_MS = 50;
const CONTINUE = /^HTTP\/1\.1 100 Continue\r\n\r\n/;
const MAX_ANSWER_BYTES = 4_194_304;

export interface Answer {
  /** null: the connection was closed without one. */
  status: number | null;
  head: string;
  body: string;
}

/** Sends bytes as they are and reads what comes back. Rejects when nothing does in time, or when the server is gone. */
export function send({ head, body, isCutOff }: Pick<HostileRequest, "head" | "body" | "isCutOff">, port: number): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, "127.0.0.1");
    const chunks: Buffer[] = [];
    let bytes = 0;
    let endless: NodeJS.Timeout | undefined;
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`no answer within ${ANSWER_MS} ms`));
    }, ANSWER_MS);
    const done = () => {
      clearTimeout(timer);
      clearTimeout(endless);
      socket.destroy();
      const text = Buffer.concat(chunks).toString("latin1").replace(CONTINUE, "");
      const end = text.indexOf("\r\n\r\n");
      const status = /^HTTP\/1\.1 (\d{3})/.exec(text)?.[1];
      resolve({ status: status === undefined ? null : Number(status), head: text.slice(0, end), body: end < 0 ? "" : text.slice(end + 4) });
    };
    socket.on("connect", () => {
      socket.write(Buffer.concat([Buffer.from(head, "latin1"), body]));
      if (isCutOff) socket.end();
    });
    socket.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > MAX_ANSWER_BYTES) done();
      const isEndless = /content-type: text\/event-stream/i.test(Buffer.concat(chunks.slice(0, 2)).toString("latin1"));
      if (isEndless) endless ??= setTimeout(done, ENDLESS_MS);
    });
    socket.on("close", done);
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ECONNREFUSED") {
        clearTimeout(timer);
        reject(error);
      } else done();
    });
  });
}
