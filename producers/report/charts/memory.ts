import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { besideAxis, type Chart, legend, limitLine, lineSeries, timeAxis } from "./chart.ts";

const MIB = 1_048_576;
const PLOT_PX = 210;
const BETWEEN_PX = 40;
/** Series with peaks so much smaller than the largest get an axis of their own: their growth would not be seen beside it. */
const SMALLER_BY = 6;

/** Memory over time, large and small in plots of their own. The capacity is drawn where it is near enough not to flatten the lines. */
export function memory({ phase, capacityBytes, series }: NonNullable<Graphs["memory"]>): Chart {
  const lastMs = Math.max(...series.flatMap(({ points }) => points.map(([ms]) => ms)), 1);
  const lines = series.map((it, index) => ({ ...it, index, peakBytes: Math.max(0, ...it.points.map(([, bytes]) => bytes)) }));
  const peakBytes = Math.max(...lines.map((line) => line.peakBytes), 1);
  const isLarge = (line: { peakBytes: number }) => line.peakBytes > peakBytes / SMALLER_BY;
  const plots = [lines.filter(isLarge), lines.filter((line) => !isLarge(line))].filter((plot) => plot.length > 0);
  const showsCapacity = capacityBytes !== null && capacityBytes < 3 * peakBytes;
  const labels = series.map(({ label }) => label);
  return {
    id: "memory",
    title: `Memory over time, phase ${phase}`,
    description: `${lines.map((line) => `${line.label}: at most ${figure(line.peakBytes, "bytes")}`).join("; ")}${
      capacityBytes === null ? "" : `; capacity ${figure(capacityBytes, "bytes")}`
    }.`,
    height: (layout) => legend(labels, layout).heightPx + plots.length * (PLOT_PX + BETWEEN_PX) + 34,
    option: (layout) => {
      const { option, heightPx } = legend(labels, layout);
      const isLast = (nth: number) => nth === plots.length - 1;
      return {
        legend: option,
        grid: plots.map((_, nth) => ({ left: 64, right: 24, top: heightPx + 30 + nth * (PLOT_PX + BETWEEN_PX), height: PLOT_PX })),
        xAxis: plots.map((_, nth) =>
          timeAxis(lastMs, layout, {
            gridIndex: nth,
            splitLine: { show: false },
            ...(isLast(nth) ? {} : { name: "", axisLabel: { show: false } }),
          }),
        ),
        yAxis: plots.map((_, nth) =>
          besideAxis("MiB", {
            gridIndex: nth,
            min: 0,
            splitNumber: 4,
            ...(nth === 0 && showsCapacity ? { max: (1.1 * capacityBytes) / MIB, axisLabel: { showMaxLabel: false } } : {}),
          }),
        ),
        series: plots.flatMap((plot, nth) =>
          plot.map(({ label, points, index }, at) =>
            lineSeries(
              label,
              points.map(([ms, bytes]) => [ms, Math.round((bytes / MIB) * 10) / 10] as const),
              index,
              {
                xAxisIndex: nth,
                yAxisIndex: nth,
                step: "end",
                lineStyle: { ...lineSeries("", [], index).lineStyle, width: 1.5 },
                markLine:
                  nth === 0 && at === 0 && showsCapacity
                    ? limitLine({ yAxis: capacityBytes / MIB }, `capacity ${figure(capacityBytes, "bytes")}`)
                    : undefined,
              },
            ),
          ),
        ),
      };
    },
  };
}
