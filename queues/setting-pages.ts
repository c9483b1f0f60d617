import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import type { Setting } from "./setting.ts";
import { flag } from "./setting-values.ts";
import { SETTING_GROUPS } from "./settings.ts";

/** The two pages for people that the settings' table becomes: `npm run settings` writes both. */

const ROOT = path.join(import.meta.dirname, "..");
const LINE_WIDTH = 140;
const RULE_WIDTH = 121;

export const SETTING_PAGES: Record<string, () => string> = { ".env.example": envExample, "docs/settings.md": settingsPage };

/** Each setting with its default, in comments. What was said of one is not said again of the next. */
function envExample(): string {
  const said = new Set<string>();
  const linesOf = (setting: Setting) => {
    const about = setting.unit === undefined ? setting.about : `${setting.about} Unit: ${setting.unit}.`;
    const assignment = `# ${setting.env}=${setting.example ?? setting.default ?? ""}`;
    if (said.has(about)) return [assignment];
    said.add(about);
    return [...wrapped(about), assignment];
  };
  const groups = SETTING_GROUPS.map(({ title, settings }) => [`# --- ${title} `.padEnd(RULE_WIDTH, "-"), ...settings.flatMap(linesOf)]);
  const head = [
    ...wrapped("Every setting of mathllm with its default. Copy to .env (read from the current folder) and uncomment what you change."),
    "# An empty value means the default. Generated from queues/settings.ts by npm run settings.",
  ];
  return `${[head, ...groups].map((lines) => lines.join("\n")).join("\n\n")}\n`;
}

function wrapped(text: string): string[] {
  const lines: string[] = [];
  let line = "#";
  for (const word of text.split(" ")) {
    if (line.length + 1 + word.length > LINE_WIDTH) {
      lines.push(line);
      line = "#";
    }
    line += ` ${word}`;
  }
  return [...lines, line];
}

function settingsPage(): string {
  const first = new Map<string, Setting>();
  const rowOf = (setting: Setting) => {
    const same = first.get(setting.about);
    if (same === undefined) first.set(setting.about, setting);
    const about = same === undefined ? inTable(setting.about) : `As \`${same.env}\`.`;
    const cells = [`\`${setting.env}\``, setting.default === undefined ? "" : `\`${setting.default}\``, valuesOf(setting), about];
    return `| ${cells.join(" | ")} |`;
  };
  const groups = SETTING_GROUPS.map(
    ({ title, settings }) =>
      `## ${title}\n\n| setting | default | values | what it does |\n|---|---|---|---|\n${settings.map(rowOf).join("\n")}\n`,
  );
  return `# Settings

Every setting is an environment variable; a \`.env\` in the current folder is read, and what is set already stays.
An empty value means the default. An unknown name that begins with \`STUDENT_\` or \`TALKER_\`, and one in \`.env\` that
looks like a setting, is refused. \`mathllm doctor\` shows what is set.

This page and \`.env.example\` are generated from [queues/settings.ts](../queues/settings.ts) by \`npm run settings\`.

${groups.join("\n")}`;
}

/** What a setting takes, by its schema. */
function valuesOf({ schema, unit, secret }: Setting): string {
  const { enum: options, minimum, maximum, format } = z.toJSONSchema(schema, { io: "input" });
  let values = "text";
  if (schema === flag) values = "`0`, `1`";
  else if (options !== undefined) values = options.map((option) => `\`${option}\``).join(", ");
  else if (minimum !== undefined && maximum !== undefined) values = `${minimum} to ${maximum}${unit === undefined ? "" : ` ${unit}`}`;
  else if (format === "uri") values = "address";
  return secret ? `${values}, secret` : values;
}

const inTable = (text: string) => text.replace(/[*|<$]/g, "\\$&");

if (import.meta.main) {
  for (const [file, page] of Object.entries(SETTING_PAGES)) {
    mkdirSync(path.dirname(path.join(ROOT, file)), { recursive: true });
    writeFileSync(path.join(ROOT, file), page());
  }
}
