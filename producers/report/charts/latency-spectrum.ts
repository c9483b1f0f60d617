import { figure } from "../figure.ts";
import type { Graphs } from "../schema.ts";
import { belowAxis, type Chart, latencyAxis, legend, lineSeries } from "./chart.ts";

const TICKS = [0, 50, 90, 99, 99.9, 99.99];
/** Each further nine takes the same width, as in an HDR histogram's plot. */
const nines = (percentile: number) => -Math.log10(1 - Math.min(percentile, 99.999) / 100);

/** Latency against percentile, one line a run. */
export function latencySpectrum(runs: Graphs["latencySpectrum"]): Chart {
  const { axis, isLog } = latencyAxis(runs.flatMap(({ points }) => points.map(([, ms]) => ms)));
  const last = nines(Math.max(...runs.flatMap(({ points }) => points.map(([percentile]) => percentile).filter((it) => it < 100)), 50));
  return {
    id: "latency-spectrum",
    title: "Latency by percentile",
    description: `End-to-end latency from the scheduled time, against percentile. ${runs
      .map(({ label, points }) => `${label}: from ${figure(points[0]?.[1] ?? null, "ms")} to ${figure(points.at(-1)?.[1] ?? null, "ms")}`)
      .join("; ")}.`,
    height: (layout) => 340 + legend(labels(runs), layout).heightPx,
    option: (layout) => {
      const { option, heightPx } = legend(labels(runs), layout);
      return {
        legend: option,
        grid: { left: 12, right: 24, top: heightPx + 8, bottom: 4, outerBoundsMode: "same" },
        xAxis: belowAxis("percentile", {
          min: 0,
          max: last,
          axisLabel: {
            customValues: TICKS.map(nines).filter((x) => x <= last + 1e-9),
            formatter: (x: number) => String(TICKS.find((tick) => Math.abs(nines(tick) - x) < 1e-6) ?? ""),
          },
          axisTick: { customValues: TICKS.map(nines) },
          splitLine: { show: false },
        }),
        yAxis: axis,
        series: runs.map(({ label, points }, index) =>
          lineSeries(
            label,
            points.filter(([, ms]) => !isLog || ms > 0).map(([percentile, ms]) => [Math.min(nines(percentile), last), ms] as const),
            index,
          ),
        ),
      };
    },
  };
}

const labels = (runs: Graphs["latencySpectrum"]) => runs.map(({ label }) => label);
