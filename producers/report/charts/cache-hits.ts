import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { belowAxis, besideAxis, type Chart, legend, lineSeries } from "./chart.ts";

/** Share of requests that the cache had answered so far. */
export function cacheHits(runs: Graphs["cacheHits"]): Chart {
  const labels = runs.map(({ label }) => label);
  return {
    id: "cache-hits",
    title: "Cache hits as requests come in",
    description: `${runs.map(({ label, points }) => `${label}: ${figure(points.at(-1)?.[1] ?? null, "share")} at the end`).join("; ")}.`,
    height: (layout) => 280 + legend(labels, layout).heightPx,
    option: (layout) => {
      const { option, heightPx } = legend(labels, layout);
      return {
        legend: option,
        grid: { left: 12, right: 24, top: heightPx + 8, bottom: 4, outerBoundsMode: "same" },
        xAxis: belowAxis("request", {
          min: 0,
          max: Math.max(...runs.flatMap(({ points }) => points.map(([x]) => x)), 1),
          splitLine: { show: false },
        }),
        yAxis: besideAxis("hits so far (%)", { min: 0, max: 100 }),
        series: runs.map(({ label, points }, index) =>
          lineSeries(
            label,
            points.map(([request, share]) => [request, Math.round(1000 * share) / 10] as const),
            index,
            { step: "end" },
          ),
        ),
      };
    },
  };
}
