import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { hostBoot } from "../../queues/process-identity.ts";
import { identifyGpu } from "../../workers/gpu/gpu-identity.ts";
import { askNvidiaSmi } from "../../workers/gpu/nvidia-smi.ts";

const FIXTURES = path.join(import.meta.dirname, "..", "fixtures", "nvidia-smi");
const FIRST = "GPU-11111111-2222-3333-4444-555555555555";
const SECOND = "GPU-66666666-7777-8888-9999-000000000000";
let folder: string;
let dataDir: string;

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-gpu-"));
  dataDir = path.join(folder, "data");
  vi.stubEnv("PATH", `${folder}:/usr/bin:/bin`);
  vi.stubEnv("CUDA_VISIBLE_DEVICES", undefined);
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true, force: true });
});

/** A stand-in for nvidia-smi on the PATH: `body` is a shell script; each call is counted. */
async function nvidiaSmi(body: string): Promise<void> {
  await writeFile(path.join(folder, "nvidia-smi"), `#!/bin/sh\necho "$*" >> ${folder}/calls\n${body}\n`);
  await chmod(path.join(folder, "nvidia-smi"), 0o755);
}
const calls = async () => (await readFile(path.join(folder, "calls"), "utf8").catch(() => "")).split("\n").filter(Boolean);
const says = (file: string, code = 0) => `cat ${path.join(FIXTURES, file)}; exit ${code}`;
/** Two cards: all, or the one that -i names by number or UUID. */
const twoCards = `file=${path.join(FIXTURES, "two-gpus.csv")}
case "$*" in
  "-i 0 "*|"-i ${FIRST} "*) sed -n 1p $file ;;
  "-i 1 "*|"-i ${SECOND} "*) sed -n 2p $file ;;
  "-i "*) ${says("no-devices.txt", 6)} ;;
  *) cat $file ;;
esac`;

test("the first GPU's UUID is its name, and what model servers see", async () => {
  await nvidiaSmi(twoCards);
  expect(await identifyGpu({ dataDir })).toEqual({ id: FIRST, visible: { uuid: FIRST, index: 0 } });
});

test("two workers that are given different GPUs have different leases and different cards", async () => {
  await nvidiaSmi(twoCards);
  expect(await identifyGpu({ dataDir, gpuId: SECOND })).toEqual({ id: SECOND, visible: { uuid: SECOND, index: 1 } });
  expect(await identifyGpu({ dataDir }, { CUDA_VISIBLE_DEVICES: "1" })).toEqual({ id: SECOND, visible: { uuid: SECOND, index: 1 } });
  expect(await identifyGpu({ dataDir }, { CUDA_VISIBLE_DEVICES: `${SECOND},${FIRST}` })).toMatchObject({ id: SECOND });
  await expect(identifyGpu({ dataDir, gpuId: "GPU-gone" })).rejects.toMatchObject({
    code: "invalid-configuration",
    message: expect.stringContaining("GPU-gone"),
  });
});

test("a name of the owner's names the lease; the card stays the card", async () => {
  await nvidiaSmi(twoCards);
  expect(await identifyGpu({ dataDir, gpuId: "mine" })).toEqual({ id: "mine", visible: { uuid: FIRST, index: 0 } });
});

test.each([
  ["the driver does not answer", says("driver-failed.txt", 9)],
  ["the GPU is lost", says("gpu-lost.csv", 15)],
  ["it says something else", "echo Segmentation fault"],
  ["it is killed", "kill -KILL $$"],
])("%s: that is no machine without a GPU, and it is said", { timeout: 20_000 }, async (_name, body) => {
  await nvidiaSmi(body);
  await expect(identifyGpu({ dataDir })).rejects.toMatchObject({
    code: "gpu-unreadable",
    message: expect.stringMatching(/nvidia-smi.*GPU_ID=cpu/s),
  });
});

test("what fails once is asked again", async () => {
  await nvidiaSmi(`if [ "$(wc -l < ${folder}/calls)" = 1 ]; then ${says("driver-failed.txt", 9)}; fi; ${says("two-gpus.csv")}`);
  expect(await identifyGpu({ dataDir })).toMatchObject({ id: FIRST });
  expect(await calls()).toHaveLength(2);
});

test("one that hangs is ended, and refused with the reason", async () => {
  await nvidiaSmi("exec sleep 60");
  await expect(askNvidiaSmi([], { tries: 2, retryMs: 1, timeoutMs: 100 })).rejects.toMatchObject({
    code: "gpu-unreadable",
    message: expect.stringContaining("did not answer within 100 ms"),
  });
});

test.each([
  ["there is no nvidia-smi", null],
  ["it finds no device", says("no-devices.txt", 6)],
  ["it finds no device and thinks that well", says("no-devices.txt")],
])("%s: the models run on the CPU, under a name that stays", async (_name, body) => {
  if (body !== null) await nvidiaSmi(body);
  const first = await identifyGpu({ dataDir });
  expect(first).toEqual({ id: expect.stringMatching(/^cpu-[0-9a-f]{16}$/), visible: undefined });
  expect(await identifyGpu({ dataDir })).toEqual(first);
});

test("two containers whose data directories have the same path have different names; two workers of one directory the same", async () => {
  const both = await Promise.all([identifyGpu({ dataDir }), identifyGpu({ dataDir })]);
  expect(both[0]).toEqual(both[1]);
  await rm(dataDir, { recursive: true });
  await mkdir(dataDir);
  expect((await identifyGpu({ dataDir })).id).not.toBe(both[0].id);
});

test("GPU_ID=cpu and CUDA's own ways hide every GPU, and none is asked", async () => {
  await nvidiaSmi(twoCards);
  expect(await identifyGpu({ dataDir, gpuId: "cpu-2" })).toEqual({ id: "cpu-2", visible: "none" });
  for (const CUDA_VISIBLE_DEVICES of ["", "-1", "NoDevFiles"]) {
    expect(await identifyGpu({ dataDir }, { CUDA_VISIBLE_DEVICES })).toEqual({ id: expect.stringMatching(/^cpu-/), visible: "none" });
  }
  expect(await calls()).toEqual([]);
});

test("a folder that can't be written is said", async () => {
  await writeFile(path.join(folder, "file"), "");
  await expect(identifyGpu({ dataDir: path.join(folder, "file", "data") })).rejects.toMatchObject({ code: "invalid-configuration" });
});

test("process identities are compared only within one pid namespace", () => {
  if (process.platform === "linux") expect(hostBoot()).toMatch(/\/pid:\[\d+\]$/);
});

test("a PATH on which the system may not look everywhere is no broken driver; a program that may not be run is one", async () => {
  // What is executed is refused with EACCES, as in a folder that can't be searched.
  await mkdir(path.join(folder, "nvidia-smi"));
  expect(await askNvidiaSmi(["-L"], { retryMs: 1 })).toBeNull();
  await rm(path.join(folder, "nvidia-smi"), { recursive: true });
  await writeFile(path.join(folder, "nvidia-smi"), "#!/bin/sh\n", { mode: 0o644 });
  await expect(askNvidiaSmi(["-L"], { retryMs: 1 })).rejects.toMatchObject({ code: "gpu-unreadable" });
});
