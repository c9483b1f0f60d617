import { randomBytes } from "node:crypto";
import type { ModelProfile } from "../../queues/config.ts";

const KEY_BYTES = 32;

/** The key that a server we start asks for: the owner's, or a new random one, which nobody else on the machine knows. */
export function modelServerKey({ apiKey }: Pick<ModelProfile, "apiKey">): string {
  return apiKey ?? randomBytes(KEY_BYTES).toString("hex");
}

/** The header that carries a model server's key; none without one. */
export function bearer(apiKey: string | undefined): { authorization?: string } {
  return apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
}
