import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { besideAxis, type Chart, lineSeries, timeAxis } from "./chart.ts";

/** Requests and tokens a second over time, one above the other on one time axis. */
export function throughput({ phase, requestsPerS, tokensPerS }: NonNullable<Graphs["throughput"]>): Chart {
  const parts = [
    { name: "requests ended (1/s)", points: requestsPerS },
    { name: "tokens written (1/s)", points: tokensPerS },
  ].filter(({ points }) => points.length > 0);
  const lastMs = Math.max(...parts.flatMap(({ points }) => points.map(([ms]) => ms)), 1);
  const plotPx = 150;
  return {
    id: "throughput",
    title: `Throughput over time, phase ${phase}`,
    description: `${parts
      .map(({ name, points }) => {
        const values = points.map(([, value]) => value);
        return `${name}: between ${figure(Math.min(...values), "perS")} and ${figure(Math.max(...values), "perS")}`;
      })
      .join("; ")}.`,
    height: () => parts.length * (plotPx + 44) + 44,
    option: (layout) => ({
      grid: parts.map((_, nth) => ({ left: 64, right: 24, top: 34 + nth * (plotPx + 44), height: plotPx })),
      xAxis: parts.map((_, nth) =>
        timeAxis(lastMs, layout, {
          gridIndex: nth,
          ...(nth < parts.length - 1 ? { name: "", axisLabel: { show: false } } : {}),
          splitLine: { show: false },
        }),
      ),
      yAxis: parts.map(({ name }, nth) => besideAxis(name, { gridIndex: nth, min: 0, splitNumber: 3 })),
      series: parts.map(({ name, points }, nth) =>
        lineSeries(name, points, nth, {
          xAxisIndex: nth,
          yAxisIndex: nth,
          lineStyle: { color: lineSeries("", [], nth).lineStyle.color, width: 1.5 },
        }),
      ),
    }),
  };
}
