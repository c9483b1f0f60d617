import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import type { PrepareOptions } from "./engine.ts";

/** SHA-256 of a file, remembered by path, size and time of change: reading five gigabytes at every load would cost half a minute. */
export async function digestOf(file: string, dataDir: string, { signal, onProgress }: PrepareOptions = {}): Promise<string> {
  const known = await knownDigest(file, dataDir);
  if (known !== undefined) return known;
  const key = await digestKey(file);
  const { size: totalBytes } = await stat(file);
  let doneBytes = 0;
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file)) {
    signal?.throwIfAborted();
    hash.update(chunk as Buffer);
    doneBytes += (chunk as Buffer).length;
    onProgress?.({ doing: "checking", doneBytes, totalBytes });
  }
  const digest = hash.digest("hex");
  const cacheFile = digestsFile(dataDir);
  await mkdir(dataDir, { recursive: true });
  const temporary = `${cacheFile}.${randomUUID()}`;
  await writeFile(temporary, JSON.stringify({ ...(await readDigests(cacheFile)), [key]: digest }));
  await rename(temporary, cacheFile);
  return digest;
}

/** The remembered SHA-256 of a file that has not changed since; undefined when there is none. */
export async function knownDigest(file: string, dataDir: string): Promise<string | undefined> {
  return (await readDigests(digestsFile(dataDir)))[await digestKey(file)];
}

function digestsFile(dataDir: string): string {
  return path.join(dataDir, "model-digests.json");
}

async function digestKey(file: string): Promise<string> {
  const { size, mtimeMs } = await stat(file);
  return `${file}:${size}:${mtimeMs}`;
}

async function readDigests(cacheFile: string): Promise<Record<string, string>> {
  try {
    return z.record(z.string(), z.string()).parse(JSON.parse(await readFile(cacheFile, "utf8")));
  } catch {
    return {};
  }
}
