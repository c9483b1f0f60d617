import { stat } from "node:fs/promises";
import { publishedSettings, publishModel } from "../../queues/answer-cache.ts";
import type { Config } from "../../queues/config.ts";
import type { Redis } from "../../queues/connection.ts";
import { ROLES, type Role } from "../../queues/names.ts";
import { PROMPT_VERSION } from "../solve/prompts.ts";
import { fingerprintOf } from "./capacity-ladder.ts";
import type { Resident } from "./model-slot.ts";

/**
 * Tells the API which model answers, so that it can look answers up without loading anything. A publication of other settings, another
 * file or other prompts than this worker's is taken back at once: until the model has been loaded nothing comes from the cache.
 */
export async function retractOutdated(redis: Redis, config: Config): Promise<void> {
  for (const role of ROLES) {
    if ((await publishedSettings(redis, role)) !== (await settingsOf(config, role))) await publishModel(redis, role, null);
  }
}

export async function publishLoaded(redis: Redis, config: Config, { role, model }: Resident): Promise<void> {
  const { modelId, digest } = model;
  const { maxTokens } = config.profiles[role];
  await publishModel(redis, role, { modelId, digest, promptVersion: PROMPT_VERSION, maxTokens, settings: await settingsOf(config, role) });
}

async function settingsOf(config: Config, role: Role): Promise<string> {
  const profile = config.profiles[role];
  const file = await stat(profile.model).then(
    ({ size, mtimeMs }) => [size, mtimeMs],
    () => null,
  );
  return JSON.stringify([fingerprintOf(profile), profile.url ?? null, profile.maxTokens, file, PROMPT_VERSION]);
}
