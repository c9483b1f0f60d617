import { expect } from "vitest";
import { SECRET_SETTINGS } from "../queues/settings.ts";

const WEBHOOK_CANARY = "canaryWEBHOOKSECRETcanaryWEBHOOKSECRETcanary";

/** For each secret setting a text that must come out nowhere. */
export const CANARIES: Record<string, string> = {
  ...Object.fromEntries(SECRET_SETTINGS.map((name) => [name, `canary-${name}-0123456789`])),
  WEBHOOK_SECRET: WEBHOOK_CANARY,
};

/** An environment in which every secret setting holds its canary, in the form that the setting has. */
export const SECRET_ENV: Record<string, string> = {
  ...CANARIES,
  API_KEYS: `ops:admin:${CANARIES.API_KEYS}`,
  REDIS_URL: `redis://:${CANARIES.REDIS_URL}@127.0.0.1:1`,
  WEBHOOK_SECRET: `whsec_${WEBHOOK_CANARY}`,
};

/** The settings whose secrets stand in a text, in clear, or as bytes in base64, hexadecimal or JSON. */
export function canariesIn(text: string): string[] {
  expect(text.length).toBeGreaterThan(0);
  const webhookBytes = Buffer.from(WEBHOOK_CANARY, "base64");
  const forms = (name: string, canary: string) =>
    name === "WEBHOOK_SECRET" ? [canary, webhookBytes.toString("hex"), webhookBytes.join(",")] : [canary];
  return Object.entries(CANARIES)
    .filter(([name, canary]) => forms(name, canary).some((form) => text.includes(form)))
    .map(([name]) => name);
}
