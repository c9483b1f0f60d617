import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { link, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import type { Config } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import { bootId } from "../../queues/process-identity.ts";
import type { VisibleGpu } from "../engines/engine.ts";
import { askNvidiaSmi, unreadable } from "./nvidia-smi.ts";

/** What a worker's models run on. */
export interface Gpu {
  /** What workers exclude each other on: leases and locks are named by it. */
  id: string;
  /** What its model servers may use; undefined without an NVIDIA GPU. */
  visible: VisibleGpu | undefined;
}

const SYSTEM_FILE = "system-id";
const CPU_NAME = /^cpu(-|$)/;
const UUID = /^(GPU|MIG)-[\w-]+$/;

/**
 * The GPU of this worker: that of GPU_ID or CUDA_VISIBLE_DEVICES, else the first one, named by its UUID unless GPU_ID is another name.
 * GPU_ID=cpu and cpu-… are names for running on the CPU, whatever there is. Without a GPU the name is made of the data directory and the
 * host, so that separate systems don't exclude each other. Throws `gpu-unreadable` when there is no telling, `invalid-configuration`
 * when the one that is asked for is not there.
 */
export async function identifyGpu(config: Pick<Config, "gpuId" | "dataDir">, env: NodeJS.ProcessEnv = process.env): Promise<Gpu> {
  const { gpuId } = config;
  if (gpuId !== undefined && CPU_NAME.test(gpuId)) return { id: gpuId, visible: "none" };
  const named = gpuId !== undefined && UUID.test(gpuId) ? gpuId : undefined;
  const wanted = named ?? env.CUDA_VISIBLE_DEVICES?.split(",")[0]?.trim();
  // CUDA's way to say that no GPU may be used.
  if (wanted === "" || wanted?.startsWith("-") || wanted === "NoDevFiles") {
    return { id: gpuId ?? (await cpuName(config.dataDir)), visible: "none" };
  }
  const visible = wanted?.startsWith("MIG-") ? { uuid: wanted, index: null } : await cardOf(wanted);
  if (visible === undefined && named !== undefined) {
    throw new MathllmError(
      "invalid-configuration",
      `GPU_ID: expected a GPU that nvidia-smi -L lists; got ${named}. GPU_ID=cpu runs the models on the CPU.`,
    );
  }
  return { id: gpuId ?? visible?.uuid ?? (await cpuName(config.dataDir)), visible };
}

/** `wanted`: UUID or index; undefined: the first. undefined without one. */
async function cardOf(wanted: string | undefined): Promise<{ uuid: string; index: number } | undefined> {
  const only = wanted === undefined ? [] : ["-i", wanted];
  const text = await askNvidiaSmi([...only, "--query-gpu=index,uuid", "--format=csv,noheader"]);
  if (text === null) return undefined;
  const line = text.split("\n")[0]!;
  const [index, uuid] = line.split(",").map((field) => field.trim());
  if (index === undefined || !/^\d+$/.test(index) || uuid === undefined || !UUID.test(uuid)) {
    throw unreadable(`for its index and UUID it said ${line.trim().slice(0, 200) || "nothing"}`);
  }
  return { uuid, index: Number(index) };
}

/**
 * The same after every restart, for each worker of this data directory on this host. A random name in the directory tells two
 * containers apart whose directories have the same path; the host tells two hosts apart that share one directory.
 */
async function cpuName(dataDir: string): Promise<string> {
  const digest = createHash("sha256")
    .update(`${await systemId(dataDir)}/${hostId()}`)
    .digest("hex");
  return `cpu-${digest.slice(0, 16)}`;
}

/** Of two that start at once both get the one that came first. */
async function systemId(dataDir: string): Promise<string> {
  const file = path.join(dataDir, SYSTEM_FILE);
  const known = await readFile(file, "utf8").catch(() => "");
  if (known !== "") return known;
  const written = `${file}.${randomUUID()}`;
  try {
    await mkdir(dataDir, { recursive: true, mode: 0o700 });
    await writeFile(written, randomUUID());
    // Unlike a rename it leaves one that is there, and it is never seen half written.
    await link(written, file).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
    await rm(written);
    return await readFile(file, "utf8");
  } catch (error) {
    throw new MathllmError("invalid-configuration", `DATA_DIR: expected a folder that can be written; ${(error as Error).message}`);
  }
}

/** The machine's own id; in a container, which mostly has none, the kernel's boot. */
function hostId(): string {
  try {
    return readFileSync("/etc/machine-id", "utf8").trim() || bootId();
  } catch {
    return bootId();
  }
}
