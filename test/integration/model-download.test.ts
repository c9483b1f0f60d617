import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, stat, statfs, utimes } from "node:fs/promises";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import readline from "node:readline";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { PreparationProgress } from "../../workers/engines/engine.ts";
import { presentModelFile, resolveModelFile } from "../../workers/engines/model-file.ts";

vi.mock("node:fs/promises", async (original) => {
  const real = await original<typeof import("node:fs/promises")>();
  return { ...real, statfs: vi.fn(real.statfs) };
});

/** A real model, longer than one part: the library fetches parts of 5 MiB, some at a time. */
const weights = Buffer.alloc(17 * 1024 * 1024);
(await readFile(path.join(import.meta.dirname, "..", "..", "models", "student.gguf"))).copy(weights);
const sha256 = createHash("sha256").update(weights).digest("hex");
const PART_BYTES = 1_500_000;
const REFERENCE = "hf:user/repo/file.gguf";

/** A model hub on loopback, as one test wants it. */
let hub: http.Server;
let dataDir: string;
let served: { method: string; url: string; range?: string; authorization?: string }[];
let published: { oid: string; size: number } | undefined;
let requiredToken: string | undefined;
const children: ChildProcess[] = [];
/** How many downloads are broken off after `PART_BYTES`, and whether by closing the connection or by silence. */
let broken: { times: number; how: "cut" | "silent" };

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
  if (asked === null || part.length <= PART_BYTES || broken.times-- <= 0) response.end(part);
  else response.write(part.subarray(0, PART_BYTES), () => broken.how === "cut" && response.destroy());
}

/** The library first asks for the file without a range, only to read the headers; the bytes come by ranges. */
const partsAsked = () => served.filter(({ range }) => range !== undefined).length;

const bytesAsked = () =>
  served
    .map(({ range }) => /bytes=(\d+)-(\d+)/.exec(range ?? ""))
    .reduce((sum, asked) => sum + (asked === null ? 0 : Number(asked[2]) + 1 - Number(asked[1])), 0);

beforeEach(async () => {
  served = [];
  published = { oid: sha256, size: weights.length };
  requiredToken = undefined;
  broken = { times: 0, how: "cut" };
  dataDir = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
  hub = http.createServer(answer).listen(0, "127.0.0.1");
  await once(hub, "listening");
  vi.stubEnv("MODEL_ENDPOINT", "");
  vi.stubEnv("HF_ENDPOINT", `http://127.0.0.1:${(hub.address() as AddressInfo).port}`);
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  vi.unstubAllEnvs();
  hub.closeAllConnections();
  hub.close();
  await rm(dataDir, { recursive: true, force: true });
});

test("a model is downloaded once, with progress, and its digest is the published one", async () => {
  const progress: PreparationProgress[] = [];
  const file = await resolveModelFile(REFERENCE, { dataDir, onProgress: (at) => progress.push(at) });
  expect(file).toMatchObject({ digest: sha256, sizeBytes: weights.length });
  expect(path.dirname(file.path)).toBe(path.join(dataDir, "models"));
  expect(weights.equals(await readFile(file.path))).toBe(true);
  expect(progress.length).toBeGreaterThan(0);
  for (const { doneBytes, totalBytes } of progress) {
    expect(totalBytes).toBe(weights.length);
    expect(doneBytes).toBeLessThanOrEqual(weights.length);
  }
  expect(new Set(progress.map(({ doing }) => doing))).toEqual(new Set(["downloading", "checking"]));
  const parts = partsAsked();
  expect(parts).toBeGreaterThan(0);
  expect(await resolveModelFile(REFERENCE, { dataDir })).toEqual(file);
  expect(partsAsked()).toBe(parts);
});

test("a quantisation is found by name", async () => {
  expect(await resolveModelFile("hf:user/repo:Q4_K_M", { dataDir })).toMatchObject({ digest: sha256 });
});

