import { execFile } from "node:child_process";
import { stat } from "node:fs/promises";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { MathllmError } from "../../queues/errors.ts";

/** Without persistence mode the first question of a minute wakes the driver, which takes seconds. */
const TIMEOUT_MS = 10_000;
const TRIES = 3;
const RETRY_MS = 500;
const SHOWN_CHARACTERS = 300;

const run = promisify(execFile);

/**
 * What nvidia-smi prints. null: there is no NVIDIA GPU, because there is no such program or because it finds no device. Everything else
 * that goes wrong says nothing about whether there is one: it is tried again, then thrown as `gpu-unreadable` with what it said.
 */
export async function askNvidiaSmi(
  args: string[],
  { tries = TRIES, retryMs = RETRY_MS, timeoutMs = TIMEOUT_MS } = {},
): Promise<string | null> {
  for (let triesLeft = tries - 1; ; triesLeft--) {
    try {
      const { stdout } = await run("nvidia-smi", args, { timeout: timeoutMs, killSignal: "SIGKILL" });
      return findsNoDevice(stdout) ? null : stdout;
    } catch (error) {
      const { code, killed, stdout = "", stderr = "" } = error as { code?: unknown; killed?: boolean; stdout?: string; stderr?: string };
      if (code === "ENOENT" || findsNoDevice(stdout + stderr)) return null;
      if (code === "EACCES" && !(await isOnPath("nvidia-smi"))) return null;
      if (triesLeft <= 0) {
        const said = `${stdout} ${stderr}`.replace(/\s+/g, " ").trim().replace(/\.$/, "").slice(0, SHOWN_CHARACTERS);
        const how = killed ? `did not answer within ${timeoutMs} ms` : `failed (${String(code)})`;
        throw unreadable(`nvidia-smi ${how}${said === "" ? "" : `: ${said}`}`);
      }
    }
    await delay(retryMs);
  }
}

export function unreadable(what: string): MathllmError {
  return new MathllmError(
    "gpu-unreadable",
    `Expected nvidia-smi to tell of the GPU; ${what}. Mend the driver (a restart may do), or set GPU_ID=cpu to run the models on the CPU.`,
  );
}

/** Whether a folder of the PATH holds such a file. One folder that can't be searched makes the system say EACCES of a program that is nowhere. */
async function isOnPath(program: string): Promise<boolean> {
  const files = (process.env.PATH ?? "").split(path.delimiter).map((folder) => path.join(folder, program));
  const looks = await Promise.all(files.map((file) => stat(file).catch(() => null)));
  return looks.some((look) => look?.isFile());
}

function findsNoDevice(text: string): boolean {
  return /no devices were found/i.test(text);
}
