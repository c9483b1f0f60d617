import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { Readable } from "node:stream";
import { expect, onTestFinished, test } from "vitest";
import { FileStore } from "../../api/openai/file-store.ts";

test("a file whose record can't be read is not there, and makes way for the others", async () => {
  const folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-files-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  const files = new FileStore(folder, { fileLimitBytes: 100, filesMaxBytes: 1000, retentionSeconds: 100 });
  const broken = ["", "{", "null", "{}"].map((text, i) => ({ text, id: `file-${String(i).repeat(24)}` }));
  for (const { text, id } of broken) await writeFile(path.join(folder, `${id}.json`), text);
  expect(await files.list()).toEqual([]);
  expect(await files.read(broken[0]!.id)).toBeUndefined();
  const { id } = await files.store(Readable.from([Buffer.from("{}\n")]), { filename: "a.jsonl", owner: null });
  expect((await files.list()).map((file) => file.id)).toEqual([id]);
  expect((await readdir(folder)).sort()).toEqual([`${id}.json`, `${id}.jsonl`]);
});
