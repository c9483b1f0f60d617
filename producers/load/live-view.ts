import type { LoadTick } from "./progress.ts";

const PLAIN_EVERY_MS = 5000;
const ms = (value: number | null) => (value === null ? "–" : `${value.toFixed(value < 100 ? 1 : 0)} ms`);

/** What a run does, as it goes: one block that is written over on a terminal, a line every five seconds elsewhere. */
export class LiveView {
  readonly #print: (text: string) => void;
  readonly #terminal: boolean;
  #lines = 0;
  #printedAt = Number.NEGATIVE_INFINITY;

  constructor(options: { print: (text: string) => void; terminal: boolean }) {
    this.#print = options.print;
    this.#terminal = options.terminal;
  }

  tick(tick: LoadTick): void {
    if (this.#terminal) {
      this.stop();
      const block = blockOf(tick);
      this.#lines = block.length;
      this.#print(`${block.join("\n")}\n`);
      return;
    }
    const now = performance.now();
    if (now - this.#printedAt < PLAIN_EVERY_MS) return;
    this.#printedAt = now;
    this.#print(`${lineOf(tick)}\n`);
  }

  /** Takes the block off the terminal. */
  stop(): void {
    if (this.#lines > 0) this.#print(`\u001b[${this.#lines}A\u001b[0J`);
    this.#lines = 0;
  }
}

const BAR_CHARS = 30;

function blockOf(tick: LoadTick): string[] {
  const done =
    tick.totalS === null ? (tick.completed + tick.failed) / (tick.planned ?? Number.POSITIVE_INFINITY) : tick.elapsedS / tick.totalS;
  const filled = Math.round(Math.min(Math.max(done, 0), 1) * BAR_CHARS);
  const bar = `${"█".repeat(filled)}${"░".repeat(BAR_CHARS - filled)}`;
  return [
    `${bar}  ${timeOf(tick)}  ${phaseOf(tick)}`,
    `  sent ${tick.sent} (${tick.sentPerS.toFixed(1)}/s)   ended ${tick.completed + tick.failed} (${tick.endedPerS.toFixed(1)}/s)   in flight ${tick.inFlight}`,
    `  E2E p50 ${ms(tick.p50Ms)}   p95 ${ms(tick.p95Ms)}   errors ${tick.failed}`,
    ...(tick.swaps === null ? [] : [`  resident ${tick.residentModel ?? "none"}   swaps ${tick.swaps}`]),
  ];
}

function lineOf(tick: LoadTick): string {
  const server = tick.swaps === null ? "" : `  resident ${tick.residentModel ?? "none"}  swaps ${tick.swaps}`;
  return `${timeOf(tick).padStart(12)}  ${phaseOf(tick)}  ${tick.sentPerS.toFixed(1)} sent/s  in flight ${tick.inFlight}  p50 ${ms(tick.p50Ms)}  p95 ${ms(tick.p95Ms)}  errors ${tick.failed}${server}`;
}

const timeOf = ({ elapsedS, totalS }: LoadTick) => `${elapsedS.toFixed(0)}${totalS === null ? "" : ` of ${totalS.toFixed(0)}`} s`;
/** Past the end what was sent is waited for. */
const phaseOf = ({ phase, elapsedS, totalS }: LoadTick) => (totalS !== null && elapsedS >= totalS ? "waiting for the last answers" : phase);
