import type { GpuEventKind } from "../queues/gpu-events.ts";
import { GPU_EVENT_KINDS } from "../queues/gpu-events.ts";
import { type GpuSample, gpuSampleSchema } from "../queues/gpu-samples.ts";
import { type GpuView, gpuViewSchema } from "../queues/gpu-view.ts";
import { ROLES } from "../queues/names.ts";
import { gpuReport } from "./operator.ts";
import type { ApiClient } from "./submit.ts";

const SHOWN_HAPPENINGS = 12;

interface Happening {
  at: number;
  text: string;
}

/** What `/gpu/events` has told so far. */
export class TopView {
  view: GpuView | null = null;
  samples = new Map<string, GpuSample>();
  happenings: Happening[] = [];

  /** Whether there is something new to be seen. */
  hear(event: string, data: string): boolean {
    const value: unknown = JSON.parse(data);
    if (event === "state") this.view = gpuViewSchema.parse(value);
    else if (event === "sample") {
      const sample = gpuSampleSchema.parse(value);
      this.samples.set(sample.gpuId, sample);
    } else if (GPU_EVENT_KINDS.includes(event as GpuEventKind)) {
      this.happenings.unshift(happeningOf(event, value as Record<string, unknown>));
      this.happenings.length = Math.min(this.happenings.length, SHOWN_HAPPENINGS);
    } else return false;
    return true;
  }

  /** A terminal's whole screen: `rows` lines of at most `columns` characters. */
  screen(title: string, { rows, columns }: { rows: number; columns: number }, now: number): string[] {
    if (this.view === null) return [title, "Waiting for the first state …"];
    const lines = [
      `${title}  ${clock(now)}  q quits`,
      "",
      ...gpuReport(this.view).trimEnd().split("\n"),
      ...[...this.samples.values()].map(measured),
      "",
      ...this.happenings.map(({ at, text }) => `${clock(at)}  ${text}`),
    ];
    return lines.slice(0, rows).map((line) => [...line].slice(0, columns).join(""));
  }

  /** The state in one line, for a log. */
  line(now: number): string {
    const { gpus, queues } = this.view!;
    const states = gpus.map(
      ({ gpuId, residentModel, phase, running }) => `${gpuId} ${residentModel ?? "no model"}, ${phase}, ${running} running`,
    );
    const depths = ROLES.map((role) => `${role} ${queues[role].depth} waiting`);
    return `${clock(now)}  ${[states.join("; ") || "no GPU is held by a worker", ...depths].join(", ")}`;
  }
}

const clock = (ms: number) => new Date(ms).toTimeString().slice(0, 8);

function measured({ tokensPerSecond, cpuPercent, gpuPercent, vramUsedBytes, vramTotalBytes }: GpuSample): string {
  const parts = [
    tokensPerSecond === null ? null : `${tokensPerSecond.toFixed(0)} tokens/s`,
    gpuPercent === null ? null : `GPU ${gpuPercent.toFixed(0)} %`,
    cpuPercent === null ? null : `CPU ${cpuPercent.toFixed(0)} %`,
    vramUsedBytes === null || vramTotalBytes === null ? null : `VRAM ${((100 * vramUsedBytes) / vramTotalBytes).toFixed(0)} %`,
  ];
  return `  ${parts.filter((part) => part !== null).join("  ")}`;
}

function happeningOf(kind: string, record: Record<string, unknown>): Happening {
  const at = Number(record.ts ?? Date.now());
  if (kind === "swap") {
    return {
      at,
      text: `swap       ${record.from ?? "nothing"} → ${record.to} in ${(Number(record.totalMs) / 1000).toFixed(1)} s: ${record.reason}`,
    };
  }
  const words = [record.action ?? record.state ?? record.step ?? record.done, record.role, record.reason].filter((word) => word != null);
  return { at, text: `${kind.padEnd(9)}  ${words.join(", ")}` };
}

export interface TopTerminal {
  size: () => { rows: number; columns: number };
  write: (text: string) => void;
}

/** At most so often the screen is drawn anew. */
const REDRAW_MS = 200;
const ENTER = "\x1b[?1049h\x1b[?25l";
const LEAVE = "\x1b[?25h\x1b[?1049l";

/**
 * Follows the API until `signal` aborts. With a `terminal` the screen is redrawn as it changes; else `print` gets a line for each change, and
 * with `json` each state as one object.
 */
export async function runTop(
  api: ApiClient,
  { terminal, print, json, signal }: { terminal?: TopTerminal; print: (text: string) => void; json: boolean; signal: AbortSignal },
): Promise<void> {
  const top = new TopView();
  let drawing: NodeJS.Timeout | undefined;
  const draw = () => {
    drawing = undefined;
    const lines = top.screen(`mathllm  ${api.baseUrl}`, terminal!.size(), Date.now());
    terminal!.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join("\r\n")}\x1b[J`);
  };
  let last = "";
  terminal?.write(ENTER);
  try {
    for await (const { event, data } of api.follow("/gpu/events?samples=true", signal)) {
      if (!top.hear(event, data)) continue;
      if (terminal !== undefined) drawing ??= setTimeout(draw, REDRAW_MS);
      else if (json) {
        if (event === "state") print(`${data}\n`);
      } else if (event === "state") {
        const line = top.line(Date.now());
        if (line.slice(8) !== last) print(`${line}\n`);
        last = line.slice(8);
      } else if (event !== "sample") {
        print(`${clock(top.happenings[0]!.at)}  ${top.happenings[0]!.text}\n`);
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    clearTimeout(drawing);
    terminal?.write(LEAVE);
  }
}
