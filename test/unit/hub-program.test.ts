import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { fetchIntoHubCache } from "../../workers/engines/hub-program.ts";

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-test-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

/** A stand-in for the hub's program, beside vllm. */
async function program(name: string, script: string): Promise<string> {
  await writeFile(path.join(folder, name), `#!/bin/sh\n${script}\n`);
  await chmod(path.join(folder, name), 0o755);
  return path.join(folder, "vllm");
}

test.each(["hf", "huggingface-cli"])(
  "%s fetches the model, with the token and nothing else of ours, and tells its folder",
  async (name) => {
    const vllm = await program(name, `echo "$@ $HF_TOKEN" > ${folder}/asked; echo Fetching; echo ${folder}/snapshot`);
    expect(await fetchIntoHubCache("owner/name", vllm, { PATH: process.env.PATH, HF_TOKEN: "secret" })).toBe(path.join(folder, "snapshot"));
    expect((await readFile(path.join(folder, "asked"), "utf8")).trim()).toBe("download owner/name --exclude original/* secret");
  },
);

test("without such a program it is null", async () => {
  expect(await fetchIntoHubCache("owner/name", path.join(folder, "vllm"), {})).toBeNull();
});

test("what it failed with is said", async () => {
  const vllm = await program("hf", "echo 'Repository Not Found' >&2; exit 1");
  await expect(fetchIntoHubCache("owner/name", vllm, { PATH: process.env.PATH })).rejects.toMatchObject({
    code: "model-download-failed",
    message: expect.stringContaining("Repository Not Found"),
  });
});
