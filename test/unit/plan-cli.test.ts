import { execFile } from "node:child_process";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { parseEnv, promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readConfig } from "../../queues/config.ts";
import type { Plan } from "../../workers/gpu/plan.ts";

const CLI = path.join(import.meta.dirname, "../../mathllm.ts");
const OWNERS = ["--student", "nvidia/OpenMath-Nemotron-7B", "--talker", "meta-llama/Llama-3.1-8B-Instruct"];
const TINYLLAMA = ["--draft", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"];

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "mathllm-plan-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Runs `mathllm plan` in an empty folder, with no hub, and with this nvidia-smi or none. */
async function plan(args: string[], nvidiaSmi?: string): Promise<{ code: number; stdout: string; stderr: string }> {
  const bin = await mkdtemp(path.join(folder, "bin-"));
  if (nvidiaSmi !== undefined) {
    await writeFile(path.join(bin, "nvidia-smi"), `#!/bin/sh\ncase "$*" in\n${nvidiaSmi}\nesac\n`);
    await chmod(path.join(bin, "nvidia-smi"), 0o755);
  }
  const env = {
    PATH: nvidiaSmi === undefined ? bin : `${bin}:/usr/bin:/bin`,
    HF_ENDPOINT: "http://127.0.0.1:1",
    DATA_DIR: path.join(folder, "data"),
  };
  return promisify(execFile)(process.execPath, [CLI, "plan", ...args], { cwd: folder, env, timeout: 50_000 }).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    ({ code, stdout, stderr }: { code: number; stdout: string; stderr: string }) => ({ code, stdout, stderr }),
  );
}

const DESKTOP = `
  *query-gpu*) echo "NVIDIA GeForce RTX 5070, 12227, 11000, 461";;
  *query-compute-apps*) echo "4242, /usr/bin/blender, 512";;
  *pmon*) exit 1;;`;

describe("mathllm plan", () => {
  it("plans the shipped models for host memory where there is no GPU", async () => {
    const { code, stdout } = await plan([]);
    expect(code).toBe(0);
    expect(stdout).toContain("There is no nvidia-smi");
    expect(stdout).toContain("Planned for host memory");
  });

  it("tells the owner of a 12 GB card what does not fit and what does, and prints settings", async () => {
    const { code, stdout } = await plan([...OWNERS, ...TINYLLAMA], DESKTOP);
    expect(code).toBe(0);
    for (const text of [
      "NVIDIA GeForce RTX 5070: 12227 MiB, of which programs see 11.49 GiB; 10.74 GiB free",
      "/usr/bin/blender (process 4242) holds 512 MiB",
      "BF16 does not fit with even one sequence",
      "NOT valid",
      "Both at once, set as below",
      "STUDENT_MODEL=hf:bartowski/nvidia_OpenMath-Nemotron-7B-GGUF:Q4_K_M",
      "TALKER_MODEL=hf:bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M",
    ]) {
      expect(stdout).toContain(text);
    }
  });

  it("prints one object, or settings that can be read back and then plan without a change", async () => {
    const { stdout } = await plan([...OWNERS, ...TINYLLAMA, "--vram", "12227MiB", "--json"]);
    const made = JSON.parse(stdout) as Plan;
    expect(made).toMatchObject({ safe: true, models: { student: { fit: { fits: false } }, talker: { fit: { fits: false } } } });
    const { code, stdout: env } = await plan([...OWNERS, "--vram", "12GiB", "--env"]);
    expect(code).toBe(0);
    const { profiles } = readConfig(parseEnv(env));
    const again = await plan(["--student", profiles.student.model, "--talker", profiles.talker.model, "--vram", "12GiB", "--env"]);
    expect(again.stdout).toBe(env);
  });

  it("ends with 3 when the card is too small", async () => {
    const { code, stdout } = await plan([...OWNERS, "--vram", "12GiB", "--free", "3GiB"]);
    expect(code).toBe(3);
    expect(stdout).toContain("No configuration fits for both");
  });

  it("goes on with host memory when the GPU is lost", async () => {
    const { code, stdout } = await plan([], '*) echo "Unable to determine the device handle for GPU0: GPU is lost."; exit 15;;');
    expect(code).toBe(0);
    expect(stdout).toContain("GPU is lost");
    expect(stdout).toContain("Planned for host memory");
  });

  it("says what is wrong with its arguments and with models that are not there", async () => {
    expect(await plan(["--vram", "12XB"])).toMatchObject({ code: 2, stderr: expect.stringContaining("12GiB") });
    expect(await plan(["--json", "--env"])).toMatchObject({ code: 2 });
    expect(await plan(["--student", "nowhere.gguf"])).toMatchObject({ code: 1, stderr: expect.stringContaining("nowhere.gguf") });
    expect(await plan(["--student", "some/model"])).toMatchObject({ code: 1, stderr: expect.stringContaining("http://127.0.0.1:1") });
  });
});
