import { createHash } from "node:crypto";
import { copyFile, mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { resolveModelFile } from "../../workers/engines/model-file.ts";

const shipped = path.join(import.meta.dirname, "..", "..", "models", "draft.gguf");
let folder: string;
let dataDir: string;

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
  dataDir = path.join(folder, "data");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");

test("a GGUF file is found with its size and SHA-256", async () => {
  const bytes = await readFile(shipped);
  expect(await resolveModelFile(shipped, { dataDir })).toEqual({ path: shipped, sizeBytes: bytes.length, digest: sha256(bytes) });
});

test("a relative path is resolved", async () => {
  expect((await resolveModelFile(path.relative(process.cwd(), shipped), { dataDir })).path).toBe(shipped);
});

test("the digest is remembered, and computed anew when the file has changed", async () => {
  const own = path.join(folder, "own");
  const file = path.join(folder, "changing.gguf");
  await copyFile(shipped, file);
  const { digest } = await resolveModelFile(file, { dataDir: own });
  const cacheFile = path.join(own, "model-digests.json");
  const cache = JSON.parse(await readFile(cacheFile, "utf8"));
  expect(Object.values(cache)).toEqual([digest]);
  await writeFile(cacheFile, JSON.stringify({ [Object.keys(cache)[0]!]: "remembered" }));
  expect((await resolveModelFile(file, { dataDir: own })).digest).toBe("remembered");

  const bytes = Buffer.concat([await readFile(shipped), Buffer.from("more")]);
  await writeFile(file, bytes);
  expect((await resolveModelFile(file, { dataDir: own })).digest).toBe(sha256(bytes));
});

test("a broken digest cache is no reason to fail", async () => {
  const own = path.join(folder, "broken");
  await resolveModelFile(shipped, { dataDir: own });
  await writeFile(path.join(own, "model-digests.json"), "{oops");
  expect((await resolveModelFile(shipped, { dataDir: own })).digest).toBe(sha256(await readFile(shipped)));
});

test("several files at once are all remembered right", async () => {
  const own = path.join(folder, "parallel");
  const files = await Promise.all(
    [0, 1, 2, 3].map(async (i) => {
      const file = path.join(folder, `parallel-${i}.gguf`);
      await writeFile(file, Buffer.concat([await readFile(shipped), Buffer.from(String(i))]));
      return file;
    }),
  );
  const resolved = await Promise.all(files.map((file) => resolveModelFile(file, { dataDir: own })));
  for (const { path: file, digest } of resolved) expect(digest).toBe(sha256(await readFile(file)));
  JSON.parse(await readFile(path.join(own, "model-digests.json"), "utf8"));
});

test("a missing file is model-missing and names the path and the settings", async () => {
  const file = path.join(folder, "nothing.gguf");
  await expect(resolveModelFile(file, { dataDir })).rejects.toMatchObject({
    code: "model-missing",
    message: expect.stringMatching(/nothing\.gguf.*STUDENT_MODEL/),
  });
});

test("a folder is model-missing", async () => {
  await expect(resolveModelFile(folder, { dataDir })).rejects.toMatchObject({ code: "model-missing" });
});

test("bytes that are no GGUF are model-invalid", async () => {
  const file = path.join(folder, "random.gguf");
  await writeFile(file, createHash("sha512").update("x").digest());
  await expect(resolveModelFile(file, { dataDir })).rejects.toMatchObject({
    code: "model-invalid",
    message: expect.stringContaining("random.gguf"),
  });
});

test("an empty file is model-invalid", async () => {
  const file = path.join(folder, "empty.gguf");
  await writeFile(file, "");
  await expect(resolveModelFile(file, { dataDir })).rejects.toMatchObject({ code: "model-invalid" });
});

test.each([0.9, 0.5, 0.02])("a GGUF cut to %d of its length is model-invalid", async (part) => {
  const file = path.join(folder, `cut-${part}.gguf`);
  await copyFile(shipped, file);
  await truncate(file, Math.floor((await readFile(shipped)).length * part));
  await expect(resolveModelFile(file, { dataDir })).rejects.toMatchObject({ code: "model-invalid" });
});
