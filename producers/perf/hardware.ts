import { execFile } from "node:child_process";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import type { Evidence } from "../report/schema.ts";

const run = promisify(execFile);
const TIMEOUT_MS = 10_000;
const MEBIBYTE = 1_048_576;

/** What the figures were measured on. Without nvidia-smi there is no GPU to name. */
export async function readHardware(): Promise<Evidence["hardware"]> {
  return {
    cpuModel: os.cpus()[0]?.model.trim() ?? "unknown",
    cpuCores: os.availableParallelism(),
    ramBytes: os.totalmem(),
    os: `${os.type()} ${os.release()} ${os.arch()}`,
    gpus: await readGpus(),
  };
}

async function readGpus(): Promise<Evidence["hardware"]["gpus"]> {
  try {
    const args = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"];
    const { stdout } = await run("nvidia-smi", args, { timeout: TIMEOUT_MS });
    return stdout
      .trim()
      .split("\n")
      .map((line) => line.split(",").map((field) => field.trim()))
      .map(([name = "unknown", mebibytes, driver]) => ({
        name,
        vramBytes: Number.isFinite(Number(mebibytes)) ? Number(mebibytes) * MEBIBYTE : null,
        driver: driver ?? null,
      }));
  } catch {
    return [];
  }
}

/** The commit that runs; null where this is no checkout, or git is not there. */
export async function readCommit(main: string): Promise<string | null> {
  try {
    const { stdout } = await run("git", ["rev-parse", "HEAD"], { cwd: path.dirname(main), timeout: TIMEOUT_MS });
    return stdout.trim();
  } catch {
    return null;
  }
}
