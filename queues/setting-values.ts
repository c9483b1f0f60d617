import { z } from "zod";
import { type KeySeed, parseKeySeeds } from "./api-keys.ts";

/** The kinds of values that settings have, each read from text. */

export const wholeNumber = (least: number, most: number) => z.coerce.number().int().min(least).max(most);
/** 0 takes a free one. */
export const port = wholeNumber(0, 65_535);
export const milliseconds = wholeNumber(1, 86_400_000);
/** Of memory that a model may take. */
export const memoryBytes = wholeNumber(1_048_576, 1e15);
export const depth = wholeNumber(1, 10_000_000);
/** The address of a server. A password in it would stand in reports and logs. */
export const serverUrl = z.url({ protocol: /^https?$/ }).refine((text) => {
  const url = URL.parse(text);
  return url === null || (url.username === "" && url.password === "");
}, "expected an address without user and password");
export const flag = z
  .enum(["0", "1", "true", "false"], { error: "expected 0, 1, true or false" })
  .transform((value) => value === "1" || value === "true");

export const keySeeds = z.string().transform((text, context): KeySeed[] => {
  const seeds = parseKeySeeds(text);
  if (seeds !== undefined) return seeds;
  context.addIssue({
    code: "custom",
    message:
      "expected name:role:key with commas between, each name and key once: a name of letters, digits and . _ @ -, the role submit, read, submit+read or admin, a key of 8 to 200 visible characters without , and :",
  });
  return z.NEVER;
});
export const origins = z.string().transform((text, context): string[] => {
  const list = text.split(",").map((each) => each.trim());
  if (list.every((each) => /^https?:\/\//.test(each) && URL.canParse(each) && new URL(each).origin === each)) return list;
  context.addIssue({ code: "custom", message: "expected origins such as https://app.example.org with commas between, without a path" });
  return z.NEVER;
});

export const variableNames = z.string().transform((text, context): string[] => {
  const names = text.split(",").map((each) => each.trim());
  if (names.every((name) => /^[A-Za-z_]\w*$/.test(name))) return names;
  context.addIssue({ code: "custom", message: "expected names of environment variables with commas between" });
  return z.NEVER;
});

const WEBHOOK_SECRET_PATTERN = /^whsec_([A-Za-z0-9+/]{32,88}={0,2})$/;
export const webhookSecrets = z.string().transform((text, context): Buffer[] => {
  const secrets = text.split(/[ ,]+/).map((each) => Buffer.from(WEBHOOK_SECRET_PATTERN.exec(each)?.[1] ?? "", "base64"));
  if (secrets.every(({ length }) => length >= 24 && length <= 64)) return secrets;
  context.addIssue({
    code: "custom",
    message: "expected whsec_ and the base64 of 24 to 64 bytes; a second one, while it is changed, after a comma",
  });
  return z.NEVER;
});
