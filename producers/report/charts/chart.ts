import { BarChart, CustomChart, LineChart, ScatterChart } from "echarts/charts";
import { GridComponent, LegendComponent, MarkLineComponent } from "echarts/components";
import { type EChartsCoreOption, init, use } from "echarts/core";
import { SVGRenderer } from "echarts/renderers";

use([BarChart, CustomChart, LineChart, ScatterChart, GridComponent, LegendComponent, MarkLineComponent, SVGRenderer]);

/** A graph: what it is called, what it shows in words (for those who can't see it), and how it is drawn at a width. */
export interface Chart {
  id: string;
  title: string;
  description: string;
  height: (layout: Layout) => number;
  option: (layout: Layout) => EChartsCoreOption;
}

export interface Layout {
  widthPx: number;
  /** A phone: fewer ticks, shorter labels. */
  narrow: boolean;
}

export const WIDE: Layout = { widthPx: 860, narrow: false };
export const NARROW: Layout = { widthPx: 358, narrow: true };

/**
 * Colours as they stand in the SVG (light, and on paper), each with what a dark theme puts in its place. Every use has a colour of its own, so
 * that a style sheet can exchange them by their value. The series' colours are Okabe and Ito's, told apart by the colour-blind; dashes
 * and symbols tell them apart without any.
 */
export const COLOURS = {
  background: ["#fffffe", "#161b22"],
  text: ["#24292f", "#d7dde4"],
  muted: ["#59636e", "#9aa5b1"],
  axis: ["#8c959f", "#66707b"],
  grid: ["#e4e8ec", "#2b323b"],
  blue: ["#0072b2", "#5cb8f0"],
  orange: ["#c85200", "#ff9a52"],
  green: ["#00805d", "#3ccfa3"],
  purple: ["#a04a80", "#e79ac5"],
  sky: ["#3a8fc0", "#9ad4f5"],
  gold: ["#8a6d00", "#e6c229"],
  limit: ["#b3261e", "#ff8a80"],
} as const satisfies Record<string, readonly [light: string, dark: string]>;

export const colour = (name: keyof typeof COLOURS): string => COLOURS[name][0];
export const ROLE_COLOUR = { student: colour("blue"), talker: colour("orange") };

const SERIES_COLOURS = (["blue", "orange", "green", "purple", "sky", "gold"] as const).map(colour);
const DASHES = ["solid", [7, 4], [2, 3], [10, 4, 2, 4], [5, 2], [1, 2]] as const;
const MARKERS = ["circle", "rect", "triangle", "diamond", "emptyCircle", "emptyRect"] as const;

export function seriesStyle(index: number) {
  const nth = index % SERIES_COLOURS.length;
  return {
    color: SERIES_COLOURS[nth]!,
    dash: index < SERIES_COLOURS.length ? DASHES[nth]! : DASHES[(nth + 1) % DASHES.length]!,
    symbol: MARKERS[nth]!,
  };
}

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif";
const LEGEND_ROW_PX = 20;
const LEGEND_MARK_PX = 52;
/** Of 12 px in a wide font. */
const LETTER_PX = 7.2;

/** The part of an option that every graph shares. */
export function base(): EChartsCoreOption {
  return { animation: false, backgroundColor: colour("background"), textStyle: { fontFamily: FONT, fontSize: 12, color: colour("text") } };
}

/**
 * A legend at the top, and the height it takes. Every entry is a component of its own at a reckoned place: how wide a text is depends on
 * the reader's font, so there is room for the widest.
 */
export function legend(labels: readonly string[], layout: Layout) {
  const longest = Math.floor((layout.widthPx - 8 - LEGEND_MARK_PX) / LETTER_PX);
  let left = 0;
  let row = 0;
  const entries = labels.map((label) => {
    const widthPx = LEGEND_MARK_PX + LETTER_PX * Math.min(label.length, longest);
    if (left > 0 && left + widthPx > layout.widthPx) {
      row++;
      left = 0;
    }
    const entry = {
      data: [label],
      left,
      top: row * LEGEND_ROW_PX,
      padding: 3,
      itemWidth: 26,
      itemHeight: 10,
      textStyle: { color: colour("text"), fontSize: 12 },
      formatter: (text: string) => shortened(text, longest),
      selectedMode: false,
    };
    left += widthPx;
    return entry;
  });
  return { heightPx: labels.length === 0 ? 0 : (row + 1) * LEGEND_ROW_PX, option: entries };
}

export const shortened = (text: string, length: number) => (text.length <= length ? text : `${text.slice(0, length - 1)}…`);

const AXIS_LABEL = { color: colour("muted"), fontSize: 12, hideOverlap: true };

function valueAxis(name: string, { axisLabel, ...more }: { axisLabel?: object; [option: string]: unknown } = {}) {
  return {
    type: "value",
    name,
    nameTextStyle: { color: colour("muted"), fontSize: 12 },
    axisLine: { show: true, lineStyle: { color: colour("axis") } },
    axisTick: { show: true, lineStyle: { color: colour("axis") } },
    axisLabel: { ...AXIS_LABEL, ...axisLabel },
    splitLine: { lineStyle: { color: colour("grid") } },
    ...more,
  };
}

/** A horizontal axis whose name stands below it. */
export function belowAxis(name: string, more: object = {}) {
  return valueAxis(name, { nameLocation: "middle", nameGap: 28, ...more });
}

