import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { belowAxis, type Chart, colour, latencyAxis, legend, limitLine, lineSeries, seriesStyle } from "./chart.ts";

/** p50 and p95 against the offered rate, with the SLO and the knee; a cross marks a rate that missed the SLO. */
export function latencyByRate({
  points,
  sloMs,
  percentile,
  kneeRatePerS,
  firstMissedRatePerS,
}: NonNullable<Graphs["latencyByRate"]>): Chart {
  const sorted = [...points].sort((a, b) => a.ratePerS - b.ratePerS);
  const missed = "SLO missed";
  const names = ["p50", "p95", ...(points.some(({ meetsSlo }) => !meetsSlo) ? [missed] : [])];
  const { axis } = latencyAxis([...sorted.flatMap(({ p50Ms, p95Ms }) => [p50Ms, p95Ms]), sloMs]);
  return {
    id: "latency-by-rate",
    title: "Latency against offered rate",
    description:
      `${kneeRatePerS === null ? "No tried rate met the SLO" : `The highest rate that met the SLO (${percentile} within ${figure(sloMs, "ms")}) is ${figure(kneeRatePerS, "perS")}`}` +
      `${firstMissedRatePerS === null ? "" : `; the lowest that missed it ${figure(firstMissedRatePerS, "perS")}`}.`,
    height: (layout) => 340 + legend(names, layout).heightPx,
    option: (layout) => {
      const { option, heightPx } = legend(names, layout);
      return {
        legend: option,
        grid: { left: 12, right: 30, top: heightPx + 22, bottom: 4, outerBoundsMode: "same" },
        xAxis: belowAxis("offered rate (requests/s)", { min: 0, splitLine: { show: false } }),
        yAxis: axis,
        series: [
          lineSeries(
            "p50",
            sorted.map(({ ratePerS, p50Ms }) => [ratePerS, p50Ms] as const),
            0,
            {
              showSymbol: true,
              markLine:
                kneeRatePerS === null
                  ? undefined
                  : limitLine({ xAxis: kneeRatePerS }, `knee ${figure(kneeRatePerS, "perS")}`, colour("green")),
            },
          ),
          lineSeries(
            "p95",
            sorted.map(({ ratePerS, p95Ms }) => [ratePerS, p95Ms] as const),
            1,
            {
              showSymbol: true,
              markLine: limitLine({ yAxis: sloMs }, `SLO ${percentile} ≤ ${figure(sloMs, "ms")}`),
            },
          ),
          {
            type: "scatter",
            name: missed,
            data: sorted.filter(({ meetsSlo }) => !meetsSlo).map(({ ratePerS, p95Ms }) => [ratePerS, p95Ms]),
            symbol: "path://M-5,-3.5L-3.5,-5L0,-1.5L3.5,-5L5,-3.5L1.5,0L5,3.5L3.5,5L0,1.5L-3.5,5L-5,3.5L-1.5,0Z",
            symbolSize: 13,
            itemStyle: { color: colour("limit") },
            silent: true,
            z: 5,
          },
        ],
        color: [seriesStyle(0).color, seriesStyle(1).color, colour("limit")],
      };
    },
  };
}
