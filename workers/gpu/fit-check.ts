import { stat } from "node:fs/promises";
import type { Logger } from "pino";
import type { Config, ModelProfile } from "../../queues/config.ts";
import { MathllmError } from "../../queues/errors.ts";
import type { VramUse } from "./gpu-memory.ts";
import { type ModelShape, readModelShape } from "./model-shape.ts";
import { detectCard, engineFor, fitCheckOf, hostCard, judgeDraft } from "./plan.ts";
import { type Card, type DraftVerdict, memoryText } from "./vram.ts";

/**
 * Looks before a load whether the model fits: first into the whole card, then into what is free now. What can never fit is
 * `out-of-memory`, answered by fewer sequences or a shorter context; what another program's memory leaves no room for is
 * `memory-taken`, which waits until that is given back. vLLM's share of the card is lowered to what is free where that is enough.
 */
export class FitCheck {
  readonly #config: Config;
  readonly #gpuId: string;
  readonly #log: Logger;
  readonly #shapes = new Map<string, { key: string; shape: ModelShape }>();
  readonly #drafts = new Map<string, DraftVerdict>();
  #card: Card | null | undefined;

  constructor(config: Config, gpuId: string, log: Logger) {
    this.#config = config;
    this.#gpuId = gpuId;
    this.#log = log;
  }

  /** The profile as it can be loaded now, its context bounded by the model's own. `vram`: what is in use before the load; null without a GPU. */
  async check(profile: ModelProfile, vram: VramUse | null): Promise<ModelProfile> {
    if (profile.mode === "remote" || profile.mode === "ollama") return profile;
    const shape = await this.#shapeOf(profile.model);
    if (shape === null) return profile;
    const bounded = { ...profile, maxModelLen: Math.min(profile.maxModelLen, shape.trainedContextTokens) };
    return this.#config.forceLoad ? bounded : this.#fitted(bounded, shape, vram);
  }

  async #fitted(profile: ModelProfile, shape: ModelShape, vram: VramUse | null): Promise<ModelProfile> {
    const card = vram === null ? hostCard() : await this.#gpu();
    // vLLM's CPU build sizes its memory by a variable of its own.
    if (card === null || (card.kind === "host" && profile.mode === "vllm")) return profile;
    const { enabled, draftModel } = profile.speculative;
    const draft = enabled && draftModel !== undefined ? await this.#shapeOf(draftModel) : undefined;
    if (draft === null) return profile;
    if (draft !== undefined) await this.#checkDraft(profile, shape, draftModel!, draft);

    const whole = fitCheckOf(profile, shape, draft, { ...card, freeBytes: card.totalBytes });
    if (!whole.fits) {
      const largest = whole.largestMaxNumSeqs > 0 ? ` At this context ${whole.largestMaxNumSeqs} sequences would fit.` : "";
      throw new MathllmError(
        "out-of-memory",
        `${profile.model} does not fit: ${whole.arithmetic}.${largest} FORCE_LOAD=1 tries all the same.`,
      );
    }
    const now = { ...card, freeBytes: vram === null ? card.freeBytes : vram.totalBytes - vram.usedBytes };
    const fit = fitCheckOf(profile, shape, draft, now);
    if (fit.fits) return profile;
    if (profile.mode === "vllm" && fit.fitsUtilisationNow && fit.utilisationNow !== null) {
      this.#log.warn(
        { role: profile.role, gpuMemoryUtilization: fit.utilisationNow },
        "other programs hold VRAM: vLLM gets a smaller share",
      );
      return { ...profile, gpuMemoryUtilization: fit.utilisationNow };
    }
    throw new MathllmError("memory-taken", `${profile.model} waits for memory: ${fit.arithmetic}. ${await this.#holders(vram !== null)}`);
  }

  /** A draft of another vocabulary is said before anything is loaded: llama-server would silently serve without it. */
  async #checkDraft(profile: ModelProfile, shape: ModelShape, reference: string, draft: ModelShape): Promise<void> {
    const key = `${profile.mode} ${profile.model} ${reference}`;
    const { dataDir } = this.#config;
    const options = { dataDir, offline: true };
    const verdict =
      this.#drafts.get(key) ?? (await judgeDraft(profile.model, shape, reference, draft, engineFor(profile.mode, shape), options));
    this.#drafts.set(key, verdict);
    if (verdict.valid) return;
    throw new MathllmError(
      "model-invalid",
      `${reference} can't draft for ${profile.model}: ${verdict.reason}. Set DRAFT_MODEL to a smaller model of the same family, or SPECULATIVE_ENABLED=0.`,
    );
  }

  /** null: not known without asking the hub; the engine will see. */
  async #shapeOf(reference: string): Promise<ModelShape | null> {
    const key = await stat(reference).then(
      ({ size, mtimeMs }) => `${size}:${mtimeMs}`,
      () => "",
    );
    const known = this.#shapes.get(reference);
    if (known?.key === key) return known.shape;
    try {
      const shape = await readModelShape(reference, { dataDir: this.#config.dataDir, offline: true });
      this.#shapes.set(reference, { key, shape });
      return shape;
    } catch (error) {
      this.#log.debug({ reference, reason: (error as Error).message }, "the model's shape is not known before it is loaded");
      return null;
    }
  }

  async #gpu(): Promise<Card | null> {
    this.#card ??= (await detectCard(this.#gpuId)).card;
    return this.#card;
  }

  /** Names who has the memory. */
  async #holders(onGpu: boolean): Promise<string> {
    if (!onGpu) return "Other programs of this machine have it.";
    const { processes } = await detectCard(this.#gpuId);
    const names = processes
      .filter(({ pid }) => pid !== process.pid)
      .map(({ pid, name, usedBytes }) => `${name} (process ${pid}${usedBytes === null ? "" : `, ${memoryText(usedBytes)}`})`);
    return names.length === 0 ? "The programs that have it are not known." : `It is held by ${names.join(", ")}.`;
  }
}
