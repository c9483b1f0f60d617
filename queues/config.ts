import path from "node:path";
import { MathllmError } from "./errors.ts";
import { ROLES, type Role } from "./names.ts";
import { DEFAULT_OLLAMA_URL } from "./profile-settings.ts";
import { readSettings, type ValuesOf } from "./setting.ts";
import { SETTINGS } from "./settings.ts";
import { describeUnknown, unknownSettings } from "./unknown-settings.ts";

type Values = ValuesOf<typeof SETTINGS>;
type ProfileValues = Values["profiles"][Role];

/** How one role's model server is run. Token counts are per sequence. */
export interface ModelProfile extends ProfileValues {
  role: Role;
  /**
   * embedded, llamacpp: a path to a GGUF file, or `hf:user/repository:quantisation`; vllm: a Hugging Face name or folder; ollama, remote:
   * the name the server knows it by.
   */
  model: string;
}

/** What queues/settings.ts declares, and what follows from several settings together. */
export interface Config extends Values {
  /** Absolute. */
  telemetryLog: string;
  profiles: Record<Role, ModelProfile>;
}

/**
 * Reads the environment. Throws `invalid-configuration` naming every wrong variable with what was expected and what came;
 * the value itself is left out where it is a secret. An unknown name with a prefix of ours is wrong, too.
 */
export function readConfig(env: Record<string, string | undefined> = process.env): Config {
  const wrong: string[] = [];
  const values = readSettings(SETTINGS, env, wrong);
  wrong.push(...unknownSettings(env).flatMap((each) => (each.isReserved ? [describeUnknown(each)] : [])));
  if (wrong.length > 0) {
    throw new MathllmError("invalid-configuration", `${wrong.join("\n")}\nSee .env.example for every variable with its unit and default.`);
  }
  checkModes(values);
  return {
    ...values,
    telemetryLog: path.resolve(values.telemetryLog ?? path.join(values.dataDir, "telemetry.jsonl")),
    profiles: { student: profileOf("student", values), talker: profileOf("talker", values) },
  };
}

const shippedModel = (file: string) => path.join(import.meta.dirname, "..", "models", file);

function profileOf(role: Role, { profiles }: Values): ModelProfile {
  const given = profiles[role];
  const { mode, model, url, maxNumSeqs, speculative } = given;
  const shippedDraft = role === "student" && model === undefined ? shippedModel("draft.gguf") : undefined;
  return {
    ...given,
    role,
    model: model ?? shippedModel(`${role}.gguf`),
    url: url ?? (mode === "ollama" ? DEFAULT_OLLAMA_URL : undefined),
    // The embedded engine drafts for one request at a time.
    maxNumSeqs: mode === "embedded" && speculative.enabled ? 1 : maxNumSeqs,
    speculative: { enabled: speculative.enabled, draftModel: speculative.draftModel ?? shippedDraft },
  };
}

/** What one setting demands of another. Throws `invalid-configuration`. */
function checkModes({ profiles, talkerCoresident }: Values): void {
  const wrong = ROLES.flatMap((role) => {
    const { mode, model, url, sleepLevel } = profiles[role];
    const names = SETTINGS.profiles[role];
    const lines: string[] = [];
    if (mode !== "embedded" && mode !== "llamacpp" && model === undefined) {
      lines.push(
        `${names.model.env}: expected a model for ${names.mode.env}=${mode}; the shipped ones are GGUF files for embedded and llamacpp; got nothing`,
      );
    }
    if (mode === "remote" && url === undefined)
      lines.push(`${names.url.env}: expected the server's address for ${names.mode.env}=remote; got nothing`);
    if (sleepLevel > 0 && mode !== "vllm") lines.push(`${names.sleepLevel.env}: expected 0: only vllm can sleep; got ${sleepLevel}`);
    return lines;
  });
  const { mode, ngl } = profiles.talker;
  if (talkerCoresident && !(mode === "llamacpp" && ngl === 0)) {
    wrong.push(
      "TALKER_CORESIDENT: expected TALKER_MODE=llamacpp and TALKER_NGL=0 beside it: only a Talker without VRAM may stay up beside the Student",
    );
  }
  if (wrong.length > 0) throw new MathllmError("invalid-configuration", `${wrong.join("\n")}\nSee .env.example.`);
}
