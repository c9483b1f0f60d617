/** Environment variables of ours that a phase sets, by name. */
export type Settings = Record<string, string>;

/** What differs between two, each difference once, in the order of the names. */
export function changedSettings(before: Settings, after: Settings): { name: string; before: string | null; after: string | null }[] {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
  return names
    .filter((name) => before[name] !== after[name])
    .map((name) => ({ name, before: before[name] ?? null, after: after[name] ?? null }));
}

/** The text of a `.env` file. A value with a character that dotenv files read otherwise is quoted. */
export function envText(settings: Settings, heading: string): string {
  const lines = Object.entries(settings)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `${name}=${/^[\w./:@,+-]*$/.test(value) ? value : JSON.stringify(value)}`);
  return `${heading
    .split("\n")
    .map((line) => `# ${line}`)
    .join("\n")}\n${lines.join("\n")}\n`;
}