/** A vertical axis whose name stands above it, at the left. */
export function besideAxis(name: string, more: object = {}) {
  return valueAxis(name, {
    nameLocation: "end",
    nameGap: 10,
    nameTextStyle: { color: colour("muted"), fontSize: 12, align: "left" },
    ...more,
  });
}

/**
 * Milliseconds from 0 on; logarithmic, with ticks at 1, 2 and 5, when the values span more than a decade.
 */
export function latencyAxis(valuesMs: readonly number[]) {
  const positive = valuesMs.filter((ms) => ms > 0);
  const [low, high] = [Math.min(...positive), Math.max(...positive)];
  if (positive.length === 0 || high < 10 * low) return { isLog: false, axis: besideAxis("ms", { min: 0 }) };
  const ticks = Array.from({ length: 36 }, (_, nth) => [1, 2, 5][nth % 3]! * 10 ** (Math.floor(nth / 3) - 4));
  const from = ticks.findLast((tick) => tick <= low) ?? low;
  const to = ticks.find((tick) => tick >= high) ?? high;
  const shown = ticks.filter((tick) => tick >= from && tick <= to);
  const thinned = shown.length > 10 ? shown.filter((tick) => /^[10.]+$/.test(String(tick))) : shown;
  return {
    isLog: true,
    axis: besideAxis("ms (logarithmic)", {
      type: "log",
      min: from,
      max: to,
      axisLabel: { customValues: thinned },
      axisTick: { lineStyle: { color: colour("axis") }, customValues: thinned },
    }),
  };
}

/** Minutes and seconds on the axis, for times in milliseconds. */
export function timeAxis(lastMs: number, layout: Layout, more: object = {}) {
  const step = niceStepMs(lastMs, layout.narrow ? 4 : 8);
  return belowAxis("time since its start (min:s)", {
    min: 0,
    max: Math.max(lastMs, 1),
    interval: step,
    axisLabel: {
      showMaxLabel: lastMs % step === 0,
      formatter: (ms: number) => clock(ms, step < 1000),
    },
    ...more,
  });
}

function niceStepMs(lastMs: number, ticks: number): number {
  const steps = [100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000, 3_600_000];
  return steps.find((step) => lastMs / step <= ticks) ?? Math.ceil(lastMs / ticks / 3_600_000) * 3_600_000;
}

function clock(ms: number, tenths: boolean): string {
  const seconds = ms / 1000;
  const rest = tenths ? (seconds % 60).toFixed(1).padStart(4, "0") : String(Math.round(seconds % 60)).padStart(2, "0");
  return `${Math.floor(seconds / 60)}:${rest}`;
}

/** A horizontal or vertical line with a text at its end. */
export function limitLine(at: { xAxis: number } | { yAxis: number }, text: string, color = colour("limit")) {
  return {
    silent: true,
    symbol: "none",
    lineStyle: { color, type: "dashed", width: 1.5 },
    label: { formatter: text, color, fontSize: 12, position: "xAxis" in at ? "end" : "insideStartTop" },
    data: [at],
  };
}

export function lineSeries(name: string, data: readonly (readonly [number, number])[], index: number, more: object = {}) {
  const { color, dash, symbol } = seriesStyle(index);
  return {
    type: "line",
    name,
    data,
    showSymbol: false,
    symbol,
    symbolSize: 7,
    silent: true,
    emphasis: { disabled: true },
    itemStyle: { color },
    lineStyle: { color, width: 2, type: dash },
    ...more,
  };
}

/** The graph as an SVG that scales to its container, with a title and description for screen readers and a dark theme of its own. */
export function renderSvg(chart: Chart, layout: Layout): string {
  const height = chart.height(layout);
  const canvas = init(null, null, { renderer: "svg", ssr: true, width: layout.widthPx, height });
  try {
    canvas.setOption({ ...base(), ...chart.option(layout) });
    const prefix = `${chart.id}-${layout.narrow ? "narrow" : "wide"}`;
    return (
      canvas
        .renderToSVGString()
        .replace(/\bzr\d+-/g, `${prefix}-`)
        .replace(/ ecmeta_[a-z_]+="[^"]*"/g, "")
        // What happens under a mouse: nothing is interactive here, and the names count up with every graph of the process.
        .replace(/ class="[^"]*-cls-\d+"/g, "")
        .replace(/<style ?>[\s\S]*?<\/style>\s*/g, "")
        .replace(
          /^<svg [^>]*>/,
          `<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${layout.widthPx} ${height}" width="${layout.widthPx}" height="${height}" ` +
            `role="img" aria-labelledby="${prefix}-title ${prefix}-description"><title id="${prefix}-title">${escapeXml(chart.title)}</title>` +
            `<desc id="${prefix}-description">${escapeXml(chart.description)}</desc>`,
        )
    );
  } finally {
    canvas.dispose();
  }
}

export function escapeXml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;").replaceAll("'", "&#39;");
}

/** Rules that put a dark theme's colours in the place of the light ones, in every SVG below `selector`. */
export function darkRules(selector: string): string {
  return Object.values(COLOURS)
    .flatMap(([light, dark]) => ["fill", "stroke"].map((attribute) => `${selector} [${attribute}="${light}"]{${attribute}:${dark}}`))
    .join("\n");
}

/** An SVG file of its own follows the viewer's theme. */
export function standalone(svg: string): string {
  return svg.replace("</desc>", `</desc><style>@media (prefers-color-scheme: dark){${darkRules("svg")}}</style>`);
}

/** Where a graph's own file is, from the report's folder. */
export function graphFile(chartId: string): string {
  return `graphs/${chartId}.svg`;
}