test.each([REFERENCE, "hf:user/repo:Q4_K_M"])("%s once downloaded needs no hub", async (reference) => {
  const file = await resolveModelFile(reference, { dataDir });
  hub.closeAllConnections();
  hub.close();
  expect(await resolveModelFile(reference, { dataDir })).toEqual(file);
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

test("a download that was stopped keeps what it has and fetches only the rest the next time", async () => {
  broken = { times: 1, how: "silent" };
  const folder = path.join(dataDir, "models");
  const controller = new AbortController();
  const reason = new Error("the worker stops");
  const stopped = resolveModelFile(REFERENCE, { dataDir, signal: controller.signal });
  const rejected = expect(stopped).rejects.toBe(reason);
  await expect.poll(() => bytesIn(folder), { timeout: 10_000 }).toBeGreaterThan(PART_BYTES);
  controller.abort(reason);
  await rejected;

  const first = partsAsked();
  const progress: PreparationProgress[] = [];
  const file = await resolveModelFile(REFERENCE, { dataDir, onProgress: (at) => progress.push(at) });
  expect(file.digest).toBe(sha256);
  expect(partsAsked() - first).toBeLessThan(first);
  expect(progress[0]!.doneBytes).toBeGreaterThan(PART_BYTES);
});

test("those that want one file at the same time share one download, which goes on while one of them is left", async () => {
  const stopped = new AbortController();
  const progress: PreparationProgress[][] = [[], []];
  const given = resolveModelFile(REFERENCE, {
    dataDir,
    signal: stopped.signal,
    onProgress: () => stopped.abort(new Error("not any more")),
  });
  const wanted = progress.map((seen) => resolveModelFile(REFERENCE, { dataDir, onProgress: (at) => seen.push(at) }));
  await expect(given).rejects.toThrow("not any more");
  for (const file of await Promise.all(wanted)) expect(file).toMatchObject({ digest: sha256 });
  for (const seen of progress) expect(seen.length).toBeGreaterThan(0);
  expect(bytesAsked()).toBe(weights.length);
});

test("of two processes on one folder one downloads, and the other waits for its file", async () => {
  broken = { times: 1, how: "silent" };
  const stopped = new AbortController();
  const first = resolveModelFile(REFERENCE, { dataDir, signal: stopped.signal });
  await expect.poll(() => bytesIn(path.join(dataDir, "models")), { timeout: 10_000 }).toBeGreaterThan(PART_BYTES);
  const second = otherProcess();
  expect((await second.heard("progress"))[1]).toMatchObject({ doing: "waiting" });
  stopped.abort(new Error("the worker stops"));
  await expect(first).rejects.toThrow("the worker stops");
  const asked = partsAsked();
  expect((await second.heard("file"))[1]).toMatchObject({ digest: sha256 });
  expect(partsAsked() - asked).toBeLessThan(asked);
});

test("a process that is killed with -9 in mid-download leaves a lock that lapses and a download that is resumed", async () => {
  broken = { times: 1, how: "silent" };
  const models = path.join(dataDir, "models");
  const killed = otherProcess();
  await expect.poll(() => bytesIn(models), { timeout: 10_000 }).toBeGreaterThan(PART_BYTES);
  killed.child.kill("SIGKILL");
  await once(killed.child, "exit");
  const lock = (await readdir(models)).find((name) => name.endsWith(".lock"))!;
  // As it looks five seconds later.
  await utimes(path.join(models, lock), new Date(Date.now() - 6000), new Date(Date.now() - 6000));
  const asked = partsAsked();
  expect(await resolveModelFile(REFERENCE, { dataDir })).toMatchObject({ digest: sha256 });
  expect(partsAsked() - asked).toBeLessThan(asked);
  expect((await readdir(models)).filter((name) => !name.endsWith(".gguf"))).toEqual([]);
});

test("what was downloaded and is gone again is not fetched by a start", async () => {
  const file = await resolveModelFile(REFERENCE, { dataDir });
  expect(await presentModelFile(REFERENCE, { dataDir })).toEqual(file);
  await rm(file.path);
  const asked = served.length;
  await expect(presentModelFile(REFERENCE, { dataDir })).rejects.toMatchObject({ code: "model-missing" });
  expect(served.length).toBe(asked);
});

test("a connection that is cut is taken up again by itself", async () => {
  broken = { times: 1, how: "cut" };
  expect(await resolveModelFile(REFERENCE, { dataDir })).toMatchObject({ digest: sha256 });
  expect(broken.times).toBeLessThan(1);
});

test("a hub that can't be reached is said at once", async () => {
  hub.close();
  await once(hub, "close");
  await expect(resolveModelFile(REFERENCE, { dataDir })).rejects.toMatchObject({
    code: "model-download-failed",
    message: expect.stringContaining("the network"),
    retryable: true,
  });
});

test("too little disk is said before anything is fetched, with the numbers", async () => {
  vi.mocked(statfs).mockResolvedValueOnce({ bavail: 10, bsize: 4096 } as Awaited<ReturnType<typeof statfs>>);
  await expect(resolveModelFile(REFERENCE, { dataDir })).rejects.toMatchObject({
    code: "model-download-failed",
    message: expect.stringMatching(/Expected \d{9} bytes free in .*found 40960\b.*DATA_DIR/),
  });
  expect(partsAsked()).toBe(0);
});

/** Another process that resolves the same reference in the same folder, and what it says of that. */
function otherProcess(): { child: ChildProcess; heard: (what: "progress" | "file") => Promise<[string, unknown]> } {
  const script = `
    const { resolveModelFile } = await import(${JSON.stringify(path.join(import.meta.dirname, "../../workers/engines/model-file.ts"))});
    const say = (what, value) => console.log(JSON.stringify([what, value]));
    const onProgress = (progress) => say("progress", progress);
    say("file", await resolveModelFile(${JSON.stringify(REFERENCE)}, { dataDir: ${JSON.stringify(dataDir)}, onProgress }));
    process.exit(0);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  const lines: [string, unknown][] = [];
  readline.createInterface({ input: child.stdout! }).on("line", (line) => lines.push(JSON.parse(line)));
  const heard = async (what: string) => {
    await expect.poll(() => lines.some(([said]) => said === what), { timeout: 20_000 }).toBe(true);
    return lines.find(([said]) => said === what)!;
  };
  return { child, heard };
}

async function bytesIn(folder: string): Promise<number> {
  const names = await readdir(folder).catch(() => []);
  const sizes = await Promise.all(names.map(async (name) => (await stat(path.join(folder, name))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}
