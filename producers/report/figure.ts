import type { Unit } from "./schema.ts";

/**
 * The one place where a number becomes text, for the Markdown, the page and the texts of the rules. A digit group is a comma, the
 * decimal mark a point, a minus U+2212, so that a text can be read back.
 */

const SYMBOLS: Record<Unit, string> = {
  ms: "ms",
  share: "%",
  perS: "/s",
  tokensPerS: "tokens/s",
  tokens: "tokens",
  bytes: "MiB",
  count: "",
  ratio: "×",
  celsius: "°C",
  watts: "W",
};

/** Bytes are written as MiB, shares as per cent. */
const SCALES: Partial<Record<Unit, number>> = { share: 100, bytes: 1 / 1_048_576 };

export const MISSING = "–";

/** Such as `1,234 ms`, `97.5 %`, `20.3 /s`; `–` for what was not measured. */
export function figure(value: number | null, unit: Unit): string {
  if (value === null) return MISSING;
  const symbol = SYMBOLS[unit];
  return symbol === "" ? bareFigure(value, unit) : `${bareFigure(value, unit)} ${symbol}`;
}

/** The same without its unit, for a column whose heading names it. */
export function bareFigure(value: number | null, unit: Unit): string {
  return value === null ? MISSING : decimal(value * (SCALES[unit] ?? 1), unit === "share" ? 1 : undefined);
}

/** A signed change in per cent, such as `−4.5 %`. */
export function changeFigure(change: number | null): string {
  if (change === null) return MISSING;
  return `${change > 0 ? "+" : ""}${figure(change, "share")}`;
}

/** Four significant digits, but never fewer than all those before the point. */
function decimal(value: number, digits: number | undefined): string {
  const size = Math.abs(value);
  const fitting = Number.isInteger(value) || size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : size >= 0.01 ? 3 : 5;
  const text = size.toLocaleString("en-US", { maximumFractionDigits: digits ?? fitting, minimumFractionDigits: digits ?? 0 });
  return value < 0 && /[1-9]/.test(text) ? `−${text}` : text;
}

/** A day and a time of day, in UTC. */
export function timeText(epochMs: number): string {
  return `${new Date(epochMs).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** Such as `45 s`, `14 min 20 s`, `1 h 5 min`. */
export function durationText(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
