import type { CustomSeriesRenderItemAPI, CustomSeriesRenderItemParams } from "echarts/types/dist/shared";
import { ROLES, type Role } from "../../../queues/names.ts";
import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { besideAxis, type Chart, colour, legend, lineSeries, ROLE_COLOUR, timeAxis } from "./chart.ts";

const NAMES: Record<Role, string> = { student: "Student", talker: "Talker" };
const GANTT_PX = 76;
const DEPTH_PX = 150;
const TOP_PX = 46;
const BETWEEN_PX = 40;

/** Which model was resident when (above) and how many jobs waited for each (below), on one time axis; a thin line at each swap. */
export function residency(run: Graphs["residency"][number], id: string): Chart {
  const { label, phase, durationMs, intervals, swaps } = run;
  const depths = ROLES.map((role) => ({ role, points: role === "student" ? run.studentDepth : run.talkerDepth }));
  return {
    id,
    title: `Resident model, waiting jobs and swaps, phase ${phase}: ${label}`,
    description: `${depths
      .map(({ role, points }) => `${NAMES[role]}: at most ${figure(Math.max(0, ...points.map(([, depth]) => depth)), "count")} waiting`)
      .join("; ")}. A filled bar is a model that serves, a pale one is being loaded or drained; a thin line is a swap.`,
    height: () => TOP_PX + GANTT_PX + BETWEEN_PX + DEPTH_PX + 52,
    option: (layout) => {
      const left = layout.narrow ? 62 : 70;
      const depthTop = TOP_PX + GANTT_PX + BETWEEN_PX;
      const { option } = legend(["Student waiting", "Talker waiting"], layout);
      return {
        legend: option,
        grid: [
          { left, right: 20, top: TOP_PX - 12, height: GANTT_PX },
          { left, right: 20, top: depthTop, height: DEPTH_PX },
        ],
        xAxis: [
          timeAxis(durationMs, layout, { gridIndex: 0, name: "", axisLabel: { show: false }, splitLine: { show: false } }),
          timeAxis(durationMs, layout, { gridIndex: 1, splitLine: { show: false } }),
        ],
        yAxis: [
          {
            type: "category",
            gridIndex: 0,
            data: ROLES.map((role) => NAMES[role]),
            inverse: true,
            axisLine: { lineStyle: { color: colour("axis") } },
            axisTick: { show: false },
            axisLabel: { color: colour("text"), fontSize: 12 },
          },
          besideAxis("jobs waiting", { gridIndex: 1, min: 0, minInterval: 1, splitNumber: 3 }),
        ],
        series: [
          {
            type: "custom",
            silent: true,
            xAxisIndex: 0,
            yAxisIndex: 0,
            clip: true,
            encode: { x: [0, 1], y: 2 },
            data: drawn(intervals, durationMs / layout.widthPx),
            renderItem: interval,
          },
          ...depths.map(({ role, points }, index) =>
            lineSeries(`${NAMES[role]} waiting`, points, index, {
              xAxisIndex: 1,
              yAxisIndex: 1,
              step: "end",
              lineStyle: { color: ROLE_COLOUR[role], width: 1.5, type: index === 0 ? "solid" : [4, 2] },
            }),
          ),
          {
            type: "custom",
            silent: true,
            xAxisIndex: 1,
            yAxisIndex: 1,
            z: 0,
            data: apart(
              swaps.map(({ atMs }) => atMs),
              durationMs / layout.widthPx,
            ).map((atMs) => [atMs, 0]),
            renderItem: (_: CustomSeriesRenderItemParams, api: CustomSeriesRenderItemAPI) => {
              const [x] = api.coord([api.value(0), 0]) as [number];
              return {
                type: "line",
                shape: { x1: x, x2: x, y1: TOP_PX - 12, y2: depthTop + DEPTH_PX },
                style: { fill: "none", stroke: colour("axis"), lineWidth: 0.5 },
              };
            },
          },
        ],
      };
    },
  };
}

type Bar = [fromMs: number, toMs: number, role: number, isResident: 0 | 1];

/** Bars of one model and state that are less than a pixel apart become one: a long run has thousands. */
function drawn(intervals: Graphs["residency"][number]["intervals"], pixelMs: number): Bar[] {
  const last = new Map<string, Bar>();
  const bars: Bar[] = [];
  for (const { model, state, fromMs, toMs } of intervals) {
    const isResident = state === "resident" ? 1 : 0;
    const before = last.get(`${model} ${isResident}`);
    if (before !== undefined && fromMs - before[1] < pixelMs) before[1] = Math.max(before[1], toMs);
    else {
      const bar: Bar = [fromMs, toMs, ROLES.indexOf(model), isResident];
      bars.push(bar);
      last.set(`${model} ${isResident}`, bar);
    }
  }
  return bars;
}

/** Those of the sorted times that are at least a pixel after the one before. */
function apart(timesMs: readonly number[], pixelMs: number): number[] {
  return timesMs.reduce<number[]>((kept, time) => {
    if (kept.length === 0 || time - kept.at(-1)! >= pixelMs) kept.push(time);
    return kept;
  }, []);
}

/** A bar from one time to the other: filled while the model serves, outlined while it is loaded or drained. */
function interval(_: CustomSeriesRenderItemParams, api: CustomSeriesRenderItemAPI) {
  const row = api.value(2) as number;
  const [from, y] = api.coord([api.value(0), row]) as [number, number];
  const [to] = api.coord([api.value(1), row]) as [number];
  const heightPx = GANTT_PX / 2 - 14;
  const color = ROLE_COLOUR[ROLES[row]!];
  const isResident = api.value(3) === 1;
  return {
    type: "rect",
    shape: { x: from, y: y - heightPx / 2, width: Math.max(to - from, 0.5), height: heightPx },
    style: { fill: color, fillOpacity: isResident ? 1 : 0.3, stroke: color, lineWidth: 0.5 },
  };
}
