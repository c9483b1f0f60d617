import Table from "cli-table3";
import type { LeastMeans } from "./least-means.ts";
import type { Optimum } from "./optimum.ts";
import type { Setting, SettingResult } from "./optimum-table.ts";
import { type PerModel, perModel } from "./synthetic-traffic.ts";

const SETTING_HEAD = ["slots", "load", "mix", "service, s", "swap, s", "exponent"];

export interface SettingsSummary {
  policy: string;
  /** Of each seed. */
  jobs: number;
  seeds: number;
  meanRatio: number | null;
  maxRatio: number | null;
}

/** Settings for people: one line each, the ratio that counts last. */
export function settingsReport({ policy, jobs, seeds, meanRatio, maxRatio }: SettingsSummary, results: SettingResult[]): string {
  const table = tableOf(["wait, s", "to the end, s", "longest wait, s", "swaps / 100", "ratio"]);
  for (const { setting, meanWaitMs, meanEndToEndMs, maxWaitMs, swapsPer100Jobs, ratio, endToEndRatio } of results) {
    const counts = endToEndRatio === null ? "" : " to the end";
    const waits = [meanWaitMs, meanEndToEndMs, maxWaitMs].map(seconds);
    table.push([...settingCells(setting), ...waits, swapsPer100Jobs.toFixed(1), `${ratioText(ratio)}${counts}`]);
  }
  return (
    `${policy}, ${seeds} x ${jobs} jobs a setting: mean ${ratioText(meanRatio)} times the least possible, at most ${ratioText(maxRatio)} times\n` +
    `${table.toString()}\n`
  );
}

/** The least possible means for people, each with its bounds and how it was found. */
export function leastMeansReport(results: LeastMeans[]): string {
  const table = tableOf(["least wait, s", "least to the end, s", "queues up to", "sweeps", "took, s", "to the file's"]);
  for (const { setting, meanEndToEndMs, wait, endToEnd, waitRatio, endToEndRatio } of results) {
    const total = (value: (optimum: Optimum) => number) => value(wait) + (endToEnd === null ? 0 : value(endToEnd));
    table.push([
      ...settingCells(setting),
      withBounds(wait),
      endToEnd === null ? seconds(meanEndToEndMs) : withBounds(endToEnd),
      `${wait.capacity.student} / ${wait.capacity.talker}`,
      total((optimum) => optimum.sweeps),
      seconds(total((optimum) => optimum.tookMs)),
      `${ratioText(waitRatio)}${endToEndRatio === null ? "" : `, ${ratioText(endToEndRatio)} to the end`}`,
    ]);
  }
  const solved = results.flatMap(({ wait, endToEnd }) => (endToEnd === null ? [wait] : [wait, endToEnd]));
  const changed = Math.max(...solved.map(({ enlarged }) => enlarged ?? 0));
  const cut = solved.filter((optimum) => optimum.cut).length;
  return (
    `${table.toString()}\nin brackets: bounds of the system with queues up to that; the last enlargement of the queues changed the means by ` +
    `${(100 * changed).toFixed(2)} % at most${cut === 0 ? "" : `; ${cut} not settled within the time limit`}\n`
  );
}

function tableOf(head: string[]): Table.Table {
  return new Table({ head: [...SETTING_HEAD, ...head], style: { head: [], border: [] } });
}

function settingCells({ slots, load, mix, serviceMs, swapMs, batchExponent }: Setting): (string | number)[] {
  return [slots, load, mix, both(serviceMs, 1000), both(swapMs, 1000), both(batchExponent, 1)];
}

function both(value: PerModel, unit: number): string {
  const { student, talker } = perModel(value);
  return student === talker ? `${student / unit}` : `${student / unit} / ${talker / unit}`;
}

function withBounds({ meanMs, lowMs, highMs }: Optimum): string {
  return `${seconds(meanMs)} (${seconds(lowMs)}–${seconds(highMs)})`;
}

function seconds(ms: number): string {
  return (ms / 1000).toFixed(1);
}

function ratioText(ratio: number | null): string {
  return ratio?.toFixed(3) ?? "unknown";
}
