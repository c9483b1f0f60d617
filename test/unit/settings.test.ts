import { readFileSync } from "node:fs";
import path from "node:path";
import { expect, test } from "vitest";
import { SETTING_PAGES } from "../../queues/setting-pages.ts";
import { SETTING_NAMES } from "../../queues/settings.ts";

const root = path.join(import.meta.dirname, "../..");

test.each(Object.keys(SETTING_PAGES))("%s is what the table of settings says (npm run settings writes it)", (file) => {
  expect(readFileSync(path.join(root, file), "utf8")).toBe(SETTING_PAGES[file]!());
});

test("no name is declared twice", () => {
  expect(new Set(SETTING_NAMES).size).toBe(SETTING_NAMES.length);
});
