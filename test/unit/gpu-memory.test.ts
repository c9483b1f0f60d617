import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { IdleLevel, readVram, VramWatermark } from "../../workers/gpu/gpu-memory.ts";

/** A stand-in for nvidia-smi that answers from a file, line by line, the last line again and again. */
let folder: string;
const before = process.env.PATH;

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-smi-"));
  const script = `#!/bin/sh
head -n 1 ${folder}/answers
if [ "$(wc -l < ${folder}/answers)" -gt 1 ]; then sed -i 1d ${folder}/answers; fi
`;
  await writeFile(path.join(folder, "nvidia-smi"), script);
  await chmod(path.join(folder, "nvidia-smi"), 0o755);
  process.env.PATH = `${folder}:${before}`;
});

afterEach(async () => {
  process.env.PATH = before;
  await rm(folder, { recursive: true, force: true });
});

const answers = (...lines: string[]) => writeFile(path.join(folder, "answers"), `${lines.join("\n")}\n`);

test("memory is free once its use is back at the level before the load, within what drivers keep", async () => {
  await answers("700, 12227", "9800, 12227", "5000, 12227", "800, 12227");
  const level = new IdleLevel("GPU-1", true, 5000);
  await level.measure();
  expect(await level.freed()).toBeNull();
  expect(await readVram("GPU-1")).toEqual({ usedBytes: 800 * 1_048_576, totalBytes: 12_227 * 1_048_576 });
});

test("without a GPU, or with an answer that is no number, nothing is waited for and nothing invented", async () => {
  await answers("[N/A], [N/A]");
  expect(await readVram("GPU-1")).toBeNull();
  const level = new IdleLevel("GPU-1", true, 5000);
  await level.measure();
  expect(await level.freed()).toBeNull();
  process.env.PATH = "/nowhere";
  expect(await readVram("cpu-1")).toBeNull();
});

test("an nvidia-smi that fails is no proof that the memory is free, and no machine without a GPU", async () => {
  await answers("700, 12227");
  const level = new IdleLevel("GPU-1", true, 300);
  await level.measure();
  await writeFile(path.join(folder, "nvidia-smi"), "#!/bin/sh\necho Unable to determine the device handle for GPU; exit 15");
  expect(await level.freed()).toMatch(/it is not known whether the VRAM is free 300 ms after.*Unable to determine the device handle/);
  await expect(readVram("GPU-1", { tries: 1 })).rejects.toMatchObject({ code: "gpu-unreadable" });
  await expect(level.measure()).rejects.toMatchObject({ code: "gpu-unreadable" });
});

test("the watermark is left only when the use has fallen clearly below it", () => {
  const changes: string[] = [];
  const watermark = new VramWatermark(0.9, (action) => changes.push(action));
  const see = (percent: number) => {
    watermark.see({ usedBytes: percent, totalBytes: 100 });
    return watermark.reason !== null;
  };
  expect([89, 90, 89, 88.5, 87.9, 89].map(see)).toEqual([false, true, true, true, false, false]);
  expect(changes).toEqual(["watermark-reached", "watermark-left"]);
  watermark.see(null);
  expect(watermark.reason).toBeNull();
});
