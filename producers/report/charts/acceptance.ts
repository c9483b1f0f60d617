import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { besideAxis, type Chart, colour, seriesStyle } from "./chart.ts";

/** How often drafts were accepted, and how far. */
export function acceptance(run: Graphs["acceptance"][number], id: string): Chart {
  const { label, axis, bins } = run;
  return {
    id,
    title: `Accepted drafts: ${label}`,
    description: `${axis}: ${bins.map(({ label: bin, count }) => `${bin}: ${figure(count, "count")}`).join(", ")}.`,
    height: () => 290,
    option: (layout) => ({
      grid: { left: 12, right: 20, top: 8, bottom: 4, outerBoundsMode: "same" },
      xAxis: {
        type: "category",
        data: bins.map(({ label: bin }) => bin),
        name: axis,
        nameLocation: "middle",
        nameGap: 28,
        nameTextStyle: { color: colour("muted"), fontSize: 12 },
        axisLine: { lineStyle: { color: colour("axis") } },
        axisTick: { show: false },
        axisLabel: { color: colour("muted"), fontSize: 12, hideOverlap: true },
      },
      yAxis: besideAxis("count", { min: 0, minInterval: 1 }),
      series: [
        {
          type: "bar",
          data: bins.map(({ count }) => count),
          silent: true,
          itemStyle: { color: seriesStyle(2).color },
          barCategoryGap: "20%",
          label: { show: bins.length <= (layout.narrow ? 8 : 16), position: "top", color: colour("text"), fontSize: 12 },
        },
      ],
    }),
  };
}
