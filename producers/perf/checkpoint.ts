import { createHash } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import path from "node:path";
import { MathllmError } from "../../queues/errors.ts";
import { replaceFile } from "../report/report.ts";
import type { Evidence, PhaseId } from "../report/schema.ts";
import type { PhaseOutcome } from "./phase.ts";
import { changedSettings, type Settings } from "./settings.ts";

/** What has to be the same for a run to be gone on with. */
export interface RunIdentity {
  id: string;
  startedAt: number;
  mode: Evidence["run"]["mode"];
  seed: number;
  /** Settings, versions and hardware that can change a figure. */
  conditions: Settings;
  /** Kept from visit to visit. */
  resumed: number;
  commands: string[];
  phasesAsked: PhaseId[];
}

const RUN_FILE = "run.json";
export const FINAL_FOLDER = "final";
const COMPARISON_FILE = path.join(FINAL_FOLDER, "comparison.json");

export function fingerprintOf({ mode, seed, conditions }: Pick<RunIdentity, "mode" | "seed" | "conditions">): string {
  const sorted = Object.entries(conditions).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash("sha256")
    .update(JSON.stringify([mode, seed, sorted]))
    .digest("hex")
    .slice(0, 16);
}

/**
 * The state of a performance run in its folder: run.json tells what it is, phase-X/outcome.json what a phase found. A phase that was
 * interrupted has no outcome and is measured again.
 */
export class Checkpoint {
  readonly #outDir: string;

  constructor(outDir: string) {
    this.#outDir = outDir;
  }

  /**
   * The identity of the run in this folder, now with `now`'s command and phases; `now` itself in a new folder.
   * @throws MathllmError `invalid-configuration`: the folder holds a run of other settings, or something else.
   */
  async open(now: RunIdentity): Promise<RunIdentity> {
    await mkdir(this.#outDir, { recursive: true });
    const earlier = await this.#read<RunIdentity>(RUN_FILE);
    if (earlier !== null && fingerprintOf(earlier) !== fingerprintOf(now)) {
      const differing = changedSettings(
        { ...earlier.conditions, mode: earlier.mode, seed: String(earlier.seed) },
        { ...now.conditions, mode: now.mode, seed: String(now.seed) },
      ).map(({ name, before, after }) => `${name}: ${before ?? "not set"} then, ${after ?? "not set"} now`);
      throw new MathllmError(
        "invalid-configuration",
        `${this.#outDir} holds a run that differs in\n${differing.join("\n")}\nName another folder with -o, or use the same settings to go on.`,
      );
    }
    const identity =
      earlier === null
        ? now
        : {
            ...earlier,
            resumed: earlier.resumed + 1,
            commands: [...new Set([...earlier.commands, ...now.commands])],
            phasesAsked: [...new Set([...earlier.phasesAsked, ...now.phasesAsked])].sort(),
          };
    await this.#write(RUN_FILE, identity);
    return identity;
  }

  outcome(id: PhaseId): Promise<PhaseOutcome | null> {
    return this.#read<PhaseOutcome>(path.join(phaseFolder(id), "outcome.json"));
  }

  async keep(outcome: PhaseOutcome): Promise<void> {
    await mkdir(path.join(this.#outDir, phaseFolder(outcome.phase.id)), { recursive: true });
    await this.#write(path.join(phaseFolder(outcome.phase.id), "outcome.json"), outcome);
  }

  /** Before and after, if the final configuration was measured with these settings. */
  async comparison(chosen: Settings): Promise<Evidence["beforeAfter"] | null> {
    const kept = await this.#read<{ chosen: Settings; beforeAfter: Evidence["beforeAfter"] }>(COMPARISON_FILE);
    return kept !== null && changedSettings(kept.chosen, chosen).length === 0 ? kept.beforeAfter : null;
  }

  async keepComparison(chosen: Settings, beforeAfter: Evidence["beforeAfter"]): Promise<void> {
    await this.#write(COMPARISON_FILE, { chosen, beforeAfter });
  }

  async #read<T>(name: string): Promise<T | null> {
    const file = path.join(this.#outDir, name);
    let text: string;
    try {
      text = await readFile(file, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
      throw error;
    }
    try {
      return JSON.parse(text) as T;
    } catch {
      throw new MathllmError(
        "invalid-configuration",
        `Expected JSON in ${file}; it is damaged. Name another folder with -o, or delete that file.`,
      );
    }
  }

  async #write(name: string, value: unknown): Promise<void> {
    await replaceFile(path.join(this.#outDir, name), `${JSON.stringify(value, null, 2)}\n`);
  }
}

export const phaseFolder = (id: PhaseId) => `phase-${id}`;
