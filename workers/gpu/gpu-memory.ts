import { setTimeout as delay } from "node:timers/promises";
import { askNvidiaSmi } from "./nvidia-smi.ts";

export interface VramUse {
  usedBytes: number;
  totalBytes: number;
}

const MEBIBYTE = 1_048_576;
const POLL_MS = 50;
/** Drivers give memory back in pieces, and a desktop draws meanwhile. */
const IDLE_TOLERANCE_BYTES = 256 * MEBIBYTE;

/**
 * VRAM of the first GPU, or of the one with this UUID, as nvidia-smi tells it; null without one, or with one that shares the host's
 * memory and tells none. Throws `gpu-unreadable`, after so many tries, when nvidia-smi does not answer for it.
 */
export async function readVram(gpuId: string, options?: { tries: number }): Promise<VramUse | null> {
  const only = gpuId.startsWith("GPU-") ? ["-i", gpuId] : [];
  const text = await askNvidiaSmi([...only, "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"], options);
  const [used, total] = (text ?? "").split("\n")[0]!.split(",").map(Number);
  return Number.isFinite(used) && Number.isFinite(total) ? { usedBytes: used! * MEBIBYTE, totalBytes: total! * MEBIBYTE } : null;
}

/**
 * Sees that a model's memory is free again. The level before the load is the idle level; after the process is gone, the memory in
 * use has to come back to it. Without a GPU, or with a model that runs on the CPU, the end of the process is the proof.
 */
export class IdleLevel {
  readonly #gpuId: string;
  readonly #onGpu: boolean;
  readonly #timeoutMs: number;
  #usedBytes: number | null = null;

  /** `onGpu`: false when there is no GPU to look at. */
  constructor(gpuId: string, onGpu: boolean, timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
    this.#gpuId = gpuId;
    this.#onGpu = onGpu;
  }

  /** To be called while nothing is loaded. Returns what is in use; null without a GPU. Throws `gpu-unreadable`. */
  async measure(): Promise<VramUse | null> {
    const vram = this.#onGpu ? await readVram(this.#gpuId) : null;
    this.#usedBytes = vram?.usedBytes ?? null;
    return vram;
  }

  /**
   * Resolves when the memory is back at the idle level, `residualBytes` aside: null. After `timeoutMs` it gives up with what it saw: another program may have
   * taken memory meanwhile, and waiting for ever would be worse than a load that may fail.
   */
  async freed(residualBytes = 0): Promise<string | null> {
    const idleBytes = this.#usedBytes;
    if (idleBytes === null) return null;
    const giveUpAt = Date.now() + this.#timeoutMs;
    for (;;) {
      // No answer, or one without a number where there was one, is no proof that the memory is free.
      const vram = await readVram(this.#gpuId, { tries: 1 }).catch((error: Error) => error.message);
      if (typeof vram === "object" && vram !== null && vram.usedBytes <= idleBytes + residualBytes + IDLE_TOLERANCE_BYTES) return null;
      if (Date.now() > giveUpAt) {
        return typeof vram === "object" && vram !== null
          ? `${vram.usedBytes} bytes of VRAM are in use ${this.#timeoutMs} ms after the model server ended, ${idleBytes} were before it was loaded: another program has taken memory`
          : `it is not known whether the VRAM is free ${this.#timeoutMs} ms after the model server ended: ${vram ?? "nvidia-smi finds no GPU any more"}`;
      }
      await delay(POLL_MS);
    }
  }
}

/** How far below the watermark the use has to fall before as many jobs as fit may run again. */
const WATERMARK_RELIEF = 0.02;

/** Says when so much VRAM is in use that only one job should run at a time: never none, or nothing would ever free it. */
export class VramWatermark {
  readonly #share: number;
  readonly #onChange: (action: "watermark-reached" | "watermark-left", reason: string) => void;
  #reason: string | null = null;

  constructor(share: number, onChange: (action: "watermark-reached" | "watermark-left", reason: string) => void) {
    this.#share = share;
    this.#onChange = onChange;
  }

  /** null: as many jobs as fit may run. */
  get reason(): string | null {
    return this.#reason;
  }

  see(vram: VramUse | null): void {
    const share = vram === null ? 0 : vram.usedBytes / vram.totalBytes;
    const limit = this.#reason === null ? this.#share : this.#share - WATERMARK_RELIEF;
    if (share >= limit === (this.#reason !== null)) return;
    const use = vram === null ? "it is no longer known how much VRAM is in use" : `${(100 * share).toFixed(1)} % of the VRAM is in use`;
    const text = `${use}, the watermark is ${(100 * this.#share).toFixed(1)} %`;
    this.#reason = share >= limit ? `${text}: one job at a time` : null;
    this.#onChange(this.#reason === null ? "watermark-left" : "watermark-reached", text);
  }
}
