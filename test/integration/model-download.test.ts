import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { type DownloadProgress, resolveModelFile } from "../../workers/engines/model-file.ts";

const weights = await readFile(path.join(import.meta.dirname, "..", "..", "models", "student.gguf"));
const sha256 = createHash("sha256").update(weights).digest("hex");
const REFERENCE = "hf:user/repo/file.gguf";

/** A model hub on loopback, as one test wants it. */
let hub: http.Server;
let dataDir: string;
let served: { method: string; url: string; range?: string; authorization?: string }[];
let published: { oid: string; size: number } | undefined;
let requiredToken: string | undefined;
/** Bytes after which every connection is cut; undefined: none is. */
let cutAfterBytes: number | undefined;
let sentBytes: number;

function answer(request: http.IncomingMessage, response: http.ServerResponse): void {
  const { range, authorization } = request.headers;
  served.push({ method: request.method!, url: request.url!, range, authorization });
  if (requiredToken !== undefined && authorization !== `Bearer ${requiredToken}`) {
    response.writeHead(401).end("Access to model user/repo is restricted.");
    return;
  }
  const { pathname } = new URL(request.url!, "http://localhost");
  if (pathname === "/v2/user/repo/manifests/Q4_K_M") {
    response.end(JSON.stringify({ ggufFile: { rfilename: "file.gguf", size: weights.length } }));
    return;
  }
  if (pathname === "/api/models/user/repo/tree/main") {
    response.end(JSON.stringify([{ path: "README.md" }, { path: "file.gguf", lfs: published }]));
    return;
  }
  if (pathname !== "/user/repo/resolve/main/file.gguf") {
    response.writeHead(404).end();
    return;
  }
  const asked = /bytes=(\d+)-(\d*)/.exec(range ?? "");
  const from = Number(asked?.[1] ?? 0);
  const to = Math.min(asked?.[2] ? Number(asked[2]) + 1 : weights.length, weights.length);
  const headers = { "accept-ranges": "bytes", "content-length": to - from, etag: `"${sha256}"` };
  if (asked) response.writeHead(206, { ...headers, "content-range": `bytes ${from}-${to - 1}/${weights.length}` });
  else response.writeHead(200, headers);
  if (request.method === "HEAD") {
    response.end();
    return;
  }
  const part = weights.subarray(from, to);
  const cut = cutAfterBytes !== undefined && part.length > cutAfterBytes;
  sentBytes += cut ? cutAfterBytes! : part.length;
  if (cut) response.write(part.subarray(0, cutAfterBytes), () => response.destroy());
  else response.end(part);
}

beforeEach(async () => {
  served = [];
  published = { oid: sha256, size: weights.length };
  requiredToken = undefined;
  cutAfterBytes = undefined;
  sentBytes = 0;
  dataDir = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
  hub = http.createServer(answer).listen(0, "127.0.0.1");
  await once(hub, "listening");
  vi.stubEnv("MODEL_ENDPOINT", "");
  vi.stubEnv("HF_ENDPOINT", `http://127.0.0.1:${(hub.address() as AddressInfo).port}`);
});
afterEach(async () => {
  vi.unstubAllEnvs();
  hub.closeAllConnections();
  hub.close();
  await rm(dataDir, { recursive: true, force: true });
});

test("a model is downloaded once, with progress, and its digest is the published one", async () => {
  const progress: DownloadProgress[] = [];
  const file = await resolveModelFile(REFERENCE, { dataDir, onProgress: (at) => progress.push(at) });
  expect(file).toMatchObject({ digest: sha256, sizeBytes: weights.length });
  expect(path.dirname(file.path)).toBe(path.join(dataDir, "models"));
  expect(weights.equals(await readFile(file.path))).toBe(true);
  expect(progress.length).toBeGreaterThan(0);
  for (const { downloadedBytes, totalBytes } of progress) {
    expect(totalBytes).toBe(weights.length);
    expect(downloadedBytes).toBeLessThanOrEqual(totalBytes);
  }
  const bytes = sentBytes;
  expect(await resolveModelFile(REFERENCE, { dataDir })).toEqual(file);
  expect(sentBytes).toBe(bytes);
});

test("a quantisation is found by name", async () => {
  expect(await resolveModelFile("hf:user/repo:Q4_K_M", { dataDir })).toMatchObject({ digest: sha256 });
});

test("a file with another digest than the published one is refused and removed", async () => {
  published = { oid: "0".repeat(64), size: weights.length };
  await expect(resolveModelFile(REFERENCE, { dataDir })).rejects.toMatchObject({
    code: "model-invalid",
    message: expect.stringContaining(sha256),
  });
  expect((await readdir(path.join(dataDir, "models"))).filter((name) => name.endsWith(".gguf"))).toEqual([]);
});

test("a hub that publishes no digest is taken at its word", async () => {
  published = undefined;
  expect(await resolveModelFile(REFERENCE, { dataDir })).toMatchObject({ digest: sha256 });
});

test("a refusal advises to set HF_TOKEN, and with one to accept the licence", async () => {
  requiredToken = "right";
  await expect(resolveModelFile(REFERENCE, { dataDir })).rejects.toMatchObject({
    code: "model-download-failed",
    message: expect.stringMatching(/gated.*set HF_TOKEN/),
  });
  await expect(resolveModelFile(REFERENCE, { dataDir, hfToken: "wrong" })).rejects.toMatchObject({
    code: "model-download-failed",
    message: expect.stringMatching(/refused HF_TOKEN.*licence/),
  });
  await expect(resolveModelFile(REFERENCE, { dataDir, hfToken: "wrong" })).rejects.not.toThrow("wrong");
});

test("HF_TOKEN opens a gated model", async () => {
  requiredToken = "right";
  expect(await resolveModelFile(REFERENCE, { dataDir, hfToken: "right" })).toMatchObject({ digest: sha256 });
});

test("a model that is not on the hub says what to check", async () => {
  await expect(resolveModelFile("hf:user/repo/other.gguf", { dataDir })).rejects.toMatchObject({
    code: "model-download-failed",
    message: expect.stringMatching(/other\.gguf.*Check the name/s),
  });
});

test("a download that was stopped goes on where it was", async () => {
  const controller = new AbortController();
  const reason = new Error("the worker stops");
  const stopped = resolveModelFile(REFERENCE, {
    dataDir,
    signal: controller.signal,
    onProgress: ({ downloadedBytes }) => downloadedBytes > 0 && controller.abort(reason),
  });
  const outcome = await stopped.then(
    () => "finished",
    () => "stopped",
  );
  console.log(outcome, sentBytes, weights.length, await readdir(path.join(dataDir, "models")), served);
  const file = await resolveModelFile(REFERENCE, { dataDir });
  expect(file.digest).toBe(sha256);
  expect((await stat(file.path)).size).toBe(weights.length);
});

test("a connection that is cut again and again still delivers the whole file", async () => {
  cutAfterBytes = 1_500_000;
  const file = await resolveModelFile(REFERENCE, { dataDir }).catch((e) => e);
  console.log(file, sentBytes, served);
});
