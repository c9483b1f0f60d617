import { byId, h, setText, svg } from "./dom.js";
import { bytes, clock, count, duration, percent } from "./format.js";
import { segmentsOf, swapShare } from "./segments.js";
import { NAMES } from "./words.js";

/** @import { Role } from "../../../queues/names.ts" */
/** @import { KeptSample } from "../../../queues/gpu-samples.ts" */
/** @import { GpuHistory } from "./history.js" */
/** @import { Segment } from "./segments.js" */

/** @typedef {{ ts: number, value: number | null, model?: Role | null }} Reading */
/** @typedef {{ className: string, readings: Reading[], area: boolean }} Series */
/** @typedef {{ title: string, heightPx: number, format: (value: number) => string, max: number | null, series: Series[] }} Chart */
/** @typedef {{ gpuId: string, samples: KeptSample[], segments: Segment[] }} GpuTrack */

const ROLES = /** @type {Role[]} */ (["student", "talker"]);
const ROW_PX = 24;
const ROW_GAP_PX = 6;
const PANEL_GAP_PX = 36;
const AXIS_PX = 22;
const RIGHT_PX = 10;
/** A bar is seen however short it is. */
const MIN_BAR_PX = 1.5;
const GAP_MS = 4000;
const MIN_SPAN_MS = 60_000;
const STEP_MS = 5000;
const PAGE_MS = 60_000;

/** What a bar's state is called; its pattern has the same name. */
const STATES = /** @type {Record<string, string>} */ ({
  ready: "serving",
  draining: "draining",
  starting: "loading",
  warming: "loading",
  stopping: "stopping",
  failed: "failed",
});

/** The last minutes of every GPU, over what waits, on one time axis. A moment can be looked at by pointer and by keyboard. */
export class Timeline {
  #plot = byId("timeline-plot");
  #readout = byId("timeline-readout");
  /** @type {SVGElement | null} */
  #cursor = null;
  /** The moment that is looked at; null: now. @type {number | null} */
  #at = null;
  /** @type {GpuTrack[]} */
  #tracks = [];
  #from = 0;
  #to = 1;
  #leftPx = 76;
  /** @type {(() => void) | null} */
  #redraw = null;

