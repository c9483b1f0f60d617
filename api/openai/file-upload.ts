import type { Readable } from "node:stream";
import { Busboy, type BusboyFileStream, type BusboyHeaders } from "@fastify/busboy";
import type { Request } from "express";
import { MathllmError } from "../../queues/errors.ts";
import { RequestRefused } from "./errors.ts";

const LIMITS = { files: 1, fields: 20, fieldSize: 1000, fieldNameSize: 100, headerPairs: 50 };

/**
 * Reads a `multipart/form-data` body: hands its one file to `store` as it comes, and resolves with what that made of it and the other fields.
 * What `store` refuses is refused at once, the rest of the body unread.
 */
export async function readUpload<T>(
  request: Request,
  store: (source: Readable, filename: string) => Promise<T>,
): Promise<{ stored: T; fields: Map<string, string> }> {
  if (!request.is("multipart/form-data")) {
    throw new MathllmError(
      "unsupported-media-type",
      `Expected Content-Type: multipart/form-data; got ${request.get("content-type") ?? "none"}.`,
    );
  }
  const fields = new Map<string, string>();
  let storing: Promise<T> | undefined;
  await new Promise<void>((resolve, reject) => {
    const parser = new Busboy({ headers: request.headers as BusboyHeaders, limits: LIMITS });
    parser.on("file", (name: string, file: BusboyFileStream, filename: string) => {
      if (name !== "file" || storing !== undefined) return void file.resume();
      // The parser tells of a body that breaks off by the event alone, maybe before anybody reads, and of a client that leaves not at all.
      file.on("error", (error) => file.destroy(error));
      request.once("close", () => {
        if (!request.complete) file.destroy();
      });
      storing = store(file, filename);
      // The parser would wait for ever for the file to be read on.
      storing.catch(() => resolve());
    });
    parser.on("field", (name: string, value: string) => fields.set(name, value));
    parser.on("error", reject);
    parser.once("finish", resolve);
    request.once("close", () => {
      if (!request.complete) reject(new Error("the connection was closed"));
    });
    request.pipe(parser);
  }).catch(async (error: Error) => {
    await storing?.catch(() => {});
    throw new RequestRefused(400, `The body is not whole: ${error.message}.`);
  });
  if (storing === undefined) throw new RequestRefused(400, "file: expected a file; got none.", "file");
  return { stored: await storing, fields };
}
