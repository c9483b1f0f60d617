import type { Request, Response } from "express";

/** More of a refused body is not taken. */
const MAX_BYTES = 268_435_456;
/** A client that has sent nothing for so long is answered while its body is unfinished. */
const IDLE_MS = 1000;

/**
 * Reads the rest of a refused request's body without keeping it, so that its answer is heard: many clients read nothing before they have sent
 * everything, and a connection that is closed while its client sends takes the answer with it. Resolves when the answer may be sent. A
 * body that goes on and on is cut off after the answer; how long a request may take as a whole is bounded by Node's `requestTimeout`.
 */
export async function readRefusedBody(request: Request, response: Response): Promise<void> {
  if (request.complete || request.destroyed) return;
  let idle: NodeJS.Timeout | undefined;
  await new Promise<void>((resolve) => {
    idle = setTimeout(resolve, IDLE_MS);
    let bytes = 0;
    const onData = (chunk: Buffer) => {
      idle!.refresh();
      bytes += chunk.length;
      if (bytes < MAX_BYTES) return;
      request.off("data", onData).pause();
      response.set("Connection", "close");
      resolve();
    };
    request.unpipe();
    request.on("data", onData).once("close", resolve).once("end", resolve).once("error", resolve).resume();
  });
  clearTimeout(idle);
}