  constructor() {
    new ResizeObserver(() => this.#redraw?.()).observe(this.#plot);
    this.#plot.addEventListener("pointermove", (event) => {
      const x = event.clientX - this.#plot.getBoundingClientRect().left;
      this.#look(this.#from + ((x - this.#leftPx) / this.#widthPx()) * (this.#to - this.#from));
    });
    this.#plot.addEventListener("pointerleave", () => this.#look(null));
    this.#plot.addEventListener("blur", () => this.#look(null));
    this.#plot.addEventListener("keydown", (event) => {
      const at = this.#at ?? this.#to;
      const moves = /** @type {Record<string, number | null>} */ ({
        ArrowLeft: at - STEP_MS,
        ArrowDown: at - STEP_MS,
        ArrowRight: at + STEP_MS,
        ArrowUp: at + STEP_MS,
        PageDown: at - PAGE_MS,
        PageUp: at + PAGE_MS,
        Home: this.#from,
        End: null,
        Escape: null,
      });
      const to = moves[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.#look(to);
    });
  }

  /**
   * @param {GpuHistory} history
   * @param {string[]} gpuIds those to show even without a sample
   * @param {number} now
   * @param {number} spanMs
   */
  draw(history, gpuIds, now, spanMs) {
    this.#redraw = () => this.draw(history, gpuIds, now, spanMs);
    const samples = history.samplesSince(now - spanMs - GAP_MS);
    // As long as less is known the axis begins where that begins.
    this.#from = Math.max(now - spanMs, Math.min(samples[0]?.ts ?? 0, now - MIN_SPAN_MS));
    this.#to = now;
    const ids = [...new Set([...gpuIds, ...samples.map(({ gpuId }) => gpuId)])];
    this.#tracks = ids.map((gpuId) => {
      const own = samples.filter((sample) => sample.gpuId === gpuId);
      const happenings = history.happenings.filter((each) => each.gpuId === gpuId && each.ts >= this.#from - GAP_MS);
      return { gpuId, samples: own, segments: segmentsOf(own, happenings) };
    });
    this.#paint();
    this.#tell();
  }

  #widthPx() {
    return Math.max(this.#plot.clientWidth - this.#leftPx - RIGHT_PX, 50);
  }

  /** @param {number} ts */
  #x(ts) {
    const share = Math.min(Math.max((ts - this.#from) / (this.#to - this.#from), 0), 1);
    return this.#leftPx + share * this.#widthPx();
  }

  #paint() {
    if (this.#tracks.length === 0) {
      this.#plot.replaceChildren(
        h("p", { class: "empty" }, "No worker was seen in this time. Its work is drawn here as soon as there is one."),
      );
      return;
    }
    this.#leftPx = this.#plot.clientWidth < 560 ? 62 : 76;
    const width = this.#leftPx + this.#widthPx() + RIGHT_PX;
    /** @type {SVGElement[]} */
    const parts = [];
    let y = 0;
    for (const track of this.#tracks) {
      if (this.#tracks.length > 1) {
        parts.push(svg("text", { class: "panel-title", x: 0, y: y + 12 }, track.gpuId));
        y += 20;
      }
      for (const role of ROLES) {
        parts.push(svg("text", { class: `row-name row-${role}`, x: 0, y: y + ROW_PX / 2 + 4.5 }, NAMES[role]));
        parts.push(svg("rect", { class: "track", x: this.#leftPx, y, width: this.#widthPx(), height: ROW_PX, rx: 4 }));
        parts.push(...track.segments.filter((each) => each.role === role).flatMap((each) => this.#bar(each, y)));
        y += ROW_PX + ROW_GAP_PX;
      }
      y += PANEL_GAP_PX;
    }
    for (const chart of this.#charts()) {
      parts.push(...this.#chart(chart, y));
      y += chart.heightPx + PANEL_GAP_PX;
    }
    const bottom = y - PANEL_GAP_PX;
    this.#cursor = svg("line", { class: "cursor", y1: 0, y2: bottom, visibility: "hidden" });
    const height = bottom + AXIS_PX;
    this.#plot.replaceChildren(
      svg(
        "svg",
        { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
        patterns(),
        ...this.#ticks(bottom),
        ...parts,
        this.#cursor,
      ),
    );
  }

  /**
   * @param {Segment} segment
   * @param {number} y
   */
  #bar({ role, state, from, to }, y) {
    if (to < this.#from) return [];
    const name = STATES[state];
    const x = this.#x(from);
    const width = Math.max(this.#x(to) - x, MIN_BAR_PX);
    const place = { x, y, width, height: ROW_PX, rx: Math.min(3, width / 2) };
    const base = svg("rect", { class: `bar bar-${role} bar-${name}`, ...place });
    return name === "serving" || name === "failed" ? [base] : [base, svg("rect", { fill: `url(#${name}-${role})`, ...place })];
  }

  /** @returns {Chart[]} */
  #charts() {
    const [first] = this.#tracks;
    const depths = ROLES.map((role) => ({
      className: role,
      area: role === "student",
      readings: newestOf(this.#tracks).map(({ ts, depths }) => ({ ts, value: depths[role] })),
    }));
    const tokens = this.#tracks.map(({ samples }) => ({
      className: "by-model",
      area: true,
      readings: samples.map(({ ts, tokensPerSecond, serverModel }) => ({ ts, value: tokensPerSecond, model: serverModel })),
    }));
    const memory = this.#tracks.map(({ gpuId, samples }) => ({
      title: `${hasVram(samples) ? "VRAM in use" : "Model server's memory"}${this.#tracks.length > 1 ? ` · ${gpuId}` : ""}`,
      heightPx: 56,
      format: bytes,
      max: hasVram(samples) ? (samples.at(-1)?.vramTotalBytes ?? null) : null,
      series: [{ className: "by-model", area: true, readings: samples.map(memoryReading) }],
    }));
    return first === undefined
      ? []
      : [
          { title: "Waiting jobs (the Talker’s dashed)", heightPx: 96, format: count, max: null, series: depths },
          { title: "Tokens a second", heightPx: 56, format: count, max: null, series: tokens },
          ...memory,
        ];
  }

  /**
   * @param {Chart} chart
   * @param {number} top
   */
  #chart({ title, heightPx, format, max, series }, top) {
    const values = series.flatMap(({ readings }) => readings.map(({ value }) => value ?? 0));
    const highest = max ?? ceiling(Math.max(...values, 0));
    const y = (/** @type {number} */ value) => top + heightPx - Math.min(value / highest, 1) * heightPx;
    /** @type {SVGElement[]} */
    const parts = [
      svg("line", { class: "grid", x1: this.#leftPx, x2: this.#leftPx + this.#widthPx(), y1: top, y2: top }),
      svg("line", { class: "base", x1: this.#leftPx, x2: this.#leftPx + this.#widthPx(), y1: top + heightPx, y2: top + heightPx }),
      svg("text", { class: "tick", x: this.#leftPx - 8, y: top + 4, "text-anchor": "end" }, format(highest)),
      svg("text", { class: "tick", x: this.#leftPx - 8, y: top + heightPx, "text-anchor": "end" }, "0"),
      svg("text", { class: "panel-title", x: this.#leftPx, y: top - 7 }, title),
    ];
    for (const { className, readings, area } of series) {
      for (const run of runsOf(readings)) {
        const line = run.map(({ ts, value }, i) => {
          const [px, py] = [this.#x(ts).toFixed(1), y(value ?? 0).toFixed(1)];
          return i === 0 ? `M${px} ${py}` : `H${px}V${py}`;
        });
        const style = className === "by-model" ? (run[0]?.model ?? "nobody") : className;
        const [from, to] = [this.#x(/** @type {Reading} */ (run[0]).ts), this.#x(/** @type {Reading} */ (run.at(-1)).ts)];
        const base = top + heightPx;
        if (area) parts.push(svg("path", { class: `area area-${style}`, d: `${line.join("")}V${base}H${from.toFixed(1)}Z` }));
        if (to >= from) parts.push(svg("path", { class: `line line-${style}${area ? "" : " is-dashed"}`, d: line.join("") }));
      }
    }
    return parts;
  }

  /** @param {number} bottom */
  #ticks(bottom) {
    const most = Math.max(Math.floor(this.#widthPx() / 90), 2);
    const stepMs = [15_000, 30_000, 60_000, 120_000, 300_000].find((step) => (this.#to - this.#from) / step <= most) ?? 600_000;
    const ticks = [];
    for (let ts = Math.ceil(this.#from / stepMs) * stepMs; ts <= this.#to; ts += stepMs) {
      const x = this.#x(ts);
      ticks.push(svg("line", { class: "grid", x1: x, x2: x, y1: 0, y2: bottom }));
      const text = clock(ts).slice(0, stepMs < 60_000 ? 8 : 5);
      if (x > this.#leftPx + 16 && x < this.#leftPx + this.#widthPx() - 16) {
        ticks.push(svg("text", { class: "tick", x, y: bottom + 16, "text-anchor": "middle" }, text));
      }
    }
    return ticks;
  }

  /** @param {number | null} at */
  #look(at) {
    this.#at = at === null || at >= this.#to ? null : Math.max(at, this.#from);
    this.#tell();
  }

  #tell() {
    const at = this.#at;
    if (at !== null) this.#cursor?.setAttribute("transform", `translate(${this.#x(at)} 0)`);
    this.#cursor?.setAttribute("visibility", at === null ? "hidden" : "visible");
    const text = at === null ? this.#summary() : this.#moment(at);
    setText(this.#readout, text);
    const spanS = Math.round((this.#to - this.#from) / 1000);
    this.#plot.setAttribute("aria-valuemin", String(-spanS));
    this.#plot.setAttribute("aria-valuenow", String(at === null ? 0 : Math.round((at - this.#to) / 1000)));
    this.#plot.setAttribute("aria-valuetext", text);
  }

  /** @param {number} at */
  #moment(at) {
    const states = this.#tracks.map(({ gpuId, samples, segments }) => {
      const up = segments.filter(({ from, to }) => from <= at && to >= at);
      const [last] = samples.filter(({ ts }) => Math.abs(ts - at) <= GAP_MS).slice(-1);
      const state =
        up.length > 0 ? up.map(({ role, state }) => `${NAMES[role]} ${STATES[state]}`).join(", ") : last ? "no model" : "nothing is known";
      return this.#tracks.length > 1 ? `${gpuId}: ${state}` : state;
    });
    const near = newestOf(this.#tracks).findLast(({ ts }) => ts <= at + 500 && ts > at - GAP_MS);
    const { depths, tokensPerSecond = null } = near ?? {};
    const memory = near === undefined ? null : memoryReading(near).value;
    const parts = [
      clock(at),
      ...states,
      ...(depths === undefined ? [] : [`${count(depths.student ?? 0)} wait for the Student, ${count(depths.talker ?? 0)} for the Talker`]),
      ...(tokensPerSecond === null ? [] : [`${count(tokensPerSecond)} tokens/s`]),
      ...(memory === null ? [] : [bytes(memory)]),
    ];
    return parts.join(" · ");
  }

  #summary() {
    const seen = this.#tracks.filter(({ samples }) => samples.length > 0);
    if (seen.length === 0) return "Nothing was recorded in this time.";
    const told = seen.map(({ gpuId, samples, segments }) => {
      const from = Math.max(/** @type {KeptSample} */ (samples[0]).ts, this.#from);
      const shares = ROLES.map((role) => {
        const ms = segments
          .filter((each) => each.role === role && each.state === "ready")
          .reduce((sum, each) => sum + Math.max(each.to - Math.max(each.from, from), 0), 0);
        return `${NAMES[role]} ${percent(ms / Math.max(this.#to - from, 1))}`;
      });
      const text = `${shares.join(", ")}, swaps ${percent(swapShare(segments, from, this.#to))} of the last ${duration(this.#to - from)}`;
      return seen.length > 1 ? `${gpuId}: ${text}` : text;
    });
    return told.join(" · ");
  }
}

/** @param {KeptSample[]} samples */
function hasVram(samples) {
  return samples.some(({ vramUsedBytes }) => vramUsedBytes !== null);
}

/**
 * @param {KeptSample} sample
 * @returns {Reading}
 */
function memoryReading({ ts, vramUsedBytes, modelServerRssBytes, serverModel }) {
  return { ts, value: vramUsedBytes ?? modelServerRssBytes, model: serverModel };
}

/**
 * The samples of the worker that has told most: the queues are the same for all.
 * @param {GpuTrack[]} tracks
 */
function newestOf(tracks) {
  return tracks.map(({ samples }) => samples).reduce((a, b) => (b.length > a.length ? b : a), []);
}

/**
 * Readings that belong together: without a gap in time, and of the same model.
 * @param {Reading[]} readings
 * @returns {Reading[][]}
 */
function runsOf(readings) {
  /** @type {Reading[][]} */
  const runs = [];
  /** @type {Reading | undefined} */
  let last;
  for (const reading of readings) {
    const joins = last !== undefined && reading.ts - last.ts <= GAP_MS && reading.value !== null && last.value !== null;
    if (joins && last?.model === reading.model) runs.at(-1)?.push(reading);
    else if (joins) runs.push([/** @type {Reading} */ ({ ...last, model: reading.model }), reading]);
    else if (reading.value !== null) runs.push([reading]);
    last = reading;
  }
  return runs;
}

/** @param {number} value */
function ceiling(value) {
  if (value <= 4) return 4;
  const power = 10 ** Math.floor(Math.log10(value));
  return /** @type {number} */ ([1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value)) * power;
}

function patterns() {
  const stripes = { loading: "rotate(45)", draining: "rotate(0)", stopping: "rotate(-45)" };
  const each = ROLES.flatMap((role) =>
    Object.entries(stripes).map(([name, turn]) =>
      svg(
        "pattern",
        { id: `${name}-${role}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: turn },
        svg("rect", { class: `stripe stripe-${role}`, width: name === "stopping" ? 1.5 : 3, height: 6 }),
      ),
    ),
  );
  return svg("defs", {}, ...each);
}
